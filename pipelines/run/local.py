"""Run a compiled pipeline on this machine through `kfp.local`: a process per task, or a container."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from kfp import local
from kfp.components import load_component_from_file
from kfp.dsl.base_component import BaseComponent

import calib_pipelines
from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import without_secrets
from calib_core.steps.summary_record import FILE as SUMMARY
from calib_core.steps.summary_record import SummaryRecord, read_summary, write_summary
from calib_core.steps.task import ERROR_FILE_VARIABLE
from calib_core.storage.files import check_output_folder, read_json, whole_folder
from calib_core.storage.leftovers import scratch_folder
from calib_core.storage.uris import is_remote, join, published
from calib_pipelines.packages.reading import check_steps

RUNNABLE = ("restore-calibration", "recalibrate")
"""Pipelines that leave a summary, a report and a model."""

LOG_TAIL_LINES = 15

_FRAME = "    Found image "  # what kfp's DockerRunner says among a task's own lines

_QUIET = {"PYTHONWARNINGS": "ignore::FutureWarning"}  # what libraries will change is for developers to read

_KEEP_MEMORY = {  # glibc gives each tensor's memory back and takes it again: a fifth of the time on two cores
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


def run_local(
    parameters: Mapping[str, Any],
    out: str | Path,
    *,
    pipeline: str = "restore-calibration",
    runner: local.DockerRunner | None = None,
) -> SummaryRecord:
    """Run a compiled pipeline here, and gather its results in one folder.

    Args:
        parameters: the pipeline's parameters by name; those left out have their defaults.
        out: gets `summary.json`, `report.html`, where the output model was promoted `model` (the adapter),
            `run.log` with all that was printed, and `run` with what every task left. A bucket's URI gets them
            when the run is over.
        pipeline: name of the pipeline, one of `RUNNABLE`.
        runner: how to run each task in a container of the image that the pipeline names; left out, tasks are
            processes in this environment. Containers see of this machine only `out/run`, which their user has
            to be able to write to, and what the runner mounts: paths in `parameters` must be the same there.

    Returns:
        The summary, as in `out/summary.json`; its `report` and `model` are paths below `out`.

    Raises:
        ConfigError: a parameter is missing, unknown or not usable.
        CalibError: a task stopped; message and exit code are the task's own.
    """
    package = load_component_from_file(str(Path(calib_pipelines.__file__).with_name(f"{pipeline}.yaml")))
    _check(pipeline, package.component_spec.inputs, parameters)
    if is_remote(out):
        with published(out) as folder:
            summary = run_local(parameters, folder, pipeline=pipeline, runner=runner)
            summary["report"] = _moved(summary["report"], folder, out)
            summary["model"] = _moved(summary["model"], folder, out)
            write_summary(folder, summary)
        return summary
    out = Path(out)
    check_output_folder(out / "model", "calibration.json", inputs=[str(parameters.get("model", ""))])
    out = out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    for name in (SUMMARY, "report.html"):  # an earlier run's must not be taken for this one's
        (out / name).unlink(missing_ok=True)
    started_s = time.monotonic()
    results = _run_package(package, parameters, out, runner)
    return _gather(results, out, seconds=time.monotonic() - started_s)


def _run_package(
    package: BaseComponent, parameters: Mapping[str, Any], out: Path, runner: local.DockerRunner | None
) -> Path:
    """Run all tasks, with their files in `out/run` and their words in `out/run.log`; the summary's folder.

    Raises:
        CalibError: a task stopped.
    """
    with (
        scratch_folder() as scratch,
        (out / "run.log").open("w", encoding="utf-8") as log,
    ):
        error_file = out / "run" / "error.json"  # in there it is one file to this process and to a container
        error_file.parent.mkdir(exist_ok=True)
        error_file.unlink(missing_ok=True)
        environment = {**_QUIET, **_KEEP_MEMORY, ERROR_FILE_VARIABLE: str(error_file)}
        local.init(
            _with_environment(runner, environment) if runner else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(out / "run"),
            workspace_root=f"{scratch}/workspace",
        )
        screen = _Screen(log, _task_names(package.pipeline_spec))
        try:
            with _environment(environment), contextlib.redirect_stdout(screen):
                outputs = package(**parameters).outputs
        # All that kfp.local says of a task that failed. A container that was gone before it asked how it had
        # ended it takes for one that succeeded, and then misses its outputs.
        except (RuntimeError, ValueError):
            error = _task_error(error_file, out / "run.log")
            log.write(f"error: {error}\n")
            raise error from None
    return Path(outputs["summary"].path)


def _check(pipeline: str, inputs: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuse before the first task what a later one would refuse."""
    wrong = [f"{name}: no such parameter" for name in parameters if name not in inputs]
    wrong += [
        f"{name}: a value is needed"
        for name, given in inputs.items()
        if not given.optional and not parameters.get(name)
    ]
    if wrong:
        raise ConfigError(f"pipeline {pipeline}: {'; '.join(wrong)}; it takes {', '.join(inputs)}")
    check_steps(pipeline, parameters)


def _moved(place: str, folder: Path, out: str | Path) -> str:
    """A path below a folder as it is called below the place that gets it; other places stay."""
    return join(out, str(Path(place).relative_to(folder))) if Path(place).is_relative_to(folder) else place


def _gather(results: Path, out: Path, *, seconds: float) -> SummaryRecord:
    """Put a finished run's results where a user looks for them, the summary last."""
    summary = read_summary(results)
    shutil.rmtree(out / "model", ignore_errors=True)
    if summary["promoted"]:
        with whole_folder(out / "model") as folder:
            shutil.copytree(summary["model"], folder, dirs_exist_ok=True)
        summary["model"] = str(out / "model")
    shutil.copyfile(results / "report.html", out / "report.html")
    summary["report"] = str(out / "report.html")
    summary["timing"]["total"] = round(seconds, 1)
    write_summary(out, summary)
    return summary


def _task_error(error_file: Path, log: Path) -> CalibError:
    """The error of the task that stopped the run: its own message where it was a user's mistake."""
    if error_file.is_file():
        report = read_json(error_file)
        error = CalibError(report["message"])
        error.exit_code = report["exit_code"]
        return error
    tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-LOG_TAIL_LINES:])
    return CalibError(f"a task of the pipeline failed; the whole log is in {log}, it ends with:\n{tail}")


def _with_environment(runner: local.DockerRunner, variables: Mapping[str, str]) -> local.DockerRunner:
    """The runner with variables for its containers, which inherit nothing; its own take precedence."""
    changed = copy.copy(runner)
    own = runner.container_run_args.get("environment", {})
    changed.container_run_args = {**runner.container_run_args, "environment": {**variables, **own}}
    return changed


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the tasks' processes, which inherit the environment."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        with warnings.catch_warnings():
            # An image's name without "python" in it, and names for a dashboard, are no reasons to warn here.
            warnings.filterwarnings("ignore", message="You may be attemping", category=RuntimeWarning)
            warnings.filterwarnings("ignore", message=".*'display_name'.*", category=UserWarning)
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _task_names(spec: Any) -> dict[str, str]:
    """Display names of the tasks that do any work, by the names that kfp.local uses."""
    dags = [spec.root.dag, *(component.dag for component in spec.components.values())]
    tasks = [task for dag in dags for task in dag.tasks.values()]
    return {
        task.component_ref.name.removeprefix("comp-"): task.task_info.name
        for task in tasks
        if not task.component_ref.name.startswith(("comp-end-branch", "comp-condition", "comp-for-loop"))
    }


class _Screen(io.TextIOBase):
    """Writes all that kfp.local prints into the log, and what tasks themselves say to standard error.

    kfp.local frames every task's output: "Executing task", "Streamed logs:", the task's lines indented by
    four, "finished with status". Within it the KFP executor prints its input as JSON.
    """

    def __init__(self, log: TextIO, names: Mapping[str, str]) -> None:
        self._log, self._names = log, names
        self._line = ""
        self._in_task = self._in_json = False

    def write(self, text: str) -> int:
        self._line += text
        *lines, self._line = self._line.split("\n")
        for line in lines:
            plain = re.sub(r"\x1b\[\d+m", "", line)
            self._log.write(without_secrets(plain) + "\n")
            self._log.flush()
            self._show(plain)
        return len(text)

    def _show(self, line: str) -> None:
        if started := re.search(r" - INFO - Executing task '([\w-]+)'", line):
            if name := self._names.get(started.group(1)):
                say(f"[{name}]")
        elif line.endswith(" - INFO - Streamed logs:"):
            self._in_task = True
        elif " finished with status " in line:
            self._in_task = False
        elif "Got executor_input:" in line:
            self._in_json = True
        elif self._in_json:
            self._in_json = line.rstrip() != "    }"
        elif self._in_task and line.strip() and not line.startswith(_FRAME) and "[KFP Executor " not in line:
            say(line.removeprefix("    "))
