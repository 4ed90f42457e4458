"""The library's commands: every step of a pipeline, and what can be said of tables without a model.

`calib_pipelines.commands.main` adds the commands that need KFP and holds the entry point `calib`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

from calib_core.decisions.bounds import regime_test
from calib_core.errors import CalibError, ConfigError
from calib_core.metrics.summary import measure
from calib_core.predictions.files import read_predictions
from calib_core.report import write_report
from calib_core.report.text import (
    evaluation_text,
    figures_table,
    measurement_text,
    regime_text,
    report_text,
    result_text,
    summary_text,
)
from calib_core.runtime.interrupts import Stopped
from calib_core.runtime.messages import quiet_data, shown_message
from calib_core.runtime.progress import quiet_libraries
from calib_core.runtime.secrets import shown, without_secrets
from calib_core.settings.flags import Parser, add_flags
from calib_core.settings.groups import Measuring, RegimeTest
from calib_core.settings.parameters import config_from, parameters_of
from calib_core.steps.align import align
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.convert import ConvertConfig, convert_predictions
from calib_core.steps.evaluate import EvaluateConfig, evaluate
from calib_core.steps.finetune import cft, rcft
from calib_core.steps.measure import MeasureConfig, measure_table
from calib_core.steps.merge import MergeConfig, merge
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.promote import BRANCHES, PromoteConfig, promote
from calib_core.steps.shards import (
    ScoreConfig,
    ShardConfig,
    merge_predictions,
    score_shard,
    shard_questions,
)
from calib_core.steps.temperature import give_temperature
from calib_core.storage.uris import fetch, join, published
from calib_core.training.config import AlignConfig, FinetuneConfig

Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"  # argparse has no public name for it
Result = Mapping[str, Any]

WRONG_PATH = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
"""What the file system says of a path that the user should have given otherwise."""


def add_commands(commands: Subparsers) -> None:
    """Add the library's commands to a parser."""
    _add_prepare(commands)
    adapter, measured = "adapter folder to write", "evaluation folder to write"
    _add_step(commands, "align", align, AlignConfig, "align a model with preference pairs by DPO", adapter)
    _add_step(commands, "evaluate", evaluate, EvaluateConfig, "score and measure a model", measured)
    _add_step(commands, "cft", cft, FinetuneConfig, "fine-tune a calibratable model on answers", adapter)
    _add_step(commands, "rcft", rcft, FinetuneConfig, "fine-tune a non-calibratable model, EM-ECE", adapter)
    _add_temperature(commands)
    _add_merge(commands)
    _add_promote(commands)
    _add_calibrate(commands)
    _add_metrics(commands)
    _add_regime(commands)
    _add_report(commands)
    _add_measure(commands)
    _add_convert(commands)
    _add_shards(commands)


def command(commands: Subparsers, name: str, text: str) -> Parser:
    """A subcommand's parser, with the options `--json` and `--quiet-data` that all have."""
    parser: Parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--quiet-data", action="store_true", help="leave values of the data out of error messages"
    )
    parser.set_defaults(parser=parser, text=result_text, exit_code=lambda result: 0)
    return parser


def execute(parser: Parser, arguments: Sequence[str] | None) -> int:
    """Run the command that `arguments` name, print its result, and return the exit code."""
    given = parser.parse_args(arguments)
    with quiet_data(given.quiet_data):
        return _run(given)


def _run(given: argparse.Namespace) -> int:
    quiet_libraries()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # whatever a library prints is not the result
            result: Result = given.run(given)
    except CalibError as error:
        sys.stderr.write(f"error: {shown_message(given.parser.as_typed(str(error)))}\n")
        return error.exit_code
    except OSError as error:  # the disk is full, say, or a path leads where nothing can be written
        wrong_path = isinstance(error, WRONG_PATH)
        place = error.filename2 or error.filename or "file system"
        advice = "give another path" if wrong_path else "fix this, and run the command again"
        sys.stderr.write(f"error: {shown_message(f'{place}: {error.strerror or error}; {advice}')}\n")
        return ConfigError.exit_code if wrong_path else CalibError.exit_code
    except Stopped as stop:
        sys.stderr.write(f"{stop}\n")
        return stop.exit_code
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130
    text = (
        json.dumps(shown(result), ensure_ascii=False, allow_nan=False)
        if given.json
        else without_secrets(given.text(result))
    )
    sys.stdout.write(text + "\n")
    return int(given.exit_code(result))


def _add_step(
    commands: Subparsers, name: str, step: Callable[..., Result], config_class: type, text: str, out: str
) -> None:
    """A command of a step that takes a model and a data folder."""
    parser = command(commands, name, text)
    _add_model_and_data(parser, out)
    add_flags(parser, parameters_of(config_class))

    def run(given: argparse.Namespace) -> Result:
        config: Any = config_from(config_class, vars(given))
        with published(given.out) as path:
            return step(config, given.model, fetch(given.data), path)

    parser.set_defaults(run=run, text=evaluation_text if name == "evaluate" else result_text)


def _add_model_and_data(parser: argparse.ArgumentParser, out: str) -> None:
    model = "model folder (safetensors) or adapter folder, by path or gs:// URI, or hub id"
    parser.add_argument("--model", required=True, help=model)
    parser.add_argument("--data", required=True, help="data folder that `calib prepare` wrote")
    parser.add_argument("--out", required=True, help=out)


def _add_prepare(commands: Subparsers) -> None:
    parser = command(commands, "prepare", "check questions and preference pairs, and split them into folds")
    parser.add_argument("--out", required=True, help="data folder to write")
    add_flags(parser, parameters_of(PrepareConfig))

    def run(given: argparse.Namespace) -> Result:
        config = config_from(PrepareConfig, vars(given))
        with published(given.out) as out:
            return prepare(config, out)

    parser.set_defaults(run=run)


def _add_temperature(commands: Subparsers) -> None:
    parser = command(commands, "temperature", "give a model the temperature that its evaluation found")
    parser.add_argument("--model", required=True, help="the model that was evaluated")
    parser.add_argument("--evaluation", required=True, help="evaluation folder that `calib evaluate` wrote")
    parser.add_argument("--out", required=True, help="model folder to write, for `evaluate` and `promote`")
    parser.add_argument("--after", required=True, help="evaluation folder to write, for `promote`")

    def run(given: argparse.Namespace) -> Result:
        with published(given.out) as out, published(given.after) as after:
            return give_temperature(given.model, fetch(given.evaluation), out, after)

    parser.set_defaults(run=run)


def _add_merge(commands: Subparsers) -> None:
    parser = command(
        commands, "merge", "write an adapter and its base as one model, its temperature included"
    )
    parser.add_argument("--model", required=True, help="adapter folder, or what `calib temperature` wrote")
    parser.add_argument("--out", required=True, help="model folder to write")
    add_flags(parser, parameters_of(MergeConfig))

    def run(given: argparse.Namespace) -> Result:
        with published(given.out) as out:
            return merge(config_from(MergeConfig, vars(given)), given.model, out)

    parser.set_defaults(run=run)


def _add_promote(commands: Subparsers) -> None:
    parser = command(commands, "promote", "decide between a model and its successor, and write the report")
    parser.add_argument("--before", required=True, help="evaluation folder of the input model")
    parser.add_argument("--after", required=True, help="evaluation folder of the output model")
    parser.add_argument("--model-before", required=True, help="path or URI of the input model")
    parser.add_argument("--model-after", required=True, help="path or URI of the output model")
    parser.add_argument("--branch", required=True, choices=BRANCHES, help="branch that was taken")
    parser.add_argument("--champion", default="", help="champion's folder, for its figures over time")
    parser.add_argument("--out", required=True, help="folder for summary.json and report.html")
    add_flags(parser, parameters_of(PromoteConfig))

    def run(given: argparse.Namespace) -> Result:
        config = config_from(PromoteConfig, vars(given))
        with published(given.out) as out:
            return promote(
                config,
                before=fetch(given.before),
                after=fetch(given.after),
                model_before=given.model_before,
                model_after=given.model_after,
                branch=given.branch,
                out=out,
                report=join(given.out, "report.html"),
                champion=given.champion,
            )

    parser.set_defaults(run=run, text=summary_text)


def _add_calibrate(commands: Subparsers) -> None:
    parser = command(
        commands, "calibrate", "evaluate, branch, fine-tune, evaluate and promote in one process"
    )
    _add_model_and_data(parser, "folder for summary.json, report.html, evaluations and the adapter")
    add_flags(parser, parameters_of(CalibrateConfig))

    def run(given: argparse.Namespace) -> Result:
        config = config_from(CalibrateConfig, vars(given))
        with published(given.out) as out:
            return calibrate(
                config,
                model=given.model,
                data=fetch(given.data),
                out=out,
                adapter=out / "model",
                adapter_uri=join(given.out, "model"),
                report=join(given.out, "report.html"),
            )

    parser.set_defaults(run=run, text=summary_text)


def _add_metrics(commands: Subparsers) -> None:
    parser = command(commands, "metrics", "measure a predictions table: every figure, no model needed")
    parser.add_argument("table", help="predictions table (.parquet or .jsonl)")
    flags = parameters_of(Measuring)
    add_flags(parser, flags)

    def run(given: argparse.Namespace) -> Result:
        options = {flag.name: getattr(given, flag.name) for flag in flags}
        return measure(read_predictions(given.table), **options).to_dict()

    parser.set_defaults(run=run, text=lambda result: figures_table({f"n = {result['n']}": result}))


def _add_regime(commands: Subparsers) -> None:
    parser = command(commands, "regime", "find a model's regime from two of its predictions tables")
    parser.add_argument("--fit", required=True, help="table for the questions that it is fine-tuned on")
    parser.add_argument("--heldout", required=True, help="table for questions that it never saw")
    flags = parameters_of(RegimeTest)
    add_flags(parser, flags)

    def run(given: argparse.Namespace) -> Result:
        options = {flag.name: getattr(given, flag.name) for flag in flags}
        return regime_test(read_predictions(given.fit), read_predictions(given.heldout), **options).to_dict()

    parser.set_defaults(run=run, text=regime_text)


_REPORT_FLAGS = tuple(
    parameter
    for parameter in parameters_of(PromoteConfig)
    if parameter.name not in ("total_accuracy_margin", "win_rate_margin")  # need a history, and pairs
)


def _add_report(commands: Subparsers) -> None:
    parser = command(commands, "report", "write the HTML report of one predictions table, or of two compared")
    parser.add_argument("table", help="predictions table of the (input) model")
    parser.add_argument("--after", help="table of its successor, for the same questions")
    parser.add_argument("--title", help="title of the report (default: the table's name)")
    parser.add_argument("--out", required=True, help="HTML file to write")
    add_flags(parser, _REPORT_FLAGS)
    parser.set_defaults(run=_report, text=report_text)


def _report(given: argparse.Namespace) -> Result:
    summary = write_report(
        given.out,
        before=read_predictions(given.table),
        after=None if given.after is None else read_predictions(given.after),
        title=given.title or PurePath(given.table).stem,
        parameters={"table": given.table, "after": given.after},
        **{flag.name: getattr(given, flag.name) for flag in _REPORT_FLAGS},
    )
    return {**summary, "report": given.out}


def _add_measure(commands: Subparsers) -> None:
    parser = command(commands, "measure", "measure a predictions table and write its report, no model needed")
    parser.add_argument("predictions", help="predictions table (.parquet or .jsonl)")
    parser.add_argument("--fit", help="table for the questions that the model is fine-tuned on")
    parser.add_argument("--out", required=True, help="HTML file to write")
    add_flags(parser, parameters_of(MeasureConfig))

    def run(given: argparse.Namespace) -> Result:
        config = config_from(MeasureConfig, vars(given))
        with published(given.out) as out:
            result = measure_table(config, fetch(given.predictions), out, fit=given.fit and fetch(given.fit))
        return {**result, "report": given.out}

    parser.set_defaults(run=run, text=measurement_text)


def _add_convert(commands: Subparsers) -> None:
    parser = command(commands, "convert", "turn lm-eval samples or Vertex batch predictions into a table")
    parser.add_argument("source", help="file, or folder with the files of one run")
    parser.add_argument("--out", required=True, help="predictions table to write (.parquet)")
    add_flags(parser, parameters_of(ConvertConfig))

    def run(given: argparse.Namespace) -> Result:
        config = config_from(ConvertConfig, vars(given))
        with published(given.out) as out:
            return convert_predictions(config, fetch(given.source), out)

    parser.set_defaults(run=run)


def _add_shards(commands: Subparsers) -> None:
    """The three commands that score a large set of questions in parts."""
    parser = command(commands, "shard", "check a large set of questions, to be scored in shards")
    parser.add_argument("--out", required=True, help="folder to write")
    add_flags(parser, parameters_of(ShardConfig))

    def shard(given: argparse.Namespace) -> Result:
        with published(given.out) as out:
            return shard_questions(config_from(ShardConfig, vars(given)), out)

    parser.set_defaults(run=shard)

    parser = command(commands, "score", "score one shard of a large set of questions, or all of them")
    parser.add_argument("--model", required=True, help="model folder (safetensors), adapter folder or hub id")
    parser.add_argument("--data", required=True, help="folder that `calib shard` wrote")
    parser.add_argument("--shard", type=int, metavar="N", help="number of the shard, from 0 (default: all)")
    parser.add_argument("--out", required=True, help="predictions table to write (.parquet)")
    add_flags(parser, parameters_of(ScoreConfig))

    def score(given: argparse.Namespace) -> Result:
        config = config_from(ScoreConfig, vars(given))
        with published(given.out) as out:
            return score_shard(config, given.model, fetch(given.data), out, shard=given.shard)

    parser.set_defaults(run=score)

    parser = command(commands, "merge-predictions", "put the tables of all shards together")
    parser.add_argument("shards", nargs="+", help="predictions tables of all shards")
    parser.add_argument("--data", required=True, help="folder that `calib shard` wrote")
    parser.add_argument("--out", required=True, help="predictions table to write (.parquet)")

    def join_shards(given: argparse.Namespace) -> Result:
        with published(given.out) as out:
            return merge_predictions(fetch(given.data), [fetch(table) for table in given.shards], out)

    parser.set_defaults(run=join_shards)
