"""Pipeline `score-large`: a large set of questions scored in shards, side by side, and measured."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset

from calib_components import measure, merge_predictions, score_shard, shard_questions
from calib_pipelines.definitions.platforms import Platform, build


class Outputs(NamedTuple):
    """What a run of the pipeline leaves."""

    predictions: Dataset
    report: HTML


def define(  # noqa: D417 - outsiders don't see `place`
    place: Platform,
    model: str,
    questions: str = "",
    preset: str = "auto",
    on_bad_row: str = "refuse",
    shots: int = 0,
    questions_per_shard: int = 10000,
    prompt_form: str = "plain",
    dtype: str = "auto",
    base_model: str = "",
    batch_tokens: int = 4096,
) -> Outputs:
    """Score a large set of questions in shards, merge them into one predictions table, and measure it.

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        questions: File, bucket URI or hub id of the questions to score.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.
        shots: Number of worked examples, taken from the beginning of the questions, that stand before each of
            the others.
        questions_per_shard: Approximate number of questions that one task scores.
        prompt_form: `plain` (Question, options, "Answer:"), `chat` (the tokenizer's chat template) or `auto`
            (the form that the adapter was made in, else the one in which the model puts most probability on
            letters).
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass.

    Returns:
        predictions: Predictions table of all questions (Parquet).
        report: The report, one self-contained page.
    """
    given = locals()
    cut = place(shard_questions, given)()
    with dsl.ParallelFor(cut.outputs["Output"]) as shard:  # unnamed: KFP 2.14 and 2.15 lose a named one
        part = place(score_shard, given)(data=cut.outputs["data"], shard=shard)
    merged = place(merge_predictions)(
        data=cut.outputs["data"], shards=dsl.Collected(part.outputs["predictions"])
    )
    measured = place(measure)(predictions=merged.outputs["predictions"])
    return Outputs(predictions=merged.outputs["predictions"], report=measured.outputs["report"])


NAME = "score-large"

score_large = build(define, Platform(), name=NAME)
