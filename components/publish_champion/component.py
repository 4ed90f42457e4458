"""Component `publish_champion`: what a run decided becomes the state of the champion's folder."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Artifact, Input

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def publish_champion(
    snapshot: Input[Artifact],
    summary: Input[Artifact],
    model: str,
    champion: str,
    run_name: str = "",
) -> NamedTuple("Outputs", champion_model=str, number=int):  # type: ignore[valid-type]
    """Publish a run: its model where it was promoted, its snapshot, report and figures; only one run can win.

    Args:
        snapshot: Snapshot of `fresh_data`.
        summary: Summary folder of `promote`.
        model: URI of the run's output model, or of the champion again; read if it was promoted.
        champion: Folder or bucket prefix of champion.json.
        run_name: Name of the run, for the champion's history.

    Returns:
        champion_model: Path or URI of the model in use from now on.
        number: Number of the last change of champion.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import publish as step
    from calib_core.steps.task import reported_errors

    with reported_errors():
        result = step.publish_champion(
            config_from(step.PublishConfig, arguments),
            champion=champion,
            snapshot=Path(snapshot.path),
            summary=Path(summary.path),
            model=model,
        )
    return (result["model"], result["number"])
