"""The task that ends a run on a cluster: it records how the run ended, whether it succeeded or not."""

from kfp import dsl
from kfp.dsl import Artifact, Output, PipelineTaskFinalStatus

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record_end(  # noqa: D417 - outputs stand under Returns
    status: PipelineTaskFinalStatus,
    record: Output[Artifact],
    pipeline: str,
    parameters: str,
    folder: str = "",
) -> None:
    """Record how a run ended: state, message and parameters, as JSON.

    Args:
        status: What KFP says of the tasks under the exit handler.
        pipeline: The pipeline's name.
        parameters: Its parameters, one `name=value` a line.
        folder: Folder that gets a copy of the record; none where it is empty.

    Returns:
        record: The record, a JSON file.
    """
    from pathlib import Path  # noqa: PLC0415

    from calib_core.steps import record as step  # noqa: PLC0415
    from calib_core.steps.task import reported_errors  # noqa: PLC0415

    with reported_errors():
        step.record(
            step.RunEnd(
                pipeline=pipeline,
                run=status.pipeline_job_resource_name or "",
                state=status.state or "",
                error_code=status.error_code,
                error_message=status.error_message or "",
                parameters=parameters,
            ),
            Path(record.path),
            folder=folder,
        )
