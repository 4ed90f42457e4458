"""Component `convert_predictions`: another program's predictions as a predictions table."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def convert_predictions(  # noqa: D417 - outputs stand under Returns
    source: str,
    predictions: Output[Dataset],
    questions: str = "",
    preset: str = "auto",
) -> None:
    """Turn lm-eval's sample files, or what Vertex AI's batch prediction wrote, into a predictions table.

    Args:
        source: The file, or the folder with the files of one run: a bucket's URI, or a path on a mounted
            volume.
        questions: File, bucket URI or hub id of the questions, if the predictions leave out answers or
            options.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.

    Returns:
        predictions: Predictions table (Parquet).
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import convert as step
    from calib_core.steps.task import reported_errors
    from calib_core.storage.uris import fetch

    with reported_errors():
        config = config_from(step.ConvertConfig, arguments)
        step.convert_predictions(config, fetch(source), Path(predictions.path))
    predictions.metadata["source"] = source
