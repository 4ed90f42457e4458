"""Component `register_model`: a promoted model's entry in a model registry."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def register_model(
    summary: Input[Artifact],
    model: str,
    number: int,
    model_registry: str,
    model_name: str = "calibrated",
    serving_image: str = "",
) -> NamedTuple("Outputs", entry=str):  # type: ignore[valid-type]
    """Enter a promoted model with its figures in Kubeflow's or Vertex AI's Model Registry, once.

    Where the run promoted no model, or no registry is named, nothing is entered.

    Args:
        summary: Summary folder of `promote`, for the decision and the figures.
        model: URI of the model.
        number: Number of the model's version.
        model_registry: `https://HOST[:PORT]` of Kubeflow's Model Registry, or `vertex://PROJECT/REGION`.
        model_name: Name of the model in the registry.
        serving_image: Image that serves the model; Vertex AI's registry requires one.

    Returns:
        entry: Name of the entry in the registry; empty if there is none.
    """
    arguments = locals()
    from pathlib import Path

    from calib_components.register_model import registries
    from calib_core.steps.task import reported_errors

    with reported_errors():
        entry = registries.register_promoted(
            arguments, summary=Path(summary.path), model=model, number=number
        )
    return (entry,)
