"""The part that pipelines share: evaluate a model, and repair it by the branch that its bounds choose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl

from calib_components import cft_finetune, em_ece_finetune, evaluate, temperature_scaling
from calib_components.image import IMAGE
from calib_pipelines.definitions.platforms import Platform


class Repaired(NamedTuple):
    """Channels that later tasks go on with.

    Attributes:
        before: URI of the input model's evaluation.
        after: URI of the output model's evaluation, or the same again.
        model: URI of the output model, or of the input model.
        branch: `none`, `temperature`, `cft` or `rcft`.
    """

    before: Any
    after: Any
    model: Any
    branch: Any


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def end_branch(
    model: str,
    evaluation: str = "",
    branch: str = "none",
    advice: str = "none",
) -> NamedTuple("Outputs", model=str, evaluation=str, branch=str, advice=str):  # type: ignore[valid-type]
    """Hand on what a branch of a condition came to, as its last task.

    KFP's backend takes a merged value from a branch that counts as complete, and only a task that really ran
    makes it so. So this one is never cached, and takes something from each task that ends its branch.

    Args:
        model: URI of the model.
        evaluation: URI of its evaluation.
        branch: Branch that was taken so far.
        advice: Branch that the evaluation speaks for.
    """
    return (model, evaluation, branch, advice)


def repair(place: Platform, model: Any, data: Any, given: Mapping[str, Any]) -> Repaired:
    """Add the tasks that evaluate a model, fine-tune it where it isn't calibrated, and evaluate the result.

    Args:
        place: Where they run.
        model: The model's URI.
        data: Data folder.
        given: The pipeline's parameters.
    """
    before = place(evaluate, given)(model=model, data=data, require_regime=True)
    before.set_display_name("evaluate-before")
    # What the first evaluation decided holds for all: the same form is trained in and measured in.
    form = before.outputs["prompt_form"]

    # Two conditions, one after the other: the second takes models that RCFT was advised for from the start,
    # and models that CFT has driven there. All others pass it untouched.
    with dsl.If(before.outputs["branch"] == "temperature", "temperature"):
        scaled = place(temperature_scaling, given)(model=model, evaluation=before.outputs["uri"])
        divided = place(end_branch)(
            model=scaled.outputs["uri"],
            evaluation=scaled.outputs["after_uri"],
            branch=scaled.outputs["branch"],
        )
    with dsl.Elif(before.outputs["branch"] == "cft", "cft"):
        cft = place(cft_finetune, given)(model=model, data=data, prompt_form=form)
        after_cft = place(evaluate, given)(
            model=cft.outputs["uri"], data=data, prompt_form=form, require_regime=True
        )
        after_cft.set_display_name("evaluate-cft")
        tuned = place(end_branch)(
            model=cft.outputs["uri"],
            evaluation=after_cft.outputs["uri"],
            branch=cft.outputs["branch"],
            advice=after_cft.outputs["branch"],
        )
    with dsl.Else("none-or-rcft"):
        kept = place(end_branch)(
            model=model, evaluation=before.outputs["uri"], advice=before.outputs["branch"]
        )
    first = {
        name: dsl.OneOf(divided.outputs[name], tuned.outputs[name], kept.outputs[name])
        for name in ("model", "evaluation", "branch", "advice")
    }

    with dsl.If(first["advice"] == "rcft", "rcft"):
        rcft = place(em_ece_finetune, given)(model=model, data=data, prompt_form=form)
        after_rcft = place(evaluate, given)(
            model=rcft.outputs["uri"], data=data, prompt_form=form, require_regime=True
        )
        after_rcft.set_display_name("evaluate-rcft")
        regularized = place(end_branch)(
            model=rcft.outputs["uri"],
            evaluation=after_rcft.outputs["uri"],
            branch=rcft.outputs["branch"],
        )
    with dsl.Else("nothing-more"):
        passed = place(end_branch)(**first)
    return Repaired(
        before=before.outputs["uri"],
        after=dsl.OneOf(regularized.outputs["evaluation"], passed.outputs["evaluation"]),
        model=dsl.OneOf(regularized.outputs["model"], passed.outputs["model"]),
        branch=dsl.OneOf(regularized.outputs["branch"], passed.outputs["branch"]),
    )
