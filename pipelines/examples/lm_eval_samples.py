"""lm-eval's sample files, measured: no model, no GPU, and components loaded from their YAML alone.

`lm-eval run --tasks arc_easy --log_samples --output_path results` writes `results/<model>/samples_*.jsonl`;
give that file, or the folder with one run's files.
"""

from importlib.resources import files
from typing import NamedTuple

from kfp import dsl
from kfp.components import load_component_from_file
from kfp.dsl import HTML, Dataset

# In a checkout of the repository: components/<name>/component.yaml.
COMPONENTS = files("calib_components")
convert_predictions = load_component_from_file(str(COMPONENTS / "convert_predictions" / "component.yaml"))
measure = load_component_from_file(str(COMPONENTS / "measure" / "component.yaml"))


class Outputs(NamedTuple):
    """What a run of the pipeline leaves."""

    predictions: Dataset
    report: HTML
    conf_ece: float


@dsl.pipeline(name="lm-eval-samples")
def lm_eval_samples(samples: str) -> Outputs:
    """Turn lm-eval's sample files into a predictions table, and measure it.

    Args:
        samples: A sample file, or the folder with the files of one run: a bucket's URI, or a mounted path.
    """
    table = convert_predictions(source=samples).outputs["predictions"]
    measured = measure(predictions=table)
    return Outputs(
        predictions=table, report=measured.outputs["report"], conf_ece=measured.outputs["conf_ece"]
    )
