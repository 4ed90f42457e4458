"""Questions in disguise are found, kept together and counted; questions from one template stay apart."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calib_core.data.folds import FOLDS, folds_from_files, split_questions
from calib_core.data.questions import Question
from calib_core.data.similar import SMALL_GROUP, near_groups
from calib_core.data.stream import Snapshot, known_questions, read_fresh
from calib_core.data.texts import normalize_text
from calib_core.steps.prepare import PrepareConfig, prepare

N = 60
RNG = random.Random(3)  # noqa: S311
TEST = [
    Question(
        id=f"t{i}",
        question=f"Which city lies furthest to the north of river number {i} in the old kingdom?",
        choices=(f"alpha {i}", f"beta {i}", f"gamma {i}", f"delta {i}"),
        answer=i % 4,
    )
    for i in range(N)
]

Disguise = Callable[[Question], Question]


def text(change: Callable[[str], str]) -> Disguise:
    return lambda question: replace(question, question=change(question.question))


def options(change: Callable[[str], str]) -> Disguise:
    return lambda question: replace(question, choices=tuple(map(change, question.choices)))


def turned(question: Question) -> Question:
    return replace(question, choices=question.choices[::-1], answer=3 - question.answer)


def misspelt(question: Question) -> Question:
    """One letter left out, doubled, changed or swapped with its neighbour, in a word without digits."""
    words = question.question.split(" ")
    place = RNG.choice([i for i, word in enumerate(words) if word.isalpha() and len(word) > 4])
    word = words[place]
    at = RNG.randrange(1, len(word) - 1)
    words[place] = RNG.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at] + word[at:],
            word[:at] + ("x" if word[at] != "x" else "y") + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        ]
    )
    return replace(question, question=" ".join(words))


DISGUISES: dict[str, Disguise] = {
    "another id": lambda question: question,
    "white space": text(lambda t: "  " + t.replace(" ", "  ") + "\n"),
    "case": text(str.upper),
    "wide letters and spaces": text(lambda t: t.replace(" ", "\u00a0").replace("W", "\uff37")),
    "mathematical letters": text(
        lambda t: t.replace("Which", "\U0001d416\U0001d421\U0001d422\U0001d41c\U0001d421")
    ),
    "options turned": turned,
    "options numbered": lambda question: replace(
        question, choices=tuple(f"{letter}. {t}" for letter, t in zip("ABCD", question.choices, strict=True))
    ),
    "options shouted": options(str.upper),
    "other options": lambda question: replace(question, choices=("one", "two", "three", "four")),
    "another answer": lambda question: replace(question, answer=(question.answer + 1) % 4),
    "no question mark": text(lambda t: t.rstrip("?")),
    "more punctuation": text(lambda t: t.replace("?", " ?!").replace("river", "river,")),
    "zero-width space": text(lambda t: t.replace("city", "ci\u200bty")),
    "soft hyphen": text(lambda t: t.replace("city", "ci\u00adty")),
    "bidirectional marks": text(lambda t: "\u200e\u202a" + t + "\u202c"),
    "byte order mark": text(lambda t: "\ufeff" + t),
    "variation selectors and tags": text(lambda t: t.replace("r", "r\ufe0f") + "\U000e0041"),
    "accents": text(lambda t: t.replace("e", "\u00e9")),
    "combining marks": text(lambda t: t.replace("o", "o\u0308")),
    "look-alike letters": text(lambda t: t.replace("o", "\u043e").replace("i", "\u0456")),
    "Question: in front": text(lambda t: "Question: " + t),
    "bold label in front": text(lambda t: "**Question 7:** " + t),
    "12. in front": text(lambda t: "12. " + t),
    "Q12) in front": text(lambda t: "Q12) " + t),
    "(b) in front": text(lambda t: "(b) " + t),
    "Answer: behind": text(lambda t: t + "\nAnswer:"),
    "HTML entity": text(lambda t: t.replace("?", "&#63;")),
    "an entity of an entity": text(lambda t: t.replace(" ", "&amp;nbsp;").replace("?", "&amp;amp;#63;")),
    "ties": text(lambda t: t.replace(" ", "~")),
    "blank patterns": text(lambda t: t.replace(" ", " \u2800").replace("city", "ci\u2800ty")),
    "small capitals": text(lambda t: t.replace("river", "\u0280\u026a\u1d20\u1d07\u0280")),
    "a beginning that is in it again": text(lambda t: f'Which of them? A student asks: "{t}"'),
    "HTML tags": text(lambda t: f"<p><b>{t}</b></p>"),
    "another dash": text(lambda t: t.replace("old kingdom", "old\u2011kingdom")),
    "a hyphenated line end": text(lambda t: t.replace("furthest", "fur-\nthest")),
    "quotes": text(lambda t: "\u201c" + t + "\u201d"),
    "an ellipsis": text(lambda t: t.replace("?", "\u2026")),
    "a typo": text(lambda t: t.replace("furthest", "farthest")),
    "letters wrong at random": misspelt,
    "a typo in an option": lambda question: replace(
        question, choices=(question.choices[0].replace("alpha", "alhpa"), *question.choices[1:])
    ),
    "a word more": text(lambda t: t.replace("Which city", "Which one city")),
    "a word less": text(lambda t: t.replace("old ", "")),
    "a word in two pieces": text(lambda t: t.replace("kingdom", "king dom")),
    "something in front": text(lambda t: "Read carefully, then take one of the options below. " + t),
    "something behind": text(lambda t: t + " Choose the best answer."),
    "options in the text": lambda question: replace(
        question, question=" ".join([question.question, *question.choices])
    ),
    "a typo, turned, quoted": lambda question: turned(
        text(lambda t: f"'{t.replace('lies', 'leis')}'")(question)
    ),
}


def disguised(name: str, questions: list[Question]) -> list[Question]:
    return [replace(DISGUISES[name](question), id=f"f{question.id}") for question in questions]


@pytest.mark.parametrize("name", DISGUISES)
def test_a_test_question_in_disguise_leaves_fit_and_one_file_keeps_both_in_one_fold(name: str) -> None:
    hidden = disguised(name, TEST)
    others = [
        replace(q, id=f"c{q.id}", question=f"Steering only, {q.question.split()[-4]} {q.id}?") for q in TEST
    ]
    folds = folds_from_files(hidden, others, TEST)
    assert (len(folds.fit), len(folds.calibration), len(folds.test)) == (0, N, N)
    together = split_questions([*TEST, *hidden])
    fold_of = {question.id: fold for fold in FOLDS for question in getattr(together, fold)}
    assert all(fold_of[question.id] == fold_of[f"f{question.id}"] for question in TEST)
    assert {fold_of[question.id] for question in TEST} == set(FOLDS)
    assert (len(together.alike), {len(group) for group in together.alike}) == (N, {2})


TEMPLATES: dict[str, list[tuple[str, tuple[str, ...], int]]] = {
    "numbers": [(f"Is {i} a prime number?", ("yes", "no"), i % 2) for i in range(400)],
    "decimals": [(f"How much is {i}.5 times two?", (f"{2 * i + 1}", f"{i}"), 0) for i in range(60)],
    "operators": [
        (f"What is 12 {sign} 3?", ("15", "9", "36", "4"), i % 4) for i, sign in enumerate("+-×÷<>")
    ],
    "names": [
        (f"Is the city of {city} in the country of {country}?", ("yes", "no"), (i + j) % 2)
        for i, city in enumerate(("Paris", "Lyon", "Turin", "Porto", "Graz", "Bern", "Brno"))
        for j, country in enumerate(("France", "Italy", "Portugal", "Austria", "Czechia", "Spain"))
    ],
    "short names": [(f"What borders {name} in the west?", ("sea", "land"), 0) for name in ("Iran", "Iraq")]
    * 1
    + [
        (f"What borders {name} in the west?", ("sea", "land"), 0)
        for name in ["Mali", "Peru", "Chad", "Cuba", "Oman"]
    ],
    "capitals": [
        (f"What is the capital of {a}?", (b, "Rome", "Oslo"), 0)
        for a, b in (("Gambia", "Banjul"), ("Zambia", "Lusaka"), ("Niger", "Niamey"), ("Nigeria", "Abuja"))
    ],
    "units": [("How many mW is that?", ("1", "2"), 0), ("How many watts is that?", ("1", "2"), 0)],
    "letters": [(f"Which food has much vitamin {x}?", ("liver", "milk"), 0) for x in "ABCDEK"],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_questions_of_one_template_stay_apart(name: str) -> None:
    questions = [
        Question(id=str(i), question=t, choices=c, answer=a) for i, (t, c, a) in enumerate(TEMPLATES[name])
    ]
    assert near_groups(questions).tolist() == list(range(len(questions)))


@pytest.mark.parametrize(
    "name", ["a typo", "a word more", "something in front", "something behind", "a word less"]
)
def test_disguises_are_found_among_many_questions_with_the_same_options(name: str) -> None:
    subjects = [
        "amber",
        "basalt",
        "copper",
        "dolomite",
        "emerald",
        "feldspar",
        "granite",
        "hematite",
        "ivory",
    ]
    places = ["harbour", "village", "province", "mountain", "peninsula", "lowland", "archipelago", "desert"]
    yes = [
        Question(
            id=f"{s}-{p}-{i}",
            question=f"Was {s} from the {p} lying furthest north carried along the old road to city {i}?",
            choices=("yes", "no"),
            answer=i % 2,
        )
        for s in subjects
        for p in places
        for i in range(3)
    ]
    assert len(yes) > SMALL_GROUP
    changes: dict[str, Disguise] = DISGUISES | {
        "a word more": text(lambda t: t.replace("the old", "the very old")),
    }
    hidden = [replace(changes[name](question), id=f"f{question.id}") for question in yes]
    groups = near_groups([*yes, *hidden])
    assert groups.tolist() == [*range(len(yes)), *range(len(yes))]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.sampled_from([*TEST[:6], *disguised("a typo", TEST[:6]), *disguised("case", TEST[6:9])]),
        max_size=12,
    )
)
def test_groups_depend_on_the_questions_and_not_on_their_order(questions: list[Question]) -> None:
    def partition(some: list[Question]) -> set[frozenset[str]]:
        members: dict[int, set[str]] = {}
        for question, root in zip(some, near_groups(some).tolist(), strict=True):
            members.setdefault(root, set()).add(question.id)
        return {frozenset(group) for group in members.values()}

    assert partition(questions) == partition(questions[::-1])


def test_nothing_and_one() -> None:
    assert near_groups([]).tolist() == []
    assert near_groups(TEST[:1]).tolist() == [0]
    assert near_groups(TEST[:1]).dtype == np.int64


def test_what_was_left_out_and_kept_together_is_counted_and_listed(tmp_path, capsys) -> None:
    def saved(name: str, questions: list[Question]) -> str:
        rows = [
            {"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer} for q in questions
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    config = PrepareConfig(questions=saved("q.jsonl", [*TEST, *disguised("a typo", TEST[:2])]))
    record = prepare(config, tmp_path / "one")
    assert record["alike"] == {"n_groups": 2, "n_questions": 4, "groups": [["ft0", "t0"], ["ft1", "t1"]]}
    assert "4 questions are nearly the same as others, in 2 groups" in capsys.readouterr().err
    plain = [
        Question(id=f"p{i}", question=f"Plain {i}?", choices=("a", "b"), answer=i % 2) for i in range(20)
    ]
    files = {
        "fit": saved("fit.jsonl", [*disguised("a word more", TEST[:3]), *plain[:9]]),
        "calibration": saved("calibration.jsonl", plain[9:]),
        "test": saved("test.jsonl", TEST),
    }
    record = prepare(PrepareConfig(**files), tmp_path / "two")
    assert [(o["n"], o["n_near"], o["ids"]) for o in record["overlaps"]] == [(3, 3, ["ft0", "ft1", "ft2"])]
    assert "3 questions left out that test holds (3 of them in other words)" in capsys.readouterr().err


def test_a_stream_keeps_a_question_in_disguise_in_the_fold_of_the_first(tmp_path) -> None:
    (tmp_path / "stream").mkdir()

    def put(name: str, questions: list[Question]) -> None:
        rows = [
            {"id": q.id, "question": q.question, "choices": q.choices, "answer": q.answer} for q in questions
        ]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    put("stream/1.jsonl", TEST)
    first = read_fresh(tmp_path / "stream", Snapshot())
    put("stream/2.jsonl", [*disguised("a typo", TEST[:20]), *disguised("something in front", TEST[20:30])])
    (tmp_path / "snapshot").mkdir()
    first.snapshot.write(tmp_path / "snapshot")
    second = read_fresh(tmp_path / "stream", Snapshot.read(tmp_path / "snapshot"))
    assert second.counts["rows_alike"] == 30
    assert all(second.anchors[f"f{q.id}"] == first.anchors[q.id] for q in TEST[:30])
    trained = Snapshot(trained_on=known_questions(TEST[:5]))
    third = read_fresh(tmp_path / "stream", trained)
    assert third.counts["rows_trained_on"] == 10
    assert {q.id for q in third.questions}.isdisjoint({f"{p}t{i}" for p in ("", "f") for i in range(5)})


@settings(deadline=None)
@given(st.text())
def test_the_loose_key_of_any_text_has_no_white_space_around_and_is_not_empty(given_text: str) -> None:
    key = normalize_text(given_text)
    assert key == key.strip()
    assert bool(key) == bool(given_text.strip()) or not key
