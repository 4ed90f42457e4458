"""A stream: what is new counts once, whatever was late or sent again, and no question changes its fold."""

from __future__ import annotations

import gzip
import json
import os
import random
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chain import write_summary

from calib_core.data.folds import FOLDS
from calib_core.data.questions import Question, read_questions, write_questions
from calib_core.data.stream import Snapshot, known_questions, question_hash, read_fresh
from calib_core.data.texts import normalize_text
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.publish import PublishConfig, publish_champion

CHOICES = ("red", "green", "blue")


def ask(number: int, *, answer: int = 0, **changes: object) -> Question:
    given = {"id": f"q{number}", "question": f"What colour has thing {number}?", "choices": CHOICES}
    return Question(**{**given, "answer": answer, **changes})


def put(folder: Path, name: str, questions: list[Question]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    if path.suffix == ".parquet":
        write_questions(questions, path)
    else:
        rows = [
            {"id": q.id, "question": q.question, "choices": list(q.choices), "answer": q.answer}
            for q in questions
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(questions: object) -> set[str]:
    return {normalize_text(question.question) for question in questions}


def numbers(found: object) -> set[int]:
    return {int(question.question.split()[-1].rstrip("?")) for question in found.questions}


def test_files_of_both_kinds_are_read_at_any_depth_and_markers_are_not(tmp_path):
    put(tmp_path, "a.parquet", [ask(1)])
    put(tmp_path / "2026" / "07", "b.jsonl", [ask(2)])
    (tmp_path / "_SUCCESS").write_text("")
    (tmp_path / "notes.txt").write_text("no questions")
    found = read_fresh(tmp_path, Snapshot())
    assert numbers(found) == {1, 2}
    assert [file.name for file in found.snapshot.files] == ["2026/07/b.jsonl", "a.parquet"]
    assert (found.counts["files_new"], found.counts["files_ignored"]) == (2, 2)


def test_second_reading_finds_only_what_is_new_late_files_included(tmp_path):
    put(tmp_path, "2026-03.parquet", [ask(1), ask(2)])
    first = read_fresh(tmp_path, Snapshot())
    late = put(tmp_path, "2026-01.parquet", [ask(3)])  # an older name and an older time, only now there

    os.utime(late, (0, 0))
    second = read_fresh(tmp_path, first.snapshot)
    assert numbers(second) == {3}
    assert second.counts["files_new"] == 1
    with pytest.raises(NotEnoughDataError, match="no new questions since the last snapshot"):
        read_fresh(tmp_path, second.snapshot)


def test_repeated_files_and_rows_count_once(tmp_path):
    put(tmp_path, "a.parquet", [ask(1), ask(2)])
    first = read_fresh(tmp_path, Snapshot())
    (tmp_path / "copy.parquet").write_bytes((tmp_path / "a.parquet").read_bytes())
    put(tmp_path, "a.parquet", [ask(2), ask(1), ask(3)])  # the same name, grown
    reordered = ask(4, choices=("blue", "red", "green"), answer=1)
    put(tmp_path, "b.jsonl", [ask(4), ask(1, id="other", question="What  colour has thing 1? ")])
    put(tmp_path, "c.jsonl", [reordered])
    second = read_fresh(tmp_path, first.snapshot)
    assert numbers(second) == {3, 4}
    assert second.counts["files_repeated"] == 1
    assert second.counts["files_new"] == 3
    assert second.counts["rows_repeated"] == 4  # 1 and 2 in a, 1 in b, 4 in c
    assert len(second.snapshot.seen) == 4


def test_other_options_under_the_same_text_are_another_question(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1)])
    first = read_fresh(tmp_path, Snapshot())
    put(tmp_path, "b.jsonl", [ask(1, choices=("red", "black"))])
    assert len(read_fresh(tmp_path, first.snapshot).questions) == 1


def test_questions_that_two_new_files_answer_differently_are_refused_or_left_out(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1), ask(2)])
    put(tmp_path, "b.jsonl", [ask(1, answer=2)])
    with pytest.raises(DataFormatError, match=r"1 questions have different answers[\s\S]*a\.jsonl.*b\.jsonl"):
        read_fresh(tmp_path, Snapshot())
    found = read_fresh(tmp_path, Snapshot(), on_bad_row="drop")
    assert numbers(found) == {2}
    assert found.counts["rows_contradicted"] == 2


def test_a_new_label_of_a_question_that_was_read_is_a_repeat(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1)])
    first = read_fresh(tmp_path, Snapshot())
    put(tmp_path, "b.jsonl", [ask(1, answer=1), ask(2)])
    assert numbers(read_fresh(tmp_path, first.snapshot)) == {2}


def test_rows_without_a_label_are_refused_or_left_out(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1)])
    with (tmp_path / "a.jsonl").open("a") as stream:
        stream.write('{"id": "q2", "question": "Unlabelled 2?", "choices": ["a", "b"], "answer": null}\n')
    with pytest.raises(DataFormatError, match=r"a\.jsonl: 1 of 2 rows are bad"):
        read_fresh(tmp_path, Snapshot())
    found = read_fresh(tmp_path, Snapshot(), on_bad_row="drop")
    assert (numbers(found), found.counts["rows_bad"]) == ({1}, 1)


def test_files_that_number_their_rows_alike_keep_their_questions_apart(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1, id="1"), ask(2, id="2")])
    put(tmp_path, "b.jsonl", [ask(3, id="1")])
    found = read_fresh(tmp_path, Snapshot())
    ids = {question.id for question in found.questions}
    assert len(ids) == 3
    assert "2" in ids
    assert sum(name.startswith("1-") for name in ids) == 2
    (tmp_path / "b.jsonl").rename(tmp_path / "0.jsonl")
    assert {q.id for q in read_fresh(tmp_path, Snapshot()).questions} == ids


def test_what_the_first_champion_was_trained_on_never_counts_as_new(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1, choices=("other", "options")), ask(2)])
    trained = Snapshot(trained_on=known_questions([ask(1)]))
    found = read_fresh(tmp_path, trained)
    assert (numbers(found), found.counts["rows_trained_on"]) == ({2}, 1)
    assert found.snapshot.trained_on == trained.trained_on


def test_shards_without_rows_are_counted_and_stop_nothing(tmp_path):
    put(tmp_path, "part-0.jsonl", [ask(1)])
    (tmp_path / "part-1.jsonl").write_text("")
    (tmp_path / "part-2.csv").write_text("question,choice0,choice1,answer\n")
    (tmp_path / "part-3.json").write_text("[]")
    put(tmp_path, "part-4.parquet", [])
    (tmp_path / "part-5.jsonl.gz").write_bytes(gzip.compress(b""))
    found = read_fresh(tmp_path, Snapshot())
    assert (numbers(found), found.counts["files_empty"], found.counts["files_new"]) == ({1}, 5, 1)
    with pytest.raises(NotEnoughDataError, match="no new questions"):
        read_fresh(tmp_path, found.snapshot)


def test_a_new_question_that_differs_in_case_only_is_not_lost(tmp_path):
    put(tmp_path, "a.jsonl", [ask(1, question="How many mW has lamp 1?")])
    first = read_fresh(tmp_path, Snapshot())
    put(tmp_path, "b.jsonl", [ask(2, question="How many MW has lamp 1?", answer=1)])
    assert len(read_fresh(tmp_path, first.snapshot).questions) == 1


def test_a_snapshot_of_another_format_is_refused(tmp_path):
    put(tmp_path / "stream", "a.jsonl", [ask(1)])
    read_fresh(tmp_path / "stream", Snapshot()).snapshot.write(tmp_path)
    record = json.loads((tmp_path / "snapshot.json").read_text())
    del record["format"]
    (tmp_path / "snapshot.json").write_text(json.dumps(record))
    with pytest.raises(DataFormatError, match="not of format 2"):
        Snapshot.read(tmp_path)


def test_empty_streams_say_what_to_do(tmp_path):
    with pytest.raises(NotEnoughDataError, match="put files there that end in"):
        read_fresh(tmp_path / "absent", Snapshot())


def test_snapshot_is_read_as_it_was_written_and_not_where_it_was_changed(tmp_path):
    put(tmp_path / "stream", "a.jsonl", [ask(1), ask(2)])
    before = Snapshot(trained_on=known_questions([ask(9)]))
    snapshot = read_fresh(tmp_path / "stream", before).snapshot
    snapshot.write(tmp_path)
    assert Snapshot.read(tmp_path) == snapshot
    assert set(snapshot.seen) == {question_hash(ask(1)), question_hash(ask(2))}
    record = json.loads((tmp_path / "snapshot.json").read_text())
    record["files"][0]["version"] = "another"
    (tmp_path / "snapshot.json").write_text(json.dumps(record))
    with pytest.raises(DataFormatError, match="don't belong together"):
        Snapshot.read(tmp_path)
    (tmp_path / "seen.parquet").write_bytes(b"damaged")
    with pytest.raises(DataFormatError, match="restore the folder"):
        Snapshot.read(tmp_path)
    snapshot.write(tmp_path)
    rows = pq.read_table(tmp_path / "seen.parquet").to_pylist()
    pq.write_table(pa.Table.from_pylist([{**row, "text": None} for row in rows]), tmp_path / "seen.parquet")
    with pytest.raises(DataFormatError, match="'text' with null values"):
        Snapshot.read(tmp_path)


def kept(folder: Path) -> Path:
    """What `promote` leaves where nothing was promoted, as far as `publish` reads it."""
    summary = {"promoted": False, "model": "m", "made": folder.name}
    return write_summary(folder, folder.parent / "snapshot", None, summary)


class Stream:
    """Runs over a stream that publish without promoting, and what each was given to train and judge on."""

    def __init__(self, root: Path, config: FreshConfig) -> None:
        self.folder, self.champion, self._root, self._config = (
            root / "stream",
            root / "champion",
            root,
            config,
        )
        self.folds: list[dict[str, set[str]]] = []

    def run(self, *, publishes: bool = True) -> dict[str, object]:
        work = self._root / f"run{len(list(self._root.iterdir()))}"
        places = {"data": work / "data", "snapshot": work / "snapshot"}
        result = fresh(self._config, stream=str(self.folder), champion=str(self.champion), **places)
        self.folds.append(
            {fold: texts(read_questions(work / "data" / f"{fold}.parquet")[0]) for fold in FOLDS}
        )
        if publishes:
            publish_champion(
                PublishConfig(),
                champion=str(self.champion),
                snapshot=work / "snapshot",
                summary=kept(work / "summary"),
                model=work / "none",
            )
        return result


def test_no_question_that_was_ever_test_is_ever_trained_on(tmp_path):
    rng = random.Random(5)  # noqa: S311
    stream = Stream(tmp_path, FreshConfig(model="first"))
    asked: list[Question] = []
    for batch in range(6):
        new = [ask(1000 * batch + i) for i in range(80)]
        # What comes again in other words' clothes: other case and spaces, full-width letters, other options.
        again = [
            replace(
                question,
                id=f"again{batch}-{i}",
                question=rng.choice(
                    [question.question.upper(), f"  {question.question} ".replace(" ", "\u2003")]
                ),
                choices=rng.choice([CHOICES, ("red", "black", "white")]),
            )
            for i, question in enumerate(rng.sample(asked, min(40, len(asked))))
        ]
        wide = [
            replace(q, id=f"w{batch}-{i}", question=q.question.replace("W", "\uff37"))
            for i, q in enumerate(rng.sample(asked, min(10, len(asked))))
        ]
        unique = {question_hash(question): question for question in [*new, *again, *wide]}
        put(stream.folder, f"{(7 * batch) % 5}-{batch}.parquet", list(unique.values()))
        asked += new
        stream.run()
    ever = {fold: set().union(*(run[fold] for run in stream.folds)) for fold in FOLDS}
    assert ever["fit"].isdisjoint(ever["test"] | ever["calibration"])
    assert ever["calibration"].isdisjoint(ever["test"])
    assert sum(map(len, ever.values())) == len(asked)  # nothing is lost, and every text has one fold
    repeats = [
        run["test"] & set().union(*(r["test"] for r in stream.folds[:i]))
        for i, run in enumerate(stream.folds)
    ]
    assert any(repeats[1:])  # the same text under other options did come again, as a test question again


def test_other_shares_of_the_folds_are_refused_later(tmp_path):
    stream = Stream(tmp_path, FreshConfig(model="first"))
    put(stream.folder, "a.jsonl", [ask(i) for i in range(40)])
    stream.run()
    put(stream.folder, "b.jsonl", [ask(i) for i in range(40, 80)])
    places = {"data": tmp_path / "d", "snapshot": tmp_path / "s"}
    with pytest.raises(ConfigError, match=r"fit_fraction.*\(0\.5, 0\.3\).*\(0\.4, 0\.3\)"):
        fresh(
            FreshConfig(fit_fraction=0.5), stream=str(stream.folder), champion=str(stream.champion), **places
        )
    assert not (tmp_path / "s").exists()


def test_a_run_that_is_not_published_leaves_its_questions_new(tmp_path):
    stream = Stream(tmp_path, FreshConfig(model="first"))
    put(stream.folder, "a.jsonl", [ask(i) for i in range(40)])
    first = stream.run(publishes=False)
    assert not (tmp_path / "champion").exists()
    put(stream.folder, "b.jsonl", [ask(i) for i in range(40, 60)])
    second = stream.run()
    assert (first["n_fresh"], second["n_fresh"]) == (40, 60)


def test_a_folder_without_champion_asks_for_a_model(tmp_path):
    put(tmp_path / "stream", "a.jsonl", [ask(1)])
    places = {"data": tmp_path / "d", "snapshot": tmp_path / "s"}
    with pytest.raises(ConfigError, match="name the first champion in `model`"):
        fresh(FreshConfig(), stream=str(tmp_path / "stream"), champion=str(tmp_path / "champion"), **places)


def test_questions_of_the_first_training_are_remembered_by_later_runs(tmp_path):
    known = put(tmp_path, "known.jsonl", [ask(i) for i in range(5)])
    stream = Stream(tmp_path, FreshConfig(model="first", trained_on=str(known)))
    put(stream.folder, "a.jsonl", [ask(i) for i in range(45)])
    assert stream.run()["n_fresh"] == 40
    put(
        stream.folder,
        "b.jsonl",
        [ask(i, choices=("x", "y")) for i in range(3)] + [ask(i) for i in range(90, 130)],
    )
    places = {"data": tmp_path / "d", "snapshot": tmp_path / "s"}
    later = fresh(FreshConfig(), stream=str(stream.folder), champion=str(stream.champion), **places)
    assert (later["n_fresh"], later["counts"]["rows_trained_on"]) == (40, 3)
