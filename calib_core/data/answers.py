"""Which option an answer means, told by the whole file: a number, a letter, or the option's own text.

A file says one thing in all its rows. So its answers are read in the one way in which they make sense
together, and where two ways do and mean different options, or numbers look as if they counted from 1, the
file is refused: an answer that is off by one would pass every other check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, Literal

from calib_core.data.texts import exact_text
from calib_core.data.values import is_missing, whole_number
from calib_core.errors import DataFormatError, short

Form = Literal["number", "letter", "text"]
MIN_OPTIONS, MAX_OPTIONS = 2, 26  # one letter per option, A to Z

FORMS: tuple[Form, ...] = ("number", "letter", "text")
CHANCE = 0.01
"""Numbers count from 1, it is taken, where no 0 among so many that count from 0 has a smaller chance."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A row's answer as it is in the file, and its options.

    Attributes:
        row: The row's number.
        value: The answer.
        choices: The options' texts.
    """

    row: int
    value: Any
    choices: Sequence[str]


def answer_reader(
    answers: Sequence[Answered],
    *,
    source: str,
    unit: str,
    field: str,
    usual: Form,
    base: int | None,
    presets: tuple[str, str] | None,
) -> Callable[[Answered], int | str]:
    """The way in which a file's answers are read.

    Args:
        answers: All answers whose rows have options.
        source: The file, for messages.
        unit: What a row's number counts.
        field: The column.
        usual: The form that the layout names; taken where the rows don't show another one.
        base: What numbers count from, where the user said so; else None. Then all answers are numbers.
        presets: The layouts that say that numbers count from 0, and from 1; None if there are none.

    Returns:
        A function that gives the index of the right option, from 0, or what is wrong with the answer.

    Raises:
        DataFormatError: it can't be told what the answers mean, or they look as if they counted from 1.
    """
    if base is not None:
        return lambda answered: _index_of_number(answered, base)
    given = [answered for answered in answers if not is_missing(answered.value)]
    choose = f"; choose the preset {presets[0]} or {presets[1]}" if presets else ""
    form = _form(given, usual, f"{source}: column {field}", unit, choose)
    if form == "number":
        _refuse_one_based(given, f"{source}: column {field}", unit, choose)
    return {"number": lambda answered: _index_of_number(answered, 0), "letter": _letter, "text": _text}[form]


def _form(given: Sequence[Answered], usual: Form, column: str, unit: str, choose: str) -> Form:
    """The form that makes sense of the most answers."""
    fits: Counter[Form] = Counter()
    for answered in given:
        fits.update(_meanings(answered).keys())
    most = max(fits.values(), default=0)
    best = [form for form in FORMS if fits[form] == most]
    chosen = usual if usual in best else best[0]
    if most == 0 or len(best) == 1:
        return chosen
    for answered in given:
        found = _meanings(answered)
        for other in best:
            if other in found and chosen in found and found[other] != found[chosen]:
                raise DataFormatError(
                    f"{column}: it is ambiguous whether its values are the {chosen}s of the right "
                    f"options or their {other}s, as {short(answered.value)} in {unit} {answered.row}, "
                    f"and they mean different ones{choose}"
                )
    return chosen


def _meanings(answered: Answered) -> dict[Form, int]:
    """The index of the option that an answer means, by each form in which it means one."""
    found: dict[Form, int] = {}
    value, n = answered.value, len(answered.choices)
    number = whole_number(value)
    # Counted from 1 the last option's number is one more: which of both it is is asked later.
    if number is not None and 0 <= number <= n:
        found["number"] = number
    if isinstance(value, str):
        for form, read in (("letter", _letter), ("text", _text)):
            index = read(answered)
            if isinstance(index, int):
                found[form] = index  # type: ignore[index]
    return found


def _index_of_number(answered: Answered, base: int) -> int | str:
    number = whole_number(answered.value)
    counted = f"counted from {base}"
    if number is None:
        return f"{short(answered.value)} is not a whole number; give the right option's, {counted}"
    last = len(answered.choices) - 1 + base
    if not base <= number <= last:
        return f"{short(number)} is out of range; give {base} to {last}" + f" ({counted})" * (base > 0)
    return number - base


def _letter(answered: Answered) -> int | str:
    letters = ascii_uppercase[: len(answered.choices)]
    value = answered.value.strip().upper() if isinstance(answered.value, str) else ""
    if len(value) == 1 and value in letters:
        return letters.index(value)
    return f"{short(answered.value)} is not one of the letters A to {letters[-1]}"


def _text(answered: Answered) -> int | str:
    texts = [exact_text(choice) for choice in answered.choices]
    value = exact_text(answered.value) if isinstance(answered.value, str) else ""
    if texts.count(value) == 1:
        return texts.index(value)
    return f"{short(answered.value)} is not the text of an option"


def _refuse_one_based(given: Sequence[Answered], column: str, unit: str, choose: str) -> None:
    """Refuse numbers that look as if they counted from 1.

    Raises:
        DataFormatError: more of them are the number of options, which counted from 0 is out of range, than
            are 0; or none is 0 although by chance some would be, and the user can say what they count from.
    """
    zeros, tops, chance = 0, [], 1.0
    for answered in given:
        number, n = whole_number(answered.value), len(answered.choices)
        if number is None or n < MIN_OPTIONS:
            continue
        zeros += number == 0
        if number == n:
            tops.append(answered.row)
        chance *= 1 - 1 / n
    if len(tops) <= zeros and (zeros or chance >= CHANCE or not choose):
        return
    few = f"{zeros:,} of {len(given):,} answers are 0" if zeros else "no answer is 0"
    what = (
        f"{len(tops):,} are the number of their options (first: {unit} {tops[0]})"
        if tops
        else f"counted from 0 that has a chance of {chance:.1g} among {len(given):,} answers"
    )
    advice = f"subtract 1 from each{choose.replace('; choose', ', or choose')}"
    raise DataFormatError(f"{column} looks 1-based (counted from 1): {few}, and {what}; {advice}")
