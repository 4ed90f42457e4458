"""The task that ends a run on a cluster: it records how the run ended, whether it succeeded or not."""

import dataclasses
import inspect

from kfp import dsl
from kfp.dsl import Artifact, Output, PipelineTaskFinalStatus
from kfp.dsl.base_component import BaseComponent
from kfp.dsl.python_component import PythonComponent
from kfp.dsl.structures import InputSpec

from calib_components.image import IMAGE

TYPES = {str: "String", int: "Integer", float: "Float", bool: "Boolean"}


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def record_end(  # noqa: D417 - outputs stand under Returns
    status: PipelineTaskFinalStatus,
    record: Output[Artifact],
    pipeline: str,
    folder: str = "",
) -> None:
    """Record how a run ended: state, message and the run's parameters, as JSON.

    The run's parameters are further inputs, each under its own name, which differ by pipeline.

    Args:
        status: What KFP says of the tasks under the exit handler.
        pipeline: The pipeline's name.
        folder: Folder that gets a copy of the record; none if it is empty.

    Returns:
        record: The record, a JSON file.
    """
    import json  # noqa: PLC0415
    import sys  # noqa: PLC0415
    from pathlib import Path  # noqa: PLC0415

    from calib_core.steps import record as step  # noqa: PLC0415
    from calib_core.steps.task import reported_errors  # noqa: PLC0415

    inputs = json.loads(sys.argv[sys.argv.index("--executor_input") + 1])["inputs"]["parameterValues"]
    with reported_errors():
        step.record(
            step.RunEnd(
                pipeline=pipeline,
                run=status.pipeline_job_resource_name or "",
                state=status.state or "",
                error_code=status.error_code,
                error_message=status.error_message or "",
                parameters={k: v for k, v in inputs.items() if k not in ("status", "pipeline", "folder")},
            ),
            Path(record.path),
            folder=folder,
        )


def recorder_of(signature: inspect.Signature) -> BaseComponent:
    """`record_end` for a pipeline of this signature: it has the pipeline's parameters as inputs too.

    One input for each, since the backend puts values into a text that holds several of them as they are: a
    quotation mark or a new line in one would break the text.

    Raises:
        ValueError: a parameter is named like an input that `record_end` has itself.
    """
    spec = record_end.component_spec
    inputs = {name: InputSpec(TYPES[given.annotation]) for name, given in signature.parameters.items()}
    if taken := inputs.keys() & spec.inputs.keys():
        raise ValueError(f"record-end has inputs named {', '.join(sorted(taken))}; rename the parameters")
    return PythonComponent(
        component_spec=dataclasses.replace(spec, inputs={**spec.inputs, **inputs}),
        python_func=record_end.python_func,
    )
