"""The part that pipelines share: evaluate a model, and repair it by the branch that its bounds choose."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from kfp import dsl
from kfp.dsl import Dataset

from calib_components import cft_finetune, em_ece_finetune, evaluate
from calib_components.image import IMAGE
from calib_pipelines.definitions.placement import Placement


class Repaired(NamedTuple):
    """Channels that later tasks go on with.

    Attributes:
        before: Evaluation folder of the input model.
        after: Evaluation folder of the output model, or the same again.
        model: URI of the output model, or of the input model.
        branch: `none`, `cft` or `rcft`.
    """

    before: Any
    after: Any
    model: Any
    branch: Any


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def keep(
    model: str,
    evaluation: str = "",
    regime: str = "",
    branch: str = "none",
) -> NamedTuple("Outputs", model=str, evaluation=str, regime=str, branch=str):  # type: ignore[valid-type]
    """Hand on what there is: the branch of a condition in which nothing is done.

    Args:
        model: URI of the model.
        evaluation: URI of its evaluation.
        regime: Regime that the evaluation found.
        branch: Branch that was taken so far.
    """
    return (model, evaluation, regime, branch)


def repair(
    place: Placement,
    model: Any,
    model_uri: Any,
    data: Any,
    *,
    measuring: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Repaired:
    """Add the tasks that evaluate a model, fine-tune it where it isn't calibrated, and evaluate the result.

    Args:
        place: Where they run.
        model: The model's artifact.
        model_uri: Its URI.
        data: Data folder.
        measuring: Parameters of the evaluations.
        training: Parameters of the fine-tuning.
    """
    before = place(evaluate)(model=model, data=data, **measuring)
    before.set_display_name("evaluate-before")

    # Two conditions, one after the other: the second takes models that were non-calibratable from the start,
    # and models that fine-tuning by the first has driven there. A calibrated model passes both untouched.
    with dsl.If(before.outputs["regime"] == "calibratable", "calibratable"):
        cft = place(cft_finetune)(model=model, data=data, **training)
        after_cft = place(evaluate)(model=cft.outputs["adapter"], data=data, **measuring)
        after_cft.set_display_name("evaluate-cft")
    with dsl.Else("not-calibratable"):
        kept = place(keep)(
            model=model_uri, evaluation=before.outputs["uri"], regime=before.outputs["regime"], branch="none"
        )
    first_model = dsl.OneOf(cft.outputs["uri"], kept.outputs["model"])
    first_evaluation = dsl.OneOf(after_cft.outputs["uri"], kept.outputs["evaluation"])
    first_regime = dsl.OneOf(after_cft.outputs["regime"], kept.outputs["regime"])
    first_branch = dsl.OneOf(cft.outputs["branch"], kept.outputs["branch"])

    with dsl.If(first_regime == "non_calibratable", "non-calibratable"):
        rcft = place(em_ece_finetune)(model=model, data=data, **training)
        after_rcft = place(evaluate)(model=rcft.outputs["adapter"], data=data, **measuring)
        after_rcft.set_display_name("evaluate-rcft")
    with dsl.Else("within-bounds"):
        passed = place(keep)(
            model=first_model, evaluation=first_evaluation, regime=first_regime, branch=first_branch
        )
    after = dsl.importer(
        artifact_uri=dsl.OneOf(after_rcft.outputs["uri"], passed.outputs["evaluation"]),
        artifact_class=Dataset,
        reimport=False,
    )
    after.set_display_name("last-evaluation")
    return Repaired(
        before=before.outputs["evaluation"],
        after=after.output,
        model=dsl.OneOf(rcft.outputs["uri"], passed.outputs["model"]),
        branch=dsl.OneOf(rcft.outputs["branch"], passed.outputs["branch"]),
    )
