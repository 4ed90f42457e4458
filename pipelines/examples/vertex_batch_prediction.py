"""What Vertex AI's batch prediction wrote, measured, and the regime named: the model itself is never loaded.

Two jobs of one model: over questions that it is going to be fine-tuned on, and over questions that it never
saw. Each line of their output holds `instance` and `prediction`, and the serving container returned the
options' log-probabilities.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML

from calib_components import convert_predictions, measure


class Outputs(NamedTuple):
    """What a run of the pipeline leaves."""

    report: HTML
    regime: str
    conf_ece: float


@dsl.pipeline(name="vertex-batch-prediction")
def vertex_batch_prediction(heldout: str, fit: str, questions: str = "", target_ece: float = 0.08) -> Outputs:
    """Measure a model by the output of two batch prediction jobs, and name its regime.

    Args:
        heldout: URI of the output folder (`gcsOutputDirectory`) for questions that the model never saw.
        fit: URI of the output folder for the questions that it is going to be fine-tuned on.
        questions: File with the questions of both, where the instances don't hold their answers.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
    """
    tables = {}
    for name, uri in (("heldout", heldout), ("fit", fit)):
        converted = convert_predictions(source=uri, questions=questions)
        converted.set_display_name(f"convert-{name}")
        tables[name] = converted.outputs["predictions"]
    measured = measure(predictions=tables["heldout"], fit=tables["fit"], target_ece=target_ece)
    return Outputs(
        report=measured.outputs["report"],
        regime=measured.outputs["regime"],
        conf_ece=measured.outputs["conf_ece"],
    )
