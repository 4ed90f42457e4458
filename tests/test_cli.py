"""The command `calib`: components' parameters as flags, exit codes, what works without torch and KFP."""

from __future__ import annotations

import argparse
import errno
import json
import subprocess
import sys
from types import ModuleType

import pytest
from synthetic import make_world, memorised, tempered

import calib_components
from calib_core.commands.champion import add_champion_commands
from calib_core.commands.library import add_commands
from calib_core.metrics import Interval
from calib_core.predictions.files import write_predictions
from calib_core.version import __version__
from calib_pipelines.commands import main as cli
from calib_pipelines.compile import PIPELINES

COMPONENTS = {
    "prepare": "data_prep",
    "align": "dpo_align",
    "evaluate": "evaluate",
    "cft": "cft_finetune",
    "rcft": "em_ece_finetune",
    "promote": "promote",
    "calibrate": "calibrate",
    "convert": "convert_predictions",
    "fresh": "fresh_data",
    "measure": "measure",
    "merge-predictions": "merge_predictions",
    "publish": "publish_champion",
    "score": "score_shard",
    "shard": "shard_questions",
}
COMMAND_ONLY = {"help", "json", "out", "quiet_data"}
ARTIFACTS_OF = {"fresh": {"data", "snapshot"}}
WORLD, OTHER = make_world(500, 1), make_world(500, 2)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    root = tmp_path_factory.mktemp("tables")
    content = {
        "sure": WORLD.predictions(tempered(WORLD.q, 0.3)),
        "right": WORLD.predictions(WORLD.q),
        "sure_elsewhere": OTHER.predictions(tempered(OTHER.q, 0.3)),
        "by_heart": WORLD.predictions(memorised(tempered(WORLD.q, 0.3), WORLD.labels, 0.95)),
        "few": OTHER.predictions(OTHER.q).subset(range(50)),
    }
    for name, predictions in content.items():
        write_predictions(predictions, root / f"{name}.parquet")
    return root


def library_parsers() -> dict[str, argparse.ArgumentParser]:
    commands = argparse.ArgumentParser().add_subparsers()
    add_commands(commands)
    add_champion_commands(commands)
    return dict(commands.choices)


@pytest.mark.parametrize(("command", "component"), COMPONENTS.items())
def test_command_has_the_components_parameters(command, component):
    inputs = getattr(calib_components, component).component_spec.inputs
    actions = {
        action.dest: action
        for action in library_parsers()[command]._actions
        if action.dest not in COMMAND_ONLY | ARTIFACTS_OF.get(command, set())
    }
    started_elsewhere = {"nodes", "cluster"} & set(inputs)  # which needs KFP: added by `calib` itself
    assert set(actions) == set(inputs) - started_elsewhere
    for name, action in actions.items():
        assert action.required == (not inputs[name].optional), name
        assert action.default == inputs[name].default, name


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ([], "restore-calibration"),
        (["--pipeline", "restore-calibration"], "restore-calibration"),
        (["--pipeline=recalibrate"], "recalibrate"),
    ],
)
def test_pipeline_command_has_the_pipelines_parameters(capsys, asked, name):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["pipeline", "run", *asked, "--help"])
    shown = capsys.readouterr().out
    for parameter in PIPELINES[name].component_spec.inputs:
        assert f"--{parameter.replace('_', '-')}" in shown
    assert ("--no-align" in shown) == (name == "restore-calibration")


def test_metrics_prints_every_figure(tables, capsys):
    assert cli.main(["metrics", str(tables / "sure.parquet"), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["n"] == 500
    assert figures["mean_confidence"]["value"] - figures["accuracy"]["value"] > 0.1
    assert cli.main(["metrics", str(tables / "sure.parquet")]) == 0
    rows = {line.split("  ")[0]: line.split("  ")[-1] for line in capsys.readouterr().out.splitlines()}
    ece = figures["conf_ece"]
    assert rows["conf-ECE"].strip() == f"{ece['value']:.3f} ({ece['low']:.3f} to {ece['high']:.3f})"
    assert rows["AUROC of confidence"].strip() == str(Interval(**figures["auroc"]))


@pytest.mark.parametrize(
    ("fit", "heldout", "regime"),
    [
        ("sure", "sure_elsewhere", "calibratable"),
        ("by_heart", "sure_elsewhere", "non_calibratable"),
    ],
)
def test_regime_is_named_with_reasons(tables, capsys, fit, heldout, regime):
    given = [
        "regime",
        "--fit",
        str(tables / f"{fit}.parquet"),
        "--heldout",
        str(tables / f"{heldout}.parquet"),
    ]
    assert cli.main([*given, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["regime"] == regime
    assert cli.main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"regime: {regime}", *(f"- {reason}" for reason in result["reasons"])]


def test_regime_honours_the_tolerance(tables, capsys):
    names = (f"--fit={tables / 'by_heart.parquet'}", f"--heldout={tables / 'sure_elsewhere.parquet'}")
    assert cli.main(["regime", *names, "--tolerance=0.9", "--n-resamples=50", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["regime"] == "calibratable"  # and not with 0.05, see above


def test_report_of_one_table_and_of_two(tables, tmp_path, capsys):
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    assert cli.main(["report", str(tables / "sure.parquet"), "--out", str(one), "--title", "My model"]) == 0
    assert "My model" in one.read_text()
    assert str(one) in capsys.readouterr().out
    given = [
        "report",
        str(tables / "sure.parquet"),
        "--after",
        str(tables / "right.parquet"),
        "--out",
        str(two),
    ]
    assert cli.main([*given, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["promoted"] is True
    page = two.read_text()
    assert "The second model passes the gate against the first one." in page
    assert "is kept" not in page
    assert "is promoted" not in page
    assert cli.main(given) == 0
    said = capsys.readouterr().out
    assert "- The second model passes the gate" in said
    assert "promoted" not in said


@pytest.mark.parametrize(
    "given",
    [
        ("score", "--model=m", "--data=absent"),
        ("merge", "--model=absent"),
        ("merge-predictions", "absent.parquet", "--data=absent"),
        ("convert", "absent.jsonl"),
        ("measure", "absent.parquet"),
        ("report", "absent.parquet"),
        (
            "promote",
            "--before=absent",
            "--after=absent",
            "--model-before=m",
            "--model-after=n",
            "--branch=cft",
        ),
    ],
    ids=lambda given: given[0],
)
def test_an_output_that_cant_be_written_is_found_before_anything_is_read(given, tmp_path, capsys):
    out = tmp_path / "out"
    if given[0] in ("promote", "merge"):  # what they write is a folder
        out.touch()
    else:
        out.mkdir()
    assert cli.main([*given, f"--out={out}"]) == 2
    said = capsys.readouterr().err
    assert str(out) in said
    assert "absent" not in said


def test_missing_table_is_the_users_mistake(tmp_path, capsys):
    assert cli.main(["metrics", str(tmp_path / "absent.parquet"), "--json"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    place = f"{tmp_path / 'absent.parquet'}: no such file; check the path"
    assert shown.err == f"error: {place} (a hub data set is written hf://owner/name)\n"


def test_too_few_questions_end_with_3(tables, capsys):
    given = ["regime", "--fit", str(tables / "sure.parquet"), "--heldout", str(tables / "few.parquet")]
    assert cli.main(given) == 3
    assert "50" in capsys.readouterr().err


def test_wrong_flags_and_values_end_with_2(tables, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        cli.main(["metrics", str(tables / "sure.parquet"), "--bins", "3"])
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert cli.main(["metrics", str(tables / "sure.parquet"), "--n-bins", "0"]) == 2
    assert cli.main(["pipeline", "compile", "--output", str(tmp_path / "p.txt")]) == 2
    assert "p.txt" in capsys.readouterr().err


def test_standard_output_has_the_result_alone(tables, monkeypatch, capsys):
    class Counted:
        def to_dict(self):
            return {"n": 1}

    monkeypatch.setattr(
        "calib_core.commands.library.measure", lambda *_, **__: print("advice of a library") or Counted()
    )
    assert cli.main(["metrics", str(tables / "sure.parquet"), "--json"]) == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ('{"n": 1}\n', "advice of a library\n")


def test_paths_that_cannot_be_written_end_with_2_and_no_traceback(tables, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    table = str(tables / "sure.parquet")
    for out in (tmp_path, tmp_path / "file" / "report.html"):
        assert cli.main(["report", table, "--out", str(out)]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: ")
        assert str(tmp_path) in shown.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_ends_with_1_and_no_traceback(tables, tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "report.html")

    monkeypatch.setattr("calib_core.commands.library.write_report", full)
    assert cli.main(["report", str(tables / "sure.parquet"), "--out", str(tmp_path / "r.html")]) == 1
    told = capsys.readouterr().err
    assert told == "error: report.html: No space left on device; fix this, and run the command again\n"


@pytest.mark.parametrize("step", ["prepare", "evaluate", "align", "cft", "rcft", "calibrate", "run"])
def test_folders_with_a_users_files_are_refused_before_any_work(step, tmp_path, capsys):
    mine = tmp_path / "model" / "weights.bin"
    mine.parent.mkdir()
    mine.write_text("mine")
    out = str(tmp_path if step in ("calibrate", "run") else mine.parent)
    arguments = {
        "prepare": ["prepare", "--questions", "q.jsonl"],
        "run": ["pipeline", "run", "--questions", "q.jsonl", "--model", str(mine.parent)],
    }.get(step, [step, "--model", str(mine.parent), "--data", "data"])
    assert cli.main([*arguments, "--out", out]) == 2
    assert f"{mine.parent}: is not empty and has no " in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["model", "weights.bin"]
    assert mine.read_text() == "mine"


@pytest.mark.slow
def test_pipeline_compiles(tmp_path, capsys):
    target = tmp_path / "new" / "package.yaml"
    assert cli.main(["pipeline", "compile", "--output", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"package": str(target)}
    assert "name: restore-calibration" in target.read_text()
    assert cli.main(["pipeline", "compile", "--pipeline", "recalibrate", "--output", str(target)]) == 0
    assert "name: recalibrate" in target.read_text()
    with pytest.raises(SystemExit, match="2"):
        cli.main(["pipeline", "compile", "--pipeline", "other"])


def run_without(modules: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `calib` in a process in which importing `modules` fails as if they weren't installed."""
    script = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {modules!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from calib_pipelines.commands.main import main\n"
        "sys.exit(main())\n"
    )
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["metrics", "regime", "report"])
def test_tables_need_neither_torch_nor_kfp(tables, tmp_path, command):
    table = str(tables / "sure.parquet")
    arguments = {
        "metrics": [table],
        "regime": ["--fit", table, "--heldout", str(tables / "sure_elsewhere.parquet")],
        "report": [table, "--out", str(tmp_path / "report.html")],
    }[command]
    missing = ("torch", "transformers", "peft", "trl", "accelerate", "datasets", "kfp")
    done = run_without(missing, command, *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert isinstance(json.loads(done.stdout), dict)


def test_pipeline_without_kfp_says_what_to_install():
    done = run_without(("kfp",), "pipeline", "run")
    assert done.returncode == 2
    assert (
        done.stderr
        == "error: `calib pipeline` needs KFP; install it with: pip install 'calib-core[pipelines]'\n"
    )


def test_demo_runs_the_scenario_that_was_asked_for(tmp_path, monkeypatch, capsys):
    asked = []
    demo = ModuleType("calib_pipelines.run.demo")
    demo.run_demo = lambda scenario, out: asked.append((scenario, out)) or {"branch": "rcft"}
    monkeypatch.setitem(sys.modules, "calib_pipelines.run.demo", demo)
    assert cli.main(["demo", "--scenario", "memorised", "--out", str(tmp_path), "--json"]) == 0
    assert asked == [("memorised", tmp_path)]
    assert json.loads(capsys.readouterr().out) == {"branch": "rcft"}
    with pytest.raises(SystemExit, match="2"):
        cli.main(["demo", "--scenario", "other"])


def test_version(capsys):
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"calib {__version__}\n"
