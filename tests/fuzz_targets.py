"""What is fuzzed: one target for each reader, a function of the bytes of a file."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calib_core.champion.history import read_figures
from calib_core.champion.state import Champion, read_champion
from calib_core.data.folds import FOLDS
from calib_core.data.layouts import preset_names
from calib_core.data.preferences import read_preferences
from calib_core.data.questions import Question, fingerprint, read_questions, write_questions
from calib_core.data.similar import near_groups
from calib_core.data.stream import Snapshot, known_questions
from calib_core.data.texts import exact_text, has_too_many_marks, loose_tokens, normalize_text
from calib_core.errors import CalibError
from calib_core.models.records import read_adapter_record
from calib_core.predictions.files import read_predictions, write_predictions
from calib_core.steps.folder import read_data
from calib_core.storage.files import read_json
from calib_pipelines.clusters.cron import parse_cron

WORK = Path(tempfile.mkdtemp(prefix="calib-fuzz-"))


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        read: Reads the bytes of a file; what it raises beside `CalibError` is a finding.
        seeds: Files to be changed, of which it takes one at least.
    """

    read: Callable[[bytes], Any]
    seeds: tuple[bytes, ...]


def _file(name: str, data: bytes) -> Path:
    path = WORK / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _lines(*rows: Any) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _questions(name: str) -> Callable[[bytes], Any]:
    def read(data: bytes) -> None:
        questions, report = read_questions(_file(name, data), on_bad_row="drop")
        json.dumps(report.to_dict()).encode()
        near_groups(questions)

    return read


def _presets(data: bytes) -> None:
    """Every layout in turn: one that is named is taken, whatever the columns look like."""
    path = _file("presets.jsonl", data)
    for preset in preset_names():
        try:
            read_questions(path, preset=preset)
        except CalibError:
            continue


def _predictions(name: str) -> Callable[[bytes], Any]:
    def read(data: bytes) -> None:
        table = read_predictions(_file(name, data))
        table.probs()
        write_predictions(table, WORK / "written.parquet")

    return read


def _record(name: str, read: Callable[[Path], Any]) -> Callable[[bytes], Any]:
    return lambda data: read(_file(f"{name.partition('.')[0]}-folder/{name}", data).parent)


def _in_folder(
    name: str, read: Callable[[Path], Any], make: Callable[[Path], object]
) -> tuple[Callable[[bytes], Any], bytes]:
    """A reader of a folder in which one file is fuzzed and the others are right; and that file as it is."""
    folder = WORK / f"whole-{name}"
    folder.mkdir()
    make(folder)
    return lambda data: read(_file(f"whole-{name}/{name}", data).parent), (folder / name).read_bytes()


def _snapshot(folder: Path) -> None:
    questions = [Question(id=str(n), question=f"Which {n}?", choices=("x", "y"), answer=n) for n in (0, 1)]
    Snapshot(seen=known_questions(questions), trained_on={}).write(folder)


def _data_folder(folder: Path) -> None:
    folds = {}
    for name in FOLDS:
        questions = [Question(id=name, question=f"Which {name}?", choices=("x", "y"), answer=0)]
        write_questions(questions, folder / f"{name}.parquet")
        folds[name] = {"n": 1, "fingerprint": fingerprint(questions)}
    (folder / "data.json").write_text(json.dumps({"folds": folds}))


def _texts(data: bytes) -> None:
    text = data.decode(errors="surrogateescape")[:2000]
    if not has_too_many_marks(text):
        exact_text(text)
        normalize_text(text)
        loose_tokens(text)


CHANGE = {"number": 1, "time": "t", "action": "first", "model": "m", "run": "", "figures": {}, "digest": ""}
CHAMPION = {
    **{"format": 1, "model": "m", "number": 1, "snapshot": "", "run": "", "history": [CHANGE]},
    "split": {"fit_fraction": 0.4, "calibration_fraction": 0.3},
}
NATIVE = _lines(
    {"id": "a", "question": "Which?", "choices": ["x", "y", "z"], "answer": 2, "subject": "s"},
    {"id": 7, "question": "Who\u00e9?", "choices": ["x", "y"], "answer": 0.0, "subject": None},
)
LABELLED = {"text": ["x", "y"], "label": ["A", "B"]}
NESTED = {"stem": "Which?", "choices": [{"label": "A", "text": "x"}, {"label": "B", "text": "y"}]}
PUBLISHED = _lines(
    {"question": "Which?", "choices": LABELLED, "answerKey": "A"},
    {"question": NESTED, "answerKey": "B"},
    {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 4},
    {"question": "Q?", "correct_answer": "a", "distractor1": "b", "distractor2": "c", "distractor3": "d"},
    {"Question Stem": "Which?", "Choices": "(A) x (B) y", "Answer Key": "B"},
    {"question": "Which?", "A": "x", "B": "y", "answer": "B", "choice0": "x", "choice1": "y"},
)
CSV = b'id,question,choice0,choice1,answer\na,"One, ""two""\nthree?",x,y,1\nb,Two?,x,,0\n'
TABLE = _lines(
    {"id": "a", "label": 0, "logprobs": [-0.1, -2.5, float("-inf")], "letter_mass": 0.5, "subject": "s"},
    {"id": "b", "label": None, "logprobs": [-1.1, -0.5], "letter_mass": 1, "group": 3},
)
LM_EVAL = _lines(
    {
        **{"doc_id": 0, "doc": {"subject": "s"}, "target": "0", "filter": "none", "acc": 1.0},
        "filtered_resps": [["-1.0", "False"], ["-2.0", "False"]],
        "arguments": {
            "gen_args_0": {"arg_0": "q", "arg_1": " A"},
            "gen_args_1": {"arg_0": "q", "arg_1": " B"},
        },
    }
)
TOP = [{"token": "A", "logProbability": -0.2}, {"token": " B", "logProbability": "-Infinity"}]
RESPONSE = {"candidates": [{"logprobsResult": {"topCandidates": [{"candidates": TOP}]}}]}
SERVICES = _lines(
    {"key": "a", "choices": ["x", "y"], "label": 0, "status": "", "request": {}, "response": RESPONSE},
    {
        "instance": {"id": "b", "choices": ["x", "y"], "answer": 1},
        "prediction": {"probs": {"A": 0.5, "B": 0.5}},
    },
)
DATA = _in_folder("data.json", read_data, _data_folder)
FOLD = _in_folder("fit.parquet", read_data, _data_folder)
SNAPSHOT = _in_folder("snapshot.json", Snapshot.read, _snapshot)
SEEN = _in_folder("seen.parquet", Snapshot.read, _snapshot)

TARGETS: dict[str, Target] = {
    "questions, JSON": Target(
        _questions("q.jsonl"), (NATIVE, PUBLISHED, b"[" + NATIVE.replace(b"\n", b",")[:-1] + b"]")
    ),
    "questions, presets": Target(_presets, (NATIVE, PUBLISHED)),
    "questions, CSV": Target(_questions("q.csv"), (CSV, b"Which?,a,b,c,d,B\n", CSV.replace(b",", b";"))),
    "questions, TSV": Target(_questions("q.tsv"), (CSV.replace(b",", b"\t"),)),
    "questions, by content": Target(_questions("q"), (NATIVE, CSV)),
    "pairs": Target(
        lambda data: read_preferences(_file("p.jsonl", data), on_bad_row="drop"),
        (_lines({"prompt": "p", "chosen": "a", "rejected": "b", "id": 3}),),
    ),
    "predictions": Target(_predictions("t.jsonl"), (TABLE, b'id,label,probs\na,1,"[0.5, 0.5]"\n')),
    "predictions, CSV": Target(_predictions("t.csv"), (b'id,label,probs\na,1,"[0.5, 0.5]"\n',)),
    "predictions, lm-eval": Target(_predictions("samples.jsonl"), (LM_EVAL,)),
    "predictions, services": Target(_predictions("predictions.jsonl"), (SERVICES, *SERVICES.splitlines())),
    "champion.json": Target(_record("champion.json", read_champion), (json.dumps(CHAMPION).encode(),)),
    "champion, as parsed": Target(
        lambda data: Champion.from_dict(read_json(_file("c.json", data)), "c.json").to_dict(),
        (json.dumps(CHAMPION).encode(),),
    ),
    "calibration.json": Target(
        _record("calibration.json", read_adapter_record),
        (b'{"files": {}, "lineage": [], "data": {}, "adapter": "a"}',),
    ),
    "data.json": Target(DATA[0], (DATA[1],)),
    "fit.parquet": Target(FOLD[0], (FOLD[1],)),
    "snapshot.json": Target(SNAPSHOT[0], (SNAPSHOT[1],)),
    "JSON": Target(lambda data: read_json(_file("any.json", data)), (json.dumps(CHAMPION).encode(),)),
    "cron": Target(
        lambda data: parse_cron(data.decode(errors="replace")), (b"30 3 * * 1", b"*/5 1-3 1,15 jan mon")
    ),
    "texts": Target(_texts, ("12. Wh\u200bich \u201cone\u201d, <b>\uff57\u043e</b> &amp; -3.5?".encode(),)),
    "questions, Parquet": Target(_questions("q.parquet"), ()),
    "predictions, Parquet": Target(_predictions("t.parquet"), ()),
    "figures.parquet": Target(_record("figures.parquet", read_figures), ()),
    "seen.parquet": Target(SEEN[0], ()),
}
"""Every reader by its name; those without seeds take tables that `fuzz_inputs.parquet` makes."""
