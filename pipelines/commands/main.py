"""The command `calib`: the library's commands, the demo, and the pipeline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calib_core.commands.champion import add_champion_commands
from calib_core.commands.library import Subparsers, add_commands, command, execute
from calib_core.errors import ConfigError
from calib_core.report.text import summary_text
from calib_core.runtime.processes import launched
from calib_core.settings.flags import Parser, add_flags
from calib_core.settings.parameters import Parameter, config_from, parameters_of
from calib_core.storage.uris import fetch
from calib_core.training.config import FinetuneConfig
from calib_core.version import __version__

DEFAULT_PIPELINE = "restore-calibration"
SCENARIOS = ("fresh", "memorised", "calibrated")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `calib` and return its exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    parser = Parser(
        prog="calib", description="Measure and restore the calibration of aligned language models."
    )
    parser.add_argument("--version", action="version", version=f"calib {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_demo(commands)
    try:
        _add_pipeline(commands, given)
        _add_register(commands, given)
    except ModuleNotFoundError as error:
        if error.name != "kfp":
            raise
        sys.stderr.write(
            f"error: `calib {given[0]}` needs KFP; install it with: pip install 'calib-core[pipelines]'\n"
        )
        return ConfigError.exit_code
    add_commands(commands)
    if given[:1] in (["cft"], ["rcft"]):
        _add_nodes(commands.choices[given[0]], given[0])
    add_champion_commands(commands)
    return execute(parser, given)


def _add_register(commands: Subparsers, given: Sequence[str]) -> None:
    """Add `calib register`; its flags, which import KFP, only if it is asked for."""
    text = "register a promoted model in Kubeflow's or Vertex AI's Model Registry"
    parser = command(commands, "register", text)
    if given[:1] != ["register"]:
        return
    from calib_components.register_model.registries import RegisterConfig, register  # noqa: PLC0415

    parser.add_argument("--summary", required=True, help="folder with the run's summary.json")
    parser.add_argument("--model", required=True, help="URI of the model")
    parser.add_argument("--number", required=True, type=int, help="number of the model's version")
    add_flags(parser, parameters_of(RegisterConfig))

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        config = config_from(RegisterConfig, vars(given))
        return {
            "entry": register(config, summary=fetch(given.summary), model=given.model, number=given.number)
        }

    parser.set_defaults(run=run)


def _add_demo(commands: Subparsers) -> None:
    parser = command(
        commands, "demo", "run the whole pipeline on a real model and questions that come with packages"
    )
    parser.add_argument("--scenario", choices=SCENARIOS, default="fresh", help="input model (default: fresh)")
    parser.add_argument("--out", type=Path, help="results (default: calib-demo/SCENARIO)")

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        from calib_pipelines.run.demo import run_demo  # noqa: PLC0415 - needs KFP

        return run_demo(given.scenario, given.out or Path("calib-demo") / given.scenario)

    parser.set_defaults(run=run, text=summary_text)


def _add_nodes(parser: argparse.ArgumentParser, method: str) -> None:
    """Let a fine-tuning command start a job on a cluster, as its component does."""
    try:
        from calib_components.nodes.job import JobConfig, Place  # noqa: PLC0415 - needs KFP
        from calib_components.nodes.nodes import finetune  # noqa: PLC0415
    except ModuleNotFoundError as error:
        if error.name != "kfp":
            raise
        parser.epilog = "Training on several machines needs KFP: pip install 'calib-core[kubeflow]'"
        return
    here = parser.get_default("run")
    trained = {one.name for one in parameters_of(FinetuneConfig)}
    add_flags(parser, [one for one in parameters_of(JobConfig) if one.name not in trained])

    def run(given: argparse.Namespace) -> Mapping[str, Any]:
        if given.nodes == 1 or launched():
            result: Mapping[str, Any] = here(given)
            return result
        places = {
            name: Place(path=str(value), uri=str(value))
            for name, value in (("model", given.model), ("data", given.data), ("adapter", given.out))
        }
        finetune(method, config_from(JobConfig, vars(given)), **places)
        return {"adapter": str(given.out), "nodes": given.nodes}

    parser.set_defaults(run=run)


def _add_pipeline(commands: Subparsers, given: Sequence[str]) -> None:
    """Add `calib pipeline`; its own subcommands, which import KFP, only if they are asked for."""
    text = "run a pipeline here, compile it, or submit and schedule it elsewhere"
    parser = commands.add_parser("pipeline", help=text, description=text[0].upper() + text[1:] + ".")
    if given[:1] != ["pipeline"]:
        return
    from calib_pipelines.commands.schedule import add_schedule  # noqa: PLC0415
    from calib_pipelines.commands.submit import add_submit  # noqa: PLC0415
    from calib_pipelines.compile import PIPELINES  # noqa: PLC0415 - needs KFP
    from calib_pipelines.packages.reading import parameter_flags  # noqa: PLC0415
    from calib_pipelines.run.local import RUNNABLE  # noqa: PLC0415
    from calib_pipelines.targets.compiling import add_compile  # noqa: PLC0415

    subcommands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    run = command(subcommands, "run", "run a compiled pipeline on this machine")
    run.add_argument("--out", required=True, help="folder for summary.json, report.html and the model")
    asked = PIPELINES.get(_asked_pipeline(given), PIPELINES[DEFAULT_PIPELINE])
    parameters = parameter_flags(asked.name, asked.component_spec.inputs)
    add_flags(run, parameters)
    run.set_defaults(run=lambda given: _run(given, parameters), text=summary_text)
    run.add_argument(
        "--pipeline",
        choices=RUNNABLE,
        default=DEFAULT_PIPELINE,
        help=f"which one; other flags are its parameters (default: {DEFAULT_PIPELINE})",
    )
    add_compile(subcommands)
    add_submit(subcommands, given[1:])
    add_schedule(subcommands, given[1:])


def _asked_pipeline(given: Sequence[str]) -> str:
    """The pipeline that `--pipeline` names, read first: the other flags depend on it."""
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--pipeline", default=DEFAULT_PIPELINE)
    return str(early.parse_known_args(given)[0].pipeline)


def _run(given: argparse.Namespace, parameters: Sequence[Parameter]) -> Mapping[str, Any]:
    from calib_pipelines.run.local import run_local  # noqa: PLC0415 - needs KFP

    values = {parameter.name: getattr(given, parameter.name) for parameter in parameters}
    return run_local(values, given.out, pipeline=given.pipeline)


if __name__ == "__main__":
    sys.exit(main())
