"""Parameters on a command line: choices, defaults and groups in the help, and messages in its words."""

from __future__ import annotations

import argparse

import pytest

from calib_core.settings.flags import Parser, add_flags, flags_of, option_of
from calib_core.settings.parameters import Limits, Parameter, config_from, parameters_of
from calib_core.training.config import FinetuneConfig
from calib_pipelines.commands import main as cli

MANY = tuple(f"layout-{i}" for i in range(9))
PARAMETERS = (
    Parameter(name="out", type=str, default=argparse.SUPPRESS, description="Where to."),
    Parameter(name="rate", type=float, default=0.0005, description="Half of 100 %.", group="steps"),
    Parameter(name="hours", type=float, default=8.0, description="Time.", limits=Limits(at_least=0)),
    Parameter(name="form", type=str, default="plain", description="Form.", choices=("plain", "chat")),
    Parameter(name="preset", type=str, default="", description="Layout.", choices=("", *MANY)),
    Parameter(name="quick", type=bool, default=False, description="Hurry.", group="steps"),
)


@pytest.fixture
def parser() -> Parser:
    parser = Parser(prog="calib x")
    add_flags(parser, PARAMETERS)
    return parser


def test_help_has_choices_defaults_and_groups(parser):
    text = " ".join(parser.format_help().split())
    assert "--form {plain,chat} Form. (default: plain)" in text
    assert "--hours X Time. (default: 8)" in text
    assert "--preset TEXT Layout. One of layout-0, layout-1, layout-2," in text
    options, _, steps = text.partition(" steps: ")
    assert "--form" in options
    assert "--rate X Half of 100 %. (default: 0.0005) --quick, --no-quick Hurry." in steps


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--rat", "1"], "no such option: --rat; did you mean --rate?"),
        (["--raet=1"], "no such option: --raet; did you mean --rate?"),
        (["--zzz"], "no such option: --zzz"),
        (["--form", "plian"], "did you mean plain?"),
        (["--rate", "much"], "argument --rate: invalid float value: 'much'"),
    ],
)
def test_what_is_mistyped_ends_with_2_and_a_suggestion(parser, capsys, arguments, told):
    with pytest.raises(SystemExit, match="2"):
        parser.parse_args(arguments)
    assert capsys.readouterr().err.rstrip().endswith(told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["evaluat"], "did you mean evaluate?"),
        (["cft", "--model", "m", "--data", "d", "--out", "o", "--learning-rat", "1"], "--learning-rate?"),
        (
            ["pipeline", "run", "--out", "o", "--model", "m", "--target-ec", "0.1"],
            "did you mean --target-ece?",
        ),
    ],
)
def test_commands_suggest_too(capsys, arguments, told):
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    assert capsys.readouterr().err.rstrip().endswith(told)


def test_messages_name_options_as_they_are_typed(parser, tmp_path, capsys):
    told = parser.as_typed("`rate` is 2; give `form=chat`, `quick`, `other=1` or `make it`")
    assert told == "--rate is 2; give --form chat, --quick, `other=1` or `make it`"
    code = cli.main(["prepare", "--out", str(tmp_path / "o"), "--questions", "q", "--max-fit", "-1"])
    assert code == 2
    assert "error: --max-fit is -1; give 0 or more" in capsys.readouterr().err


def test_flags_give_the_config_again():
    config = FinetuneConfig(epochs=2, prompt_form="chat", learning_rate=1e-6)
    parser = Parser()
    add_flags(parser, parameters_of(FinetuneConfig))
    assert config_from(FinetuneConfig, vars(parser.parse_args(flags_of(config)))) == config
    assert flags_of(config)[:2] == ["--aim=calibration", "--epochs=2"]
    assert not [flag for flag in flags_of(config) if flag.startswith(option_of("critical_accuracy"))]
