"""The part that pipelines share: evaluate a model, and repair it by the branch that its bounds choose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from calib_components import cft_finetune, em_ece_finetune, evaluate
from calib_components.image import IMAGE
from calib_pipelines.definitions.platforms import Platform


class Repaired(NamedTuple):
    """Channels that later tasks go on with.

    Attributes:
        before: URI of the input model's evaluation.
        after: URI of the output model's evaluation, or the same again.
        model: URI of the output model, or of the input model.
        branch: `none`, `cft` or `rcft`.
    """

    before: Any
    after: Any
    model: Any
    branch: Any


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def end_branch(
    model: str,
    evaluation: str = "",
    regime: str = "",
    branch: str = "none",
) -> NamedTuple("Outputs", model=str, evaluation=str, regime=str, branch=str):  # type: ignore[valid-type]
    """Hand on what a branch of a condition came to, as its last task.

    KFP's backend takes a merged value from a branch that counts as complete, and only a task that really ran
    makes it so. So this one is never cached, and takes something from each task that ends its branch.

    Args:
        model: URI of the model.
        evaluation: URI of its evaluation.
        regime: Regime that the evaluation found.
        branch: Branch that was taken so far.
    """
    return (model, evaluation, regime, branch)


def repair(place: Platform, model: Any, data: Any, given: Mapping[str, Any]) -> Repaired:
    """Add the tasks that evaluate a model, fine-tune it where it isn't calibrated, and evaluate the result.

    Args:
        place: Where they run.
        model: The model's URI.
        data: Data folder.
        given: The pipeline's parameters.
    """
    before = place(evaluate, given)(model=model, data=data)
    before.set_display_name("evaluate-before")

    # Two conditions, one after the other: the second takes models that were non-calibratable from the start,
    # and models that fine-tuning by the first has driven there. A calibrated model passes both untouched.
    with dsl.If(before.outputs["regime"] == "calibratable", "calibratable"):
        cft = place(cft_finetune, given)(model=model, data=data)
        after_cft = place(evaluate, given)(model=cft.outputs["uri"], data=data)
        after_cft.set_display_name("evaluate-cft")
        tuned = place(end_branch)(
            model=cft.outputs["uri"],
            evaluation=after_cft.outputs["uri"],
            regime=after_cft.outputs["regime"],
            branch=cft.outputs["branch"],
        )
    with dsl.Else("not-calibratable"):
        kept = place(end_branch)(
            model=model, evaluation=before.outputs["uri"], regime=before.outputs["regime"], branch="none"
        )
    first = {
        name: dsl.OneOf(tuned.outputs[name], kept.outputs[name])
        for name in ("model", "evaluation", "regime", "branch")
    }

    with dsl.If(first["regime"] == "non_calibratable", "non-calibratable"):
        rcft = place(em_ece_finetune, given)(model=model, data=data)
        after_rcft = place(evaluate, given)(model=rcft.outputs["uri"], data=data)
        after_rcft.set_display_name("evaluate-rcft")
        regularized = place(end_branch)(
            model=rcft.outputs["uri"],
            evaluation=after_rcft.outputs["uri"],
            regime=after_rcft.outputs["regime"],
            branch=rcft.outputs["branch"],
        )
    with dsl.Else("within-bounds"):
        passed = place(end_branch)(**first)
    return Repaired(
        before=before.outputs["uri"],
        after=dsl.OneOf(regularized.outputs["evaluation"], passed.outputs["evaluation"]),
        model=dsl.OneOf(regularized.outputs["model"], passed.outputs["model"]),
        branch=dsl.OneOf(regularized.outputs["branch"], passed.outputs["branch"]),
    )
