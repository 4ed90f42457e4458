"""Component `fresh_data`: what is new in a stream of questions, and the champion to measure on it."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def fresh_data(  # noqa: D417 - outputs stand under Returns
    stream: str,
    champion: str,
    data: Output[Dataset],
    snapshot: Output[Artifact],
    model: str = "",
    trained_on: str = "",
    fit_fraction: float = 0.4,
    calibration_fraction: float = 0.3,
    max_fit: int = 0,
    max_calibration: int = 0,
    max_test: int = 0,
    preset: str = "auto",
    on_bad_row: str = "refuse",
) -> NamedTuple("Outputs", champion_model=str):  # type: ignore[valid-type]
    """Read the questions that are new in a stream since the champion was last measured, split into folds.

    Args:
        stream: Folder or bucket prefix with files of questions (Parquet, JSONL, CSV).
        champion: Folder or bucket prefix of champion.json.
        model: First champion, if the champion's folder has none yet: a hub id (`name` or `name@revision`), a
            bucket's URI, or a path on a mounted volume; ignored in later runs.
        trained_on: File, bucket URI or hub id of questions that the first champion was trained on; they never
            count as new.
        fit_fraction: Share of the questions for the fit fold, which is trained on.
        calibration_fraction: Share of the questions for the calibration fold; the rest is for test.
        max_fit: Maximum number of questions in the fit fold; 0 for no limit.
        max_calibration: Maximum number of questions in the calibration fold; 0 for no limit.
        max_test: Maximum number of questions in the test fold; 0 for no limit.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.

    Returns:
        data: Data folder: one Parquet file per fold, and data.json with counts and fingerprints.
        snapshot: How far the stream is read, the new questions, and the state that the run began from.
        champion_model: Path or URI of the champion.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import fresh as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        config = config_from(step.FreshConfig, arguments)
        result = step.fresh(
            config, stream=stream, champion=champion, data=Path(data.path), snapshot=Path(snapshot.path)
        )
    return (result["model"],)
