"""The prepare step: what is in the data folder, what was left out, and what is refused."""

import json

import pytest

from calib_core.data.preferences import Preference, read_preferences, write_preferences
from calib_core.data.questions import Question, fingerprint, read_questions, write_questions
from calib_core.errors import CalibError, ConfigError, DataFormatError, NotEnoughDataError
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.sizes import decidable, decidable_text
from calib_core.storage.files import read_json


def ask(text, *, name="", choices=("a", "b", "c"), answer=1):
    return Question(id=name or text, question=text, choices=choices, answer=answer)


def many(count, kind="Question"):
    return [ask(f"{kind} {i}?") for i in range(count)]


def saved(tmp_path, name, questions):
    write_questions(questions, tmp_path / f"{name}.parquet")
    return str(tmp_path / f"{name}.parquet")


def saved_pairs(tmp_path, prompts):
    pairs = [Preference(id=f"p{i}", prompt=p, chosen=" x", rejected=" y") for i, p in enumerate(prompts)]
    write_preferences(pairs, tmp_path / "pairs.parquet")
    return str(tmp_path / "pairs.parquet")


def test_one_file_is_split_into_three_folds(tmp_path):
    config = PrepareConfig(questions=saved(tmp_path, "q", many(300)), max_test=20)
    record = prepare(config, tmp_path / "data")
    folder = tmp_path / "data"
    assert sorted(path.name for path in folder.iterdir()) == [
        "calibration.parquet",
        "data.json",
        "fit.parquet",
        "test.parquet",
    ]
    assert read_json(folder / "data.json") == record
    sizes = {}
    for name, fold in record["folds"].items():
        questions, _ = read_questions(folder / f"{name}.parquet")
        assert fold == {
            "n": len(questions),
            "fingerprint": fingerprint(questions),
            "options": {"3": len(questions)},
        }
        sizes[name] = len(questions)
    assert sizes["test"] == 20
    assert 90 < sizes["fit"] < 150
    assert record["parameters"]["max_test"] == 20
    assert record["sources"]["questions"]["n_kept"] == 300
    assert (record["overlaps"], record["preferences"]) == ([], {})


def test_the_folder_depends_on_content_only(tmp_path):
    one = prepare(PrepareConfig(questions=saved(tmp_path, "q", many(60))), tmp_path / "one")
    two = prepare(PrepareConfig(questions=saved(tmp_path, "q", many(60)[::-1])), tmp_path / "two")
    assert one == two
    for name in ("fit", "calibration", "test"):
        assert (tmp_path / f"one/{name}.parquet").read_bytes() == (
            tmp_path / f"two/{name}.parquet"
        ).read_bytes()


def test_own_files_out_of_domain_and_pairs(tmp_path, capsys):
    config = PrepareConfig(
        fit=saved(tmp_path, "fit", [*many(10), ask("Shared?", name="s"), ask("Far 3?", name="f")]),
        calibration=saved(tmp_path, "calibration", [*many(5, "Steer"), ask("Far 4?", name="c")]),
        test=saved(tmp_path, "test", [*many(5, "Judge"), ask("SHARED?", name="t")]),
        out_of_domain=saved(tmp_path, "far", many(8, "Far")),
        preferences=saved_pairs(tmp_path, [f"Question: Judge {i}?\nAnswer:" for i in range(40)]),
    )
    record = prepare(config, tmp_path / "data")
    assert {name: fold["n"] for name, fold in record["folds"].items()} == {
        "fit": 10,
        "calibration": 5,
        "test": 6,
        "out_of_domain": 8,
    }
    assert [(o["dropped_from"], o["held_by"], o["ids"]) for o in record["overlaps"]] == [
        ("fit", "test", ["s"]),
        ("fit", "out_of_domain", ["f"]),
        ("calibration", "out_of_domain", ["c"]),
    ]
    assert {q.id for q in read_questions(tmp_path / "data/fit.parquet")[0]} == {q.id for q in many(10)}
    fit_pairs, _ = read_preferences(tmp_path / "data/preferences_fit.parquet")
    test_pairs, _ = read_preferences(tmp_path / "data/preferences_test.parquet")
    assert len(fit_pairs) + len(test_pairs) == 40
    assert record["preferences"]["preferences_test"]["n"] == len(test_pairs)
    showing = {
        pair.id for pair in fit_pairs if pair.prompt[:-8] in {f"Question: Judge {i}?" for i in range(5)}
    }
    assert set(record["fit_pairs_showing_held_out_questions"]) == showing
    assert showing
    said = capsys.readouterr()
    assert said.out == ""
    assert "fit: 1 questions left out that test holds" in said.err
    assert f"{len(showing)} pairs for training show a question" in said.err


def test_bad_rows_refuse_the_whole_or_are_dropped_and_recorded(tmp_path, capsys):
    path = tmp_path / "q.jsonl"
    rows = [{"question": f"Q{i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(30)]
    path.write_text("\n".join(map(json.dumps, [*rows, rows[0], rows[1] | {"answer": 5}])))
    with pytest.raises(DataFormatError, match="line 32, answer: 5 is out of range"):
        prepare(PrepareConfig(questions=str(path)), tmp_path / "data")
    assert not (tmp_path / "data").exists()
    record = prepare(PrepareConfig(questions=str(path), on_bad_row="drop"), tmp_path / "data")
    assert (record["sources"]["questions"]["n_dropped"], record["sources"]["questions"]["n_duplicates"]) == (
        1,
        1,
    )
    assert "32 rows read as native, 30 kept, 1 bad and 1 duplicate rows left out" in capsys.readouterr().err


def test_a_failed_run_leaves_an_earlier_folder_alone(tmp_path):
    good = PrepareConfig(questions=saved(tmp_path, "q", many(60)))
    before = prepare(good, tmp_path / "data")
    with pytest.raises(CalibError):
        prepare(PrepareConfig(questions=str(tmp_path / "none.csv")), tmp_path / "data")
    assert read_json(tmp_path / "data/data.json") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "q.parquet"]


def test_an_empty_fold_is_named(tmp_path):
    with pytest.raises(NotEnoughDataError, match=r"no questions for .*provide more questions, or give"):
        prepare(PrepareConfig(questions=saved(tmp_path, "q", many(1))), tmp_path / "data")
    same = saved(tmp_path, "same", many(5))
    with pytest.raises(
        NotEnoughDataError, match=r"no questions for fit, calibration \(questions: fit 0, cal"
    ):
        prepare(PrepareConfig(fit=same, calibration=same, test=same), tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_pairs_on_one_prompt_cannot_be_split(tmp_path):
    config = PrepareConfig(
        questions=saved(tmp_path, "q", many(60)), preferences=saved_pairs(tmp_path, ["Why?"])
    )
    with pytest.raises(NotEnoughDataError, match="1 pairs give 0 to train on and 1 to test on"):
        prepare(config, tmp_path / "data")


@pytest.mark.parametrize(
    "sources",
    [{}, {"questions": "q", "fit": "f"}, {"fit": "f", "test": "t"}, {"fit": "f", "calibration": "c"}],
)
def test_sources_that_do_not_go_together(sources):
    with pytest.raises(ConfigError, match=r"give `questions` alone .* or all of `fit`, `calib"):
        PrepareConfig(**sources)


def test_all_errors_of_a_config_come_together():
    with pytest.raises(ConfigError) as caught:
        PrepareConfig(
            questions="q",
            preset="x",
            on_bad_row="y",
            fit_fraction=0.9,
            max_fit=-1,
            preference_test_fraction=1.0,
        )
    for part in (
        "`preset` is 'x'",
        "`on_bad_row` is 'y'",
        "`max_fit` is -1",
        "`preference_test_fraction` is 1.0",
        "`fit_fraction` 0.9 and `calibration_fraction` 0.3 leave nothing for test",
    ):
        assert part in str(caught.value)


def test_it_says_what_so_many_questions_can_decide_and_which_shares_would_do(tmp_path, capsys):
    record = prepare(PrepareConfig(questions=saved(tmp_path, "q", many(1100))), tmp_path / "data")
    found, sizes = record["regime_test"], {name: fold["n"] for name, fold in record["folds"].items()}
    assert sizes["calibration"] < found["needed"] == 355 < sizes["fit"]
    assert not found["is_enough"]
    assert 0.08 < found["smallest_target_ece"] < 0.09
    shares = {name: value for name, value in found["fractions"].items() if name != "sizes"}
    said = capsys.readouterr().err
    assert "too few to name the regime at the default target_ece of 0.08" in said
    assert f"these are enough from target_ece {found['smallest_target_ece']:g} on" in said
    assert f"fit_fraction {shares['fit_fraction']:g} and calibration_fraction" in said
    again = prepare(PrepareConfig(questions=str(tmp_path / "q.parquet"), **shares), tmp_path / "again")
    assert again["regime_test"]["is_enough"]
    assert {name: fold["n"] for name, fold in again["folds"].items()} == found["fractions"]["sizes"]
    assert "these are enough down to target_ece" in capsys.readouterr().err


def test_no_shares_are_named_where_none_would_do(tmp_path, capsys):
    record = prepare(PrepareConfig(questions=saved(tmp_path, "q", many(300))), tmp_path / "data")
    assert record["regime_test"]["fractions"] is None
    assert "provide more questions" in capsys.readouterr().err
    few = {"fit": 2, "calibration": 2, "test": 2}
    assert "these are enough for no target; provide more" in decidable_text(few, decidable(few, None))
