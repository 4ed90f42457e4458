"""Column layouts in which question sets are published, and which of them a source has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from string import ascii_uppercase

from calib_core.data import converters
from calib_core.data.answers import Form
from calib_core.data.converters import Draft, Row
from calib_core.data.rows import NoRowsError, Rows
from calib_core.errors import ConfigError, DataFormatError, listed


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One column layout.

    Attributes:
        name: Name of the layout, for `--preset` and for reports.
        presets: The published sets that use it.
        expects: What a source of this layout looks like, for messages.
        question: The column with the question, for messages.
        choices: The column with the (first) options, for messages.
        answer: The column with the right answer.
        matches: Whether a source's columns are of this layout; the answer's column may be absent.
        converter: From all rows (some facts show in the whole file only) to the function that converts one.
        form: How answers are usually given, where files differ in it; None if the converter reads them.
        base: What numbers as answers count from, where the name of the layout says so.
        header: Names for the columns of a file that has no header.
    """

    name: str
    presets: tuple[str, ...]
    expects: str
    question: str
    choices: str
    answer: str
    matches: Callable[[Rows], bool]
    converter: Callable[[Rows], Callable[[Row], Draft]]
    form: Form | None = None
    base: int | None = None
    header: tuple[str, ...] = ()


def choose_layout(rows: Rows, preset: str = "auto") -> tuple[Layout, Rows]:
    """The layout that a source has, and its rows under the layout's column names.

    Args:
        rows: The source's rows.
        preset: "auto", a published set ("mmlu"), or a layout's own name ("medmcqa-0").

    Raises:
        ConfigError: there is no such preset.
        NoRowsError: there is a header and nothing else.
        DataFormatError: the columns are of no layout, of more than one, or there is none with answers.
    """
    # A layout without presets asserts more than columns show (where `cop` begins to count): it must be named.
    candidates = [
        layout
        for layout in LAYOUTS
        if preset in (layout.name, *layout.presets) or (preset == "auto" and layout.presets)
    ]
    if not candidates:
        raise ConfigError(f"preset is {preset!r}; give one of {', '.join(preset_names())}")
    found = [layout for layout in candidates if layout.matches(rows)]
    if not rows.n_rows and not any(layout.header for layout in found):
        raise NoRowsError(
            f"{rows.source}: no questions; the file has a header ({listed(rows.columns, 10)}) and no rows"
        )
    seen = listed([name[:80] for name in rows.columns], 40)
    if len(found) != 1:
        expected = "\n".join(f"  {layout.name}: {layout.expects}" for layout in found or candidates)
        trouble = "match several layouts; choose one with `preset`" if found else "match no known layout"
        raise DataFormatError(
            f"{rows.source}: the columns ({seen}) {trouble}.\nLayouts:\n{expected}\n"
            + ("" if found else "Rename the columns to question, choices, answer, or choose another preset.")
        )
    (layout,) = found
    if layout.header:
        rows = rows.with_columns(layout.header)
    if layout.answer not in rows.columns:
        raise DataFormatError(
            f"{rows.source}: no column {layout.answer!r} (columns: {seen}); this may be a test part "
            "published without answers: give one that has them"
        )
    return layout, rows


def preset_names() -> list[str]:
    """All values that a preset may have."""
    sets = {name for layout in LAYOUTS for name in layout.presets}
    return ["auto", *sorted(sets | {layout.name for layout in LAYOUTS})]


def presets_of(layout: Layout) -> tuple[str, str] | None:
    """The layouts that say what this one's numbers count from: from 0, and from 1."""
    names = {other.name for other in LAYOUTS}
    zero, one = f"{layout.name}-0", f"{layout.name}-1"
    return (zero, one) if {zero, one} <= names else None


def _has(*names: str) -> Callable[[Rows], bool]:
    return lambda rows: set(names) <= set(rows.columns)


def _holds(column: str, kind: type | tuple[type, ...], *others: str) -> Callable[[Rows], bool]:
    """Whether a column has values of a type (any row will do: single rows may be bad), and others exist."""
    return lambda rows: (
        {column, *others} <= set(rows.columns)
        and any(isinstance(row.get(column), kind) for _, row in rows.rows)
    )


def _headerless(rows: Rows) -> bool:
    """Whether a csv file's first record is a question, four options and a letter: MMLU's original files."""
    return len(rows.first_record) == 6 and rows.first_record[-1].strip() in tuple("ABCD")


_NATIVE = Layout(
    name="native",
    presets=("mmlu",),
    expects="question, choices (list of texts; in CSV a JSON list), answer (number of the right one, from 0; "
    "its letter, or its text) [, id, subject]",
    question="question",
    choices="choices",
    answer="answer",
    matches=_holds("choices", (list, str), "question"),
    converter=converters.native,
    form="number",
)

_NUMBERED = Layout(
    name="numbered",
    presets=("mmlu",),
    expects="question, choice0, choice1, ..., answer (number of the right one, from 0; its letter, or its "
    "text) [, id, subject]",
    question="question",
    choices="choice0",
    answer="answer",
    matches=_has("question", "choice0", "choice1"),
    converter=converters.in_columns([f"choice{i}" for i in range(100)]),
    form="number",
)


def _counting_from(layout: Layout, base: int) -> Layout:
    """The same layout for files whose answers are numbers counted from `base`."""
    return replace(
        layout,
        name=f"{layout.name}-{base}",
        presets=(),
        expects=layout.expects.replace("from 0; its letter, or its text", f"from {base}"),
        base=base,
    )


LAYOUTS: tuple[Layout, ...] = (
    _NATIVE,
    _NUMBERED,
    *(_counting_from(layout, base) for layout in (_NATIVE, _NUMBERED) for base in (0, 1)),
    Layout(
        name="lettered",
        presets=("mmlu",),
        expects="question, A, B, ..., answer (letter of the right one, its number from 0, or its text) "
        "[, id, subject]",
        question="question",
        choices="A",
        answer="answer",
        matches=_has("question", "A", "B"),
        converter=converters.in_columns(list(ascii_uppercase)),
        form="letter",
    ),
    Layout(
        name="mmlu-csv",
        presets=("mmlu",),
        expects="a csv file without a header: question, four options, letter of the right one",
        question="question",
        choices="A",
        answer="answer",
        matches=_headerless,
        converter=converters.in_columns(list(ascii_uppercase)),
        form="letter",
        header=("question", "A", "B", "C", "D", "answer"),
    ),
    Layout(
        name="medmcqa",
        presets=("medmcqa",),
        expects="question, opa, opb, opc, opd, cop (number of the right one) [, id, subject_name]",
        question="question",
        choices="opa",
        answer="cop",
        matches=_has("question", "opa", "opb", "opc", "opd"),
        converter=converters.medmcqa(None),
    ),
    *(
        Layout(
            name=f"medmcqa-{base}",
            presets=(),
            expects=f"question, opa, opb, opc, opd, cop (number of the right one, from {base})",
            question="question",
            choices="opa",
            answer="cop",
            matches=_has("question", "opa", "opb", "opc", "opd"),
            converter=converters.medmcqa(base),
        )
        for base in (0, 1)
    ),
    Layout(
        name="openbookqa-hub",
        presets=("openbookqa",),
        expects='question_stem, choices ({"text": [...], "label": [...]}), answerKey [, id]',
        question="question_stem",
        choices="choices",
        answer="answerKey",
        matches=_has("question_stem", "choices"),
        converter=converters.labelled("question_stem"),
    ),
    Layout(
        name="openbookqa-tsv",
        presets=("openbookqa",),
        expects="Question Stem, Choices (as (A) x (B) y ...), Answer Key [, ID]",
        question="Question Stem",
        choices="Choices",
        answer="Answer Key",
        matches=_has("Question Stem", "Choices"),
        converter=converters.marked,
    ),
    Layout(
        name="labelled",
        presets=("arc", "commonsenseqa"),
        expects='question, choices ({"text": [...], "label": [...]}), answerKey [, id]',
        question="question",
        choices="choices",
        answer="answerKey",
        matches=_holds("choices", dict, "question"),
        converter=converters.labelled("question"),
    ),
    Layout(
        name="nested",
        presets=("arc", "commonsenseqa", "openbookqa"),
        expects='question ({"stem": ..., "choices": [{"text": ..., "label": ...}]}), answerKey [, id]',
        question="question",
        choices="question",
        answer="answerKey",
        matches=_holds("question", dict),
        converter=converters.nested,
    ),
    Layout(
        name="sciq",
        presets=("sciq",),
        expects="question, correct_answer, distractor1, distractor2, distractor3 [, id]",
        question="question",
        choices="correct_answer",
        answer="correct_answer",
        matches=_has("question", "correct_answer", "distractor1", "distractor2", "distractor3"),
        converter=converters.sciq,
    ),
)
"""Every layout that can be read. A published set may come in several; no two fit the same columns."""

FIELDS = frozenset(
    (
        *("id", "ID", "subject", "subject_name", "question", "question_stem", "Question Stem"),
        *("choices", "Choices", "answer", "answerKey", "Answer Key", "cop", "opa", "opb", "opc", "opd"),
        *("correct_answer", "distractor1", "distractor2", "distractor3"),
        *(f"choice{i}" for i in range(100)),
        *ascii_uppercase,
    )
)
"""Every field that a layout looks at."""
