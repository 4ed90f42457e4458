"""Three folds with three jobs: fit is trained on, calibration steers, test judges; no question is in two.

A question's place is a hash of its normalized text alone. So it never moves when data grow or are reordered,
and two questions with the same text and other options are always in the same fold.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from calib_core.data.questions import Question, content_key
from calib_core.data.texts import normalize_text
from calib_core.errors import ConfigError, DataFormatError

FOLDS = ("fit", "calibration", "test")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Questions dropped from one fold because another one holds a question with the same text.

    Attributes:
        dropped_from: Name of the fold that gave them up.
        held_by: Name of the fold that kept them.
        ids: Ids of the dropped questions.
        n_same_options: How many of them also have the same options there, so are the very same question.
    """

    dropped_from: str
    held_by: str
    ids: tuple[str, ...]
    n_same_options: int

    def to_dict(self) -> dict[str, Any]:
        """The overlap as JSON values."""
        return {
            "dropped_from": self.dropped_from,
            "held_by": self.held_by,
            "n": len(self.ids),
            "n_same_options": self.n_same_options,
            "ids": list(self.ids),
        }


@dataclass(frozen=True, kw_only=True)
class Folds:
    """The three folds, each in an order that doesn't depend on the input's.

    Attributes:
        fit: Questions to train on.
        calibration: Questions for the regime test, E-step, stopping and temperature; never trained on.
        test: Questions for the gate and the report, and nothing else.
        overlaps: What had to be dropped to keep the folds apart.
    """

    fit: tuple[Question, ...]
    calibration: tuple[Question, ...]
    test: tuple[Question, ...]
    overlaps: tuple[Overlap, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Sizes and overlaps as JSON values."""
        return {name: len(getattr(self, name)) for name in FOLDS} | {
            "overlaps": [overlap.to_dict() for overlap in self.overlaps]
        }


def split_questions(
    questions: Sequence[Question],
    *,
    fractions: tuple[float, float, float] = (0.4, 0.3, 0.3),
    limits: tuple[int, int, int] = (0, 0, 0),
) -> Folds:
    """Split questions over the folds by a stable hash.

    Args:
        questions: Questions of one source.
        fractions: Shares of fit, calibration and test; each above 0, together 1.
        limits: Most questions of each fold (0: no limit); the ones with the smallest hashes stay.

    Raises:
        ConfigError: fractions or limits make no sense.
    """
    if any(not share > 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions are {fractions}; give three shares above 0 that add up to 1")
    bounds = (fractions[0], fractions[0] + fractions[1])
    parts: tuple[list[Question], ...] = ([], [], [])
    for question in questions:
        place = _place(question)
        parts[sum(place >= bound for bound in bounds)].append(question)
    return _folds(parts, limits)


def folds_from_files(
    fit: Sequence[Question],
    calibration: Sequence[Question],
    test: Sequence[Question],
    *,
    limits: tuple[int, int, int] = (0, 0, 0),
) -> Folds:
    """Folds from files of the user's own: what two of them share stays in the one that judges.

    A question is dropped from fit where calibration or test has one with the same text, and from calibration
    where test has. Options don't count: other options under the same text can give the answer away as well.

    Args:
        fit: Questions to train on.
        calibration: Questions to steer by.
        test: Questions to judge by.
        limits: Most questions of each fold (0: no limit); the ones with the smallest hashes stay.
    """
    calibration, from_calibration = drop_shared(calibration, test, "calibration", "test")
    fit, from_fit = drop_shared(fit, test, "fit", "test")
    fit, also_from_fit = drop_shared(fit, calibration, "fit", "calibration")
    overlaps = tuple(overlap for overlap in (from_fit, also_from_fit, from_calibration) if overlap.ids)
    return _folds((fit, calibration, test), limits, overlaps)


def drop_shared(
    questions: Sequence[Question], held: Sequence[Question], name: str, holder: str
) -> tuple[tuple[Question, ...], Overlap]:
    """`questions` without those whose text is among `held`, and what was dropped."""
    texts = {normalize_text(question.question) for question in held}
    keys = {content_key(question) for question in held}
    kept: list[Question] = []
    dropped: list[Question] = []
    for question in questions:
        (dropped if normalize_text(question.question) in texts else kept).append(question)
    overlap = Overlap(
        dropped_from=name,
        held_by=holder,
        ids=tuple(question.id for question in dropped),
        n_same_options=sum(content_key(question) in keys for question in dropped),
    )
    return tuple(kept), overlap


def check_disjoint(folds: Folds) -> None:
    """Check that no text of a question is in two folds.

    Raises:
        DataFormatError: one is; the message names the first ones.
    """
    texts = {
        name: {normalize_text(question.question): question.id for question in getattr(folds, name)}
        for name in FOLDS
    }
    for one, other in combinations(FOLDS, 2):
        if shared := sorted(texts[one].keys() & texts[other].keys()):
            examples = ", ".join(f"{texts[one][text]!r}" for text in shared[:20])
            raise DataFormatError(
                f"folds {one} and {other} share {len(shared)} questions (ids in {one}: {examples}); "
                "split them anew with split_questions or folds_from_files"
            )


def _folds(
    parts: Iterable[Sequence[Question]], limits: tuple[int, int, int], overlaps: tuple[Overlap, ...] = ()
) -> Folds:
    """Folds in the order of their hashes, cut to their limits, and checked."""
    if any(limit < 0 for limit in limits):
        raise ConfigError(f"limits are {limits}; give 0 (no limit) or more")
    fit, calibration, test = (
        tuple(sorted(part, key=lambda question: (_place(question), question.id))[: limit or None])
        for part, limit in zip(parts, limits, strict=True)
    )
    folds = Folds(fit=fit, calibration=calibration, test=test, overlaps=overlaps)
    check_disjoint(folds)
    return folds


def _place(question: Question) -> float:
    """The question's place in [0, 1)."""
    text = f"fold:{normalize_text(question.question)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64
