"""Component `merge_predictions`: the shards' tables as one table."""

from typing import List  # noqa: UP035 (KFP's `List[Dataset]`)

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_predictions(  # noqa: D417 - outputs stand under Returns
    data: Input[Dataset],
    shards: Input[List[Dataset]],  # noqa: UP006
    predictions: Output[Dataset],
) -> None:
    """Put the predictions tables of all shards together, in the questions' order.

    Args:
        data: Folder of `shard_questions`.
        shards: Predictions tables of all shards: `dsl.Collected(...)` of `score_shard`.

    Returns:
        predictions: Predictions table of all questions (Parquet).
    """
    from pathlib import Path

    from calib_core.steps import shards as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        step.merge_predictions(Path(data.path), [Path(part.path) for part in shards], Path(predictions.path))
