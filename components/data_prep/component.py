"""Component `data_prep`: questions and preference pairs in, folds out."""

from kfp import dsl
from kfp.dsl import Dataset, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def data_prep(  # noqa: D417 - outputs stand under Returns
    data: Output[Dataset],
    questions: str = "",
    fit: str = "",
    calibration: str = "",
    test: str = "",
    out_of_domain: str = "",
    preferences: str = "",
    data_snapshot: str = "",
    preference_test_fraction: float = 0.2,
    fit_fraction: float = 0.4,
    calibration_fraction: float = 0.3,
    max_fit: int = 0,
    max_calibration: int = 0,
    max_test: int = 0,
    preset: str = "auto",
    on_bad_row: str = "refuse",
) -> None:
    """Check questions and preference pairs, and split them into folds that share no question.

    Args:
        questions: File, bucket URI or hub id of questions that are to be split into the three folds.
        fit: File, bucket URI or hub id of questions to train on; in place of `questions`, with `calibration`
            and `test`.
        calibration: File, bucket URI or hub id of questions that steer training and are never trained on.
        test: File, bucket URI or hub id of questions for the gate and the report.
        out_of_domain: File, bucket URI or hub id of questions from another field, for the report only.
        preferences: File, bucket URI or hub id of preference pairs.
        data_snapshot: Label for the state of the files, such as a date or a version; with a new one KFP reads
            them again instead of reusing a cached result.
        preference_test_fraction: Share of the preference prompts that is held out for the win rate.
        fit_fraction: Share of the questions for the fit fold, which is trained on.
        calibration_fraction: Share of the questions for the calibration fold; the rest is for test.
        max_fit: Maximum number of questions in the fit fold; 0 for no limit.
        max_calibration: Maximum number of questions in the calibration fold; 0 for no limit.
        max_test: Maximum number of questions in the test fold; 0 for no limit.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.

    Returns:
        data: Data folder: one Parquet file per fold, and data.json with counts and fingerprints.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import prepare as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        config = config_from(step.PrepareConfig, arguments)
        step.prepare(config, Path(data.path))
