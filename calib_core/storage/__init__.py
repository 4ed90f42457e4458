"""Files, folders and buckets: read whole, written atomically."""
