"""What lies in a bucket of either store, put and seen past the code under test."""

from __future__ import annotations


def put(bucket: str, key: str, data: bytes) -> None:
    """Write an object by the store's own library."""
    scheme, name = bucket.split("://")
    if scheme == "gs":
        from google.cloud.storage import Client

        Client(project=None).bucket(name).blob(key).upload_from_string(data, retry=None)
    else:
        import boto3

        boto3.client("s3", region_name="us-east-1").put_object(Bucket=name, Key=key, Body=data)


def keys(bucket: str) -> set[str]:
    """Names of all objects of a bucket."""
    scheme, name = bucket.split("://")
    if scheme == "gs":
        from google.cloud.storage import Client

        return {blob.name for blob in Client(project=None).list_blobs(name)}
    import boto3

    pages = boto3.client("s3", region_name="us-east-1").get_paginator("list_objects_v2").paginate(Bucket=name)
    return {entry["Key"] for page in pages for entry in page.get("Contents", [])}


def kind(bucket: str) -> type:
    """The class that speaks to a bucket's store."""
    if bucket.startswith("gs:"):
        from calib_core.storage.gcs import GcsBucket

        return GcsBucket
    from calib_core.storage.s3 import S3Bucket

    return S3Bucket
