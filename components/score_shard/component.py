"""Component `score_shard`: one shard of a large set of questions, scored by one model."""

from typing import Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score_shard(  # noqa: D417 - outputs stand under Returns
    model: str,
    data: Input[Dataset],
    predictions: Output[Dataset],
    prompt_form: str = "plain",
    dtype: str = "auto",
    base_model: str = "",
    batch_tokens: int = 4096,
    shard: Optional[int] = None,  # noqa: UP045 (KFP reads no `| None`)
) -> None:
    """Score one shard of the questions; the shards' tables together are what one task would have made.

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        data: Folder of `shard_questions`.
        prompt_form: `plain` (Question, options, "Answer:"), `chat` (the tokenizer's chat template) or `auto`
            (the form that the adapter was made in, else the one in which the model puts most probability on
            letters).
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass.
        shard: Number of the shard, from 0; all questions are scored in one go if it is left out.

    Returns:
        predictions: Predictions table (Parquet).
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import shards as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        config = config_from(step.ScoreConfig, arguments)
        step.score_shard(config, model, Path(data.path), Path(predictions.path), shard=shard)
    predictions.metadata["model"] = model
