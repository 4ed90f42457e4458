"""Component `evaluate`: one model scored on every fold, measured, and its regime named."""

from typing import NamedTuple, Optional

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(  # noqa: D417 - outputs stand under Returns
    model: str,
    data: Input[Dataset],
    evaluation: Output[Dataset],
    metrics: Output[Metrics],
    prompt_form: str = "plain",
    shots: int = 0,
    average_orders: bool = False,
    dtype: str = "auto",
    base_model: str = "",
    batch_tokens: int = 4096,
    n_bins: int = 10,
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: Optional[float] = None,  # noqa: UP045 (KFP reads no `| None`)
    repairs: str = "temperature,cft,rcft",
    on_undecided: str = "branch",
    cluster_by: str = "group",
    n_resamples: int = 1000,
    seed: int = 0,
) -> NamedTuple("Outputs", regime=str, uri=str):  # type: ignore[valid-type]
    """Score every fold with one model, measure it, and name the regime that its bounds put it in.

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        data: Data folder of `data_prep`.
        prompt_form: `plain` (Question, options, "Answer:") or `chat` (the tokenizer's chat template).
        shots: How many worked examples, taken from the fit fold, stand before each question.
        average_orders: Score each question in all cyclic orders of its options and average, which cancels a
            leaning towards some letters and costs as many times as much.
        dtype: `auto` (bfloat16 where the hardware computes it), `float32` or `bfloat16`.
        base_model: Folder, gs:// URI or hub id of the base model, where the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass.
        n_bins: Equal-width confidence bins of every binned figure.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, where it is known (human agreement, say); estimated
            if left out.
        repairs: Answers that are allowed beside none: some of `temperature`, `cft` and `rcft`, with commas.
        on_undecided: `branch` (go on as not shown to be calibrated) or `stop` where the interval straddles
            the target.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        n_resamples: Bootstrap resamples behind every interval.
        seed: Seed of the bootstrap.

    Returns:
        evaluation: Evaluation folder: predictions per fold, and evaluation.json with figures and reasons.
        metrics: Figures of the test fold.
        regime: `calibrated`, `calibratable` or `non_calibratable`.
        uri: The evaluation's URI, so that branches of a pipeline can be merged on a string.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import evaluate as step
    from calib_core.steps.task import log_figures, reported_errors

    with reported_errors():
        config = config_from(step.EvaluateConfig, arguments)
        result = step.evaluate(config, model, Path(data.path), Path(evaluation.path))
    evaluation.metadata["model"] = model
    log_figures(metrics, result["figures"]["test"])
    return (result["regime"]["regime"], evaluation.uri)
