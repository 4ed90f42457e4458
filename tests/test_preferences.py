"""Reading, writing and splitting preference pairs."""

import json

import pyarrow.parquet as pq
import pytest

from calib_core.data.preferences import (
    Preference,
    pairs_showing,
    preferences_fingerprint,
    read_preferences,
    split_preferences,
    write_preferences,
)
from calib_core.errors import DataFormatError

PAIR = {"id": "a", "prompt": "Question: Sky?\nAnswer:", "chosen": " blue", "rejected": " red"}
EXPECTED = Preference(id="a", prompt="Question: Sky?\nAnswer:", chosen=" blue", rejected=" red")


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(count):
    return [
        Preference(id=f"p{i}", prompt=f"Prompt {i % 400}", chosen=f"yes {i}", rejected="no")
        for i in range(count)
    ]


def test_texts_keep_their_white_space(tmp_path):
    read, report = read_preferences(write(tmp_path / "p.jsonl", PAIR))
    assert read == [EXPECTED]
    assert (report.layout, report.n_rows, report.n_kept) == ("preferences", 1, 1)


def test_csv_and_ids_from_content(tmp_path):
    path = tmp_path / "p.csv"
    path.write_text("prompt,chosen,rejected\nSky?, blue, red\nSnow?, white, red\n")
    read, _ = read_preferences(path)
    assert [(pair.prompt, pair.chosen) for pair in read] == [("Sky?", " blue"), ("Snow?", " white")]
    assert len({pair.id for pair in read}) == 2


def test_written_pairs_are_read_back(tmp_path):
    write_preferences([EXPECTED], tmp_path / "p.parquet")
    assert read_preferences(tmp_path / "p.parquet")[0] == [EXPECTED]
    assert pq.read_schema(tmp_path / "p.parquet").names == ["id", "prompt", "chosen", "rejected"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": ""}, "line 2, prompt: empty"),
        ({"chosen": None}, "line 2, chosen: missing"),
        ({"rejected": [{"role": "assistant", "content": "red"}]}, "line 2, rejected: not a text but list"),
        ({"rejected": "blue "}, "line 2, rejected: the same text as chosen"),
        ({"id": "a"}, "line 2, id: 'a' is also the id of line 1"),
        ({"id": 1.5}, "line 2, id: not a text but float"),
        ({"chosen": "\udce4"}, "line 2, chosen: holds half of a surrogate pair"),
    ],
)
def test_bad_rows(tmp_path, changes, message):
    path = write(tmp_path / "p.jsonl", PAIR, PAIR | {"id": "b", "prompt": "Sea?"} | changes)
    with pytest.raises(DataFormatError) as caught:
        read_preferences(path)
    assert message in str(caught.value)
    read, report = read_preferences(path, on_bad_row="drop")
    assert (read, report.n_dropped) == ([EXPECTED], 1)


def test_missing_columns(tmp_path):
    with pytest.raises(DataFormatError, match=r"no column prompt, rejected \(columns: chosen\)"):
        read_preferences(write(tmp_path / "p.jsonl", {"chosen": "x"}))


def test_nothing_but_broken_rows(tmp_path):
    (tmp_path / "p.jsonl").write_text("{\n")
    with pytest.raises(DataFormatError, match="line 1: not JSON"):
        read_preferences(tmp_path / "p.jsonl", on_bad_row="drop")


def test_duplicates_go_and_disagreement_stays(tmp_path):
    same = PAIR | {"id": "b", "prompt": "Question:  Sky?\nAnswer:"}
    contrary = PAIR | {"id": "c", "chosen": " red", "rejected": " blue"}
    shouted = PAIR | {"id": "d", "chosen": " BLUE"}
    read, report = read_preferences(write(tmp_path / "p.jsonl", PAIR, same, contrary, shouted))
    assert [pair.id for pair in read] == ["a", "c", "d"]
    assert report.n_duplicates == 1


def test_the_split_is_by_prompt_and_does_not_depend_on_order_or_growth():
    many = pairs(1200)
    fit, test = split_preferences(many, test_fraction=0.25)
    assert len(fit) + len(test) == 1200
    assert 220 < len(test) < 380
    assert {pair.prompt for pair in fit}.isdisjoint(pair.prompt for pair in test)
    assert split_preferences(many[::-1], test_fraction=0.25) == (fit, test)
    fewer_fit, fewer_test = split_preferences(many[:600], test_fraction=0.25)
    assert set(fewer_fit) <= set(fit)
    assert set(fewer_test) <= set(test)


def test_the_fingerprint_sees_content_and_not_order():
    many = pairs(3)
    assert preferences_fingerprint(many) == preferences_fingerprint(many[::-1])
    assert preferences_fingerprint(many) != preferences_fingerprint(many[:2])


def test_pairs_that_show_a_question():
    shown = [
        Preference(id="bare", prompt="what IS it?", chosen="a", rejected="b"),
        Preference(id="form", prompt="Question: What is it?\nA. x\nAnswer:", chosen="a", rejected="b"),
        Preference(id="other", prompt="Question: What is it not?\nAnswer:", chosen="a", rejected="b"),
    ]
    assert pairs_showing(shown, ["What is it?", "Why?"]) == ["bare", "form"]
    assert pairs_showing(shown, []) == []
