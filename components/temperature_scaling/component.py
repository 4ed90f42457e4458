"""Component `temperature_scaling`: a model with the one temperature that its evaluation found."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Model, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def temperature_scaling(  # noqa: D417 - outputs stand under Returns
    model: str,
    evaluation: str,
    scaled: Output[Model],
    after: Output[Dataset],
) -> NamedTuple("Outputs", uri=str, after_uri=str, branch=str):  # type: ignore[valid-type]
    """Divide a model's option logits by the one temperature that fits the calibration fold best.

    Args:
        model: Model or adapter that was evaluated: a hub id, a bucket's URI, or a path on a mounted volume.
        evaluation: URI of its evaluation: the output `uri` of `evaluate`.

    Returns:
        scaled: Model folder: the adapter with its new calibration.json, or that file alone, which names the
            base.
        after: Evaluation folder of the scaled model.
        uri: URI of the scaled model, so that branches of a pipeline can be merged on a string.
        after_uri: URI of its evaluation.
        branch: `temperature`, the name of the branch that this component is.
    """
    from pathlib import Path

    from calib_core.steps.task import reported_errors
    from calib_core.steps.temperature import give_temperature
    from calib_core.storage.uris import fetch

    with reported_errors():
        give_temperature(model, fetch(evaluation), Path(scaled.path), Path(after.path))
    scaled.metadata["model"] = model
    after.metadata["model"] = scaled.uri
    return (scaled.uri, after.uri, "temperature")
