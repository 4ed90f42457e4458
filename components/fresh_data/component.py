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
    preset: str = "auto",
    on_bad_row: str = "refuse",
    fit_fraction: float = 0.4,
    calibration_fraction: float = 0.3,
    max_fit: int = 0,
    max_calibration: int = 0,
    max_test: int = 0,
) -> NamedTuple("Outputs", champion_model=str):  # type: ignore[valid-type]
    """Read the questions that are new in a stream since the champion was last measured, split into folds.

    Args:
        stream: Folder or bucket prefix with files of questions (Parquet, JSONL, CSV).
        champion: Folder or bucket prefix of champion.json.
        model: First champion, where the champion's folder has none yet; not looked at later.
        trained_on: File, gs:// URI or hub id of questions that the first champion was trained on; their texts
            never count as new.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.
        fit_fraction: Share of the questions for the fit fold; the same in every run.
        calibration_fraction: Share of the questions for the calibration fold; the rest is for test.
        max_fit: Most questions of the fit fold; 0 for no limit.
        max_calibration: Most questions of the calibration fold; 0 for no limit.
        max_test: Most questions of the test fold; 0 for no limit.

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
