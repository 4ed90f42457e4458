"""The champion: of racing runs one wins, readers never see half a state, history stays, going back works."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain import write_adapter, write_summary

from calib_core.champion.history import append_figures, figures_row, read_figures
from calib_core.champion.state import first_champion, read_champion, rollback, write_champion
from calib_core.data.questions import Question, write_questions
from calib_core.data.stream import Snapshot
from calib_core.errors import ConfigError, DataFormatError, StaleVersionError
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.publish import PublishConfig, publish_champion
from calib_core.storage import uris as storage
from calib_core.storage.files import read_json
from calib_pipelines.commands import main as cli

SPLIT = (0.4, 0.3)


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def summary(*, promoted: bool = True, ece: float = 0.3, branch: str = "cft") -> dict[str, object]:
    """A run's summary, as far as it is published."""
    sides = {
        side: {
            "n": 90,
            "accuracy": interval(0.7),
            "mean_confidence": interval(0.7 + value),
            "conf_ece": interval(value),
            "cw_ece": interval(value / 2),
        }
        for side, value in (("before", ece), ("after", 0.1))
    }
    return {
        **sides,
        "regime": "calibrated" if branch == "none" else "calibratable",
        "branch": branch,
        "promoted": promoted,
        "bounds": {"regime": "calibratable", "branch": "cft", "reasons": [], "target_ece": 0.08},
        "model": "task/adapter" if promoted else "models/first",
    }


def batch_of(number: int, count: int) -> list[Question]:
    """Questions that no other batch has."""
    return [
        Question(id=f"{i}", question=f"Batch {number}, thing {i}?", choices=("a", "b"), answer=i % 2)
        for i in range(count)
    ]


class Folder:
    """A champion's folder, a stream beside it, and runs that publish what they are told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.champion = root, str(root / "champion")
        self._runs = 0

    def begin(self) -> Path:
        """Read what is new: 30 more questions have come."""
        self._runs += 1
        write_questions(batch_of(self._runs, 30), self.root / "stream" / f"{self._runs}.parquet")
        return self.read(f"run{self._runs}")

    def read(self, name: str) -> Path:
        work = self.root / name
        fresh(
            FreshConfig(model="models/first"),
            stream=str(self.root / "stream"),
            champion=self.champion,
            data=work / "data",
            snapshot=work / "snapshot",
        )
        return work

    def finish(self, work: Path, result: dict[str, object]) -> dict[str, object]:
        prepare_end(work, result)
        return self.publish(work)

    def publish(self, work: Path) -> dict[str, object]:
        return publish_champion(PublishConfig(run_name=work.name), champion=self.champion, **places(work))


def places(work: Path) -> dict[str, Path]:
    return {"snapshot": work / "snapshot", "summary": work / "summary", "model": work / "adapter"}


def prepare_end(work: Path, result: dict[str, object]) -> None:
    adapter = write_adapter(work / "adapter", work.name.encode())
    write_summary(work / "summary", work / "snapshot", adapter, result)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path)


def test_promoted_model_becomes_champion_with_its_figures_and_everything_of_its_run(folder):
    work = folder.begin()
    result = folder.finish(work, summary())
    champion, _ = read_champion(folder.champion)
    assert champion.model == result["model"]
    model = Path(champion.model)
    assert (model / "adapter_model.safetensors").read_bytes() == b"run1"
    assert [(change.number, change.action) for change in champion.history] == [(1, "first"), (2, "promoted")]
    assert champion.history[0].model == "models/first"
    assert champion.history[1].figures["conf_ece"] == interval(0.1)
    assert champion.history[1].run == "run1"
    run = model.parent
    assert (run / "report.html").is_file()
    assert Snapshot.read(run / "snapshot").id == champion.snapshot
    (row,) = read_figures(folder.champion)
    assert (row["promoted"], row["champion"], row["before_conf_ece"]) == (True, champion.model, 0.3)
    assert row["after_conf_ece_high"] == pytest.approx(0.12)
    assert read_json(f"{folder.champion}/champion.json")["model"] == champion.model


@pytest.mark.parametrize("branch", ["none", "cft"])
def test_run_that_promotes_nothing_moves_the_snapshot_and_not_the_champion(folder, branch):
    work = folder.begin()
    folder.finish(work, summary(promoted=False, branch=branch))
    champion, _ = read_champion(folder.champion)
    assert (champion.model, champion.number) == ("models/first", 1)
    assert champion.snapshot == read_json(work / "snapshot" / "snapshot.json")["id"]
    assert not (Path(folder.champion) / "runs" / champion.run / "model").exists()
    (row,) = read_figures(folder.champion)
    assert row["after_conf_ece"] == (None if branch == "none" else pytest.approx(0.1))
    assert (row["branch"], row["promoted"]) == (branch, False)


def test_publishing_again_changes_nothing(folder):
    work = folder.begin()
    first = folder.finish(work, summary())
    state = (Path(folder.champion) / "champion.json").read_bytes()
    assert folder.publish(work) == first
    assert (Path(folder.champion) / "champion.json").read_bytes() == state
    assert len(read_figures(folder.champion)) == 1


def test_figures_that_a_broken_run_still_owed_are_appended_when_it_is_published_again(folder):
    work = folder.begin()
    folder.finish(work, summary())
    (Path(folder.champion) / "figures.parquet").unlink()
    folder.publish(work)
    assert len(read_figures(folder.champion)) == 1


def test_run_that_was_overtaken_publishes_nothing(folder):
    work = folder.begin()
    slow = folder.read("slow")
    folder.finish(work, summary())
    state = (Path(folder.champion) / "champion.json").read_bytes()
    with pytest.raises(StaleVersionError, match="has changed since this run began"):
        folder.finish(slow, summary(ece=0.4))
    assert (Path(folder.champion) / "champion.json").read_bytes() == state
    assert len(read_figures(folder.champion)) == 1
    assert len(list((Path(folder.champion) / "runs").iterdir())) == 1


RACER = """
import sys, time
from pathlib import Path
from calib_core.errors import StaleVersionError
from calib_core.steps import publish as step

champion, work, ready, go = sys.argv[1], *map(Path, sys.argv[2:])
real = step.write_champion
def write(*given, **named):  # all racers have read and uploaded before the first one writes
    ready.touch()
    while not go.exists():
        time.sleep(0.002)
    return real(*given, **named)
step.write_champion = write
try:
    step.publish_champion(step.PublishConfig(run_name=work.name), champion=champion,
                          snapshot=work / "snapshot", summary=work / "summary", model=work / "adapter")
except StaleVersionError:
    sys.exit(7)
"""


@pytest.mark.slow
def test_of_two_processes_that_race_one_wins(folder):
    folder.begin()
    works = [folder.root / "run1", folder.read("other")]
    for number, work in enumerate(works):
        prepare_end(work, summary(ece=0.3 + number / 10))
    go = folder.root / "go"
    ready = [folder.root / f"ready{number}" for number in range(2)]
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, folder.champion, *map(str, (work, flag, go))])
        for work, flag in zip(works, ready, strict=True)
    ]
    deadline = time.monotonic() + 120
    while not all(flag.exists() for flag in ready) and time.monotonic() < deadline:
        time.sleep(0.02)
    go.touch()
    codes = [racer.wait(120) for racer in racers]
    assert sorted(codes) == [0, 7]
    champion, _ = read_champion(folder.champion)
    winner = works[codes.index(0)].name
    assert [change.run for change in champion.history] == ["", winner]
    assert (Path(champion.model) / "adapter_model.safetensors").read_bytes() == winner.encode()
    assert len(read_figures(folder.champion)) == 1


@pytest.mark.slow
def test_a_bucket_works_as_a_folder_does(gcs, tmp_path):
    stream, champion = f"{gcs}/stream", f"{gcs}/champion"
    config = FreshConfig(model="models/first")
    works = [tmp_path / name for name in ("one", "two", "late")]

    def begin(work: Path) -> dict[str, object]:
        return fresh(config, stream=stream, champion=champion, data=work / "data", snapshot=work / "snapshot")

    for batch, count in ((1, 30), (2, 40)):
        path = tmp_path / f"{batch}.parquet"
        write_questions(batch_of(batch, count), path)
        storage.publish(path, f"{stream}/2026/{batch}.parquet")
        if batch == 1:
            begin(works[0])
            begin(works[2])
            for work in works[::2]:
                prepare_end(work, summary(ece=0.3 if work == works[0] else 0.4))
            publish_champion(PublishConfig(), champion=champion, **places(works[0]))
            with pytest.raises(StaleVersionError, match="has changed since this run began"):
                publish_champion(PublishConfig(), champion=champion, **places(works[2]))
    state, _ = read_champion(champion)
    assert state.model == f"{champion}/runs/{state.run}/model"
    adapter = storage.fetch(state.model) / "adapter_model.safetensors"
    assert adapter.read_bytes() == b"one"
    second = begin(works[1])
    assert (second["n_fresh"], second["model"], second["counts"]["files_new"]) == (40, state.model, 1)
    assert rollback(champion).model == "models/first"
    assert [row["before_conf_ece"] for row in read_figures(champion)] == [0.3]


def test_readers_never_see_half_a_state(tmp_path):
    champion = first_champion("models/" + "x" * 20_000, SPLIT)
    version = write_champion(tmp_path, champion, expected=None)
    stop, seen = threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            seen.append(read_champion(tmp_path)[0].number)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(40):
        champion = champion.changed("promoted", f"models/{number}" + "y" * 20_000, figures={})
        version = write_champion(tmp_path, champion, expected=version)
    stop.set()
    reader.join()
    assert seen
    assert seen == sorted(seen)
    assert set(seen) <= set(range(1, 42))


def test_writing_needs_the_version_that_was_read(tmp_path):
    first = first_champion("models/first", SPLIT)
    version = write_champion(tmp_path, first, expected=None)
    with pytest.raises(StaleVersionError):
        write_champion(tmp_path, first, expected=None)
    second = first.changed("promoted", "models/second", figures={})
    write_champion(tmp_path, second, expected=version)
    with pytest.raises(StaleVersionError):
        write_champion(tmp_path, first, expected=version)
    assert read_champion(tmp_path)[0] == second


def test_appending_at_once_loses_no_row(tmp_path):
    rows = [
        figures_row(summary(), at="2026-07-01T08:00:00+00:00", run=f"run{i}", snapshot="s") for i in range(8)
    ]
    threads = [threading.Thread(target=append_figures, args=(tmp_path, row)) for row in rows]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {row["run"] for row in read_figures(tmp_path)} == {row["run"] for row in rows}
    append_figures(tmp_path, rows[0])
    assert len(read_figures(tmp_path)) == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"run": None}, "'run' with null values"),
        ({"run": [1]}, "not a table"),
        (None, "'run' is missing"),
    ],
)
def test_a_table_of_figures_that_is_not_as_it_is_written_is_refused(tmp_path, change, message):
    row = figures_row(summary(), at="2026-07-01T08:00:00+00:00", run="run1", snapshot="s")
    rows = [row | change if change else {name: value for name, value in row.items() if name != "run"}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "figures.parquet")
    with pytest.raises(DataFormatError, match=message):
        read_figures(tmp_path)


def test_a_table_of_figures_with_texts_that_are_none_is_refused(tmp_path):
    row = figures_row(summary(), at="2026-07-01T08:00:00+00:00", run="run1", snapshot="s")
    table = pa.Table.from_pylist([row])
    bad = pa.array([b"\x86"]).view(pa.string())
    pq.write_table(
        table.set_column(table.schema.get_field_index("run"), "run", bad), tmp_path / "figures.parquet"
    )
    with pytest.raises(DataFormatError, match="not a table of figures"):
        read_figures(tmp_path)


def three_champions(root: Path) -> str:
    champion = first_champion("models/1", SPLIT)
    for number in (2, 3):
        champion = champion.changed("promoted", f"models/{number}", figures={"conf_ece": interval(0.05)})
    write_champion(root, champion, expected=None)
    return str(root)


def test_rollback_goes_on_with_the_history(tmp_path):
    folder = three_champions(tmp_path)
    assert rollback(folder).model == "models/2"
    state, _ = read_champion(folder)
    assert [(change.action, change.model) for change in state.history][2:] == [
        ("promoted", "models/3"),
        ("rolled_back", "models/2"),
    ]
    assert rollback(folder, to=1).model == "models/1"
    assert read_champion(folder)[0].number == 5
    for wrong, message in ((1, "change 1"), (9, "change 9")):
        with pytest.raises(
            ConfigError, match=f"can't roll back to {message}.*numbers with another model: 2, 3, 4"
        ):
            rollback(folder, to=wrong)


def test_rollback_keeps_what_was_read_and_stops_a_run_that_had_begun(folder):
    folder.finish(folder.begin(), summary())
    begun = folder.begin()
    before, _ = read_champion(folder.champion)
    rollback(folder.champion)
    after, _ = read_champion(folder.champion)
    assert (after.snapshot, after.run) == (before.snapshot, before.run)
    with pytest.raises(StaleVersionError):
        folder.finish(begun, summary())
    again = folder.read("again")
    assert read_json(again / "snapshot" / "state.json")["model"] == "models/first"
    assert read_json(again / "snapshot" / "state.json")["n_fresh"] == 30


def test_rollback_needs_another_model(tmp_path):
    with pytest.raises(ConfigError, match="no champion there"):
        rollback(tmp_path)
    write_champion(tmp_path, first_champion("models/1", SPLIT), expected=None)
    with pytest.raises(ConfigError, match="numbers with another model: none"):
        rollback(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "not a champion's file"),
        ('{"format": 2}', "format is 2"),
        (
            '{"format": 1, "snapshot": "", "run": "", "split": {}, "history": [], "model": "m"}',
            "not a champion's",
        ),
    ],
)
def test_files_of_another_kind_are_refused_by_name(tmp_path, text, message):
    (tmp_path / "champion.json").write_text(text)
    with pytest.raises(DataFormatError, match=rf"champion\.json: .*{message}"):
        read_champion(tmp_path)


def test_commands_show_and_roll_back(folder, capsys):
    folder.finish(folder.begin(), summary())
    assert cli.main(["champion", "show", folder.champion, "--json"]) == 0
    state = json.loads(capsys.readouterr().out)
    assert state["number"] == 2
    assert state["runs"][0]["before_conf_ece"] == 0.3
    assert cli.main(["champion", "show", folder.champion]) == 0
    shown = capsys.readouterr().out
    assert f"champion: {state['model']}" in shown
    assert (
        "conf-ECE 0.300 (0.280 to 0.320), accuracy 0.700, 90 questions; calibratable, branch cft, promoted"
        in shown
    )
    assert cli.main(["champion", "rollback", folder.champion, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model"] == "models/first"
    assert cli.main(["champion", "rollback", folder.champion, "--to", "7"]) == 2
    assert cli.main(["champion", "show", str(folder.root / "absent")]) == 2
    assert "no champion there" in capsys.readouterr().err
