"""Component `shard_questions`: questions checked once, and the shards that `dsl.ParallelFor` loops over."""

from typing import List  # noqa: UP035 (KFP's `List[int]`)

from kfp import dsl
from kfp.dsl import Dataset, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shard_questions(  # noqa: D417 - outputs stand under Returns
    data: Output[Dataset],
    questions: str = "",
    shots: int = 0,
    questions_per_shard: int = 10000,
    preset: str = "auto",
    on_bad_row: str = "refuse",
) -> List[int]:  # noqa: UP006 - one unnamed output: kfp.local loops over no other
    """Check a large set of questions once, and say in how many shards it is scored.

    Args:
        questions: File, bucket URI or hub id of the questions to score.
        shots: Number of worked examples, taken from the beginning of the questions, that stand before each of
            the others.
        questions_per_shard: Approximate number of questions that one task scores.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.

    Returns:
        data: Folder with the questions, the worked examples and their number of shards.
        Output: Numbers of the shards, from 0: what `dsl.ParallelFor` loops over.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import shards as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        config = config_from(step.ShardConfig, arguments)
        result = step.shard_questions(config, Path(data.path))
    return list(range(result["n_shards"]))
