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
    require_regime: bool = False,
    average_orders: bool = False,
    shots: int = 0,
    prompt_form: str = "plain",
    dtype: str = "auto",
    base_model: str = "",
    batch_tokens: int = 4096,
    repairs: str = "temperature,cft,rcft",
    on_undecided: str = "branch",
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: Optional[float] = None,  # noqa: UP045 (KFP reads no `| None`)
    cluster_by: str = "group",
    n_resamples: int = 1000,
    n_bins: int = 10,
    seed: int = 0,
) -> NamedTuple("Outputs", regime=str, uri=str, branch=str, prompt_form=str):  # type: ignore[valid-type]
    """Score every fold with one model, measure it, and name the regime that its bounds put it in.

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        data: Data folder of `data_prep`.
        require_regime: Refuse folds too small to name the regime; otherwise the figures are given without it.
        average_orders: Score each question in all cyclic orders of its options and average, which cancels a
            preference for some letters and costs as many times as much.
        shots: Number of worked examples, taken from the fit fold, that stand before each question.
        prompt_form: `plain` (Question, options, "Answer:"), `chat` (the tokenizer's chat template) or `auto`
            (the form that the adapter was made in, else the one in which the model puts most probability on
            letters).
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        batch_tokens: Padded tokens in one forward pass.
        repairs: Repairs that are allowed: some of `temperature`, `cft` and `rcft`, separated by commas.
        on_undecided: What to do if the interval straddles the target: `branch` (continue, as not shown to be
            calibrated) or `stop`.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        critical_accuracy: Accuracy of the target model, if it is known (human agreement, say); otherwise it
            is estimated.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        n_resamples: Bootstrap resamples behind the intervals of calibration errors.
        n_bins: Equal-width confidence bins of every binned figure.
        seed: Seed of everything that is drawn at random.

    Returns:
        evaluation: Evaluation folder: predictions per fold, and evaluation.json with figures and reasons.
        metrics: Figures of the test fold.
        regime: `calibrated`, `calibratable` or `non_calibratable`; `not_decidable` where the folds are too
            small and `require_regime` is off.
        uri: The evaluation's URI, so that branches of a pipeline can be merged on a string.
        branch: `none`, `temperature`, `cft` or `rcft`: the allowed repair that the figures speak for.
        prompt_form: `plain` or `chat`: the form that was used, for the tasks that go on with the model.
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
    regime = result["regime"]
    return (regime["regime"], evaluation.uri, regime["branch"], result["prompt_form"])
