"""Three folds with three jobs: fit is trained on, calibration steers, test judges; no question is in two.

A question's place is a hash of its loose text alone (`calib_core.data.texts`). So it never moves when data
grow or are reordered, and two questions with the same text and other options are always in the same fold.
Questions that are nearly the same (`calib_core.data.similar`) go where one of them, chosen by a hash, goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from calib_core.data.questions import Question, content_key
from calib_core.data.record import AlikeRecord, OverlapRecord
from calib_core.data.similar import near_groups
from calib_core.data.texts import loose_hash
from calib_core.errors import ConfigError, DataFormatError

FOLDS = ("fit", "calibration", "test")
GROUPS_RECORDED = 100
"""How many groups of nearly equal questions a record lists; all are counted."""


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """Questions dropped from one fold because another one holds the same question, or nearly the same.

    Attributes:
        dropped_from: Name of the fold that gave them up.
        held_by: Name of the fold that kept them.
        ids: Ids of the dropped questions.
        n_same_options: How many of them also have the same options there, so are the very same question.
        n_near: How many of them have another text there: a typo, a word more, something put in front.
    """

    dropped_from: str
    held_by: str
    ids: tuple[str, ...]
    n_same_options: int
    n_near: int

    def to_dict(self) -> OverlapRecord:
        """The overlap as JSON values."""
        return {
            "dropped_from": self.dropped_from,
            "held_by": self.held_by,
            "n": len(self.ids),
            "n_same_options": self.n_same_options,
            "n_near": self.n_near,
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
        alike: Ids of questions that are nearly the same and were therefore kept in one fold, by groups.
    """

    fit: tuple[Question, ...]
    calibration: tuple[Question, ...]
    test: tuple[Question, ...]
    overlaps: tuple[Overlap, ...] = ()
    alike: tuple[tuple[str, ...], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Sizes and overlaps as JSON values."""
        return {name: len(getattr(self, name)) for name in FOLDS} | {
            "overlaps": [overlap.to_dict() for overlap in self.overlaps],
            "alike": alike_record(self.alike),
        }


def alike_record(groups: Collection[Sequence[str]]) -> AlikeRecord:
    """Groups of nearly equal questions as JSON values: all counted, the first 100 listed."""
    return {
        "n_groups": len(groups),
        "n_questions": sum(map(len, groups)),
        "groups": [list(group) for group in list(groups)[:GROUPS_RECORDED]],
    }


def text_hash(question: Question) -> bytes:
    """Stable hash of a question's loose text, whatever its options: it says which fold the question is in."""
    return loose_hash(question.question)


def anchors_of(
    questions: Sequence[Question], *, known: Mapping[str, bytes] | None = None
) -> dict[str, bytes]:
    """The text that decides each question's fold: its own, or that of one of those that are nearly the same.

    Args:
        questions: Questions, each with an id of its own.
        known: Id -> anchor of those among them whose fold was decided earlier; they keep it, and of several
        in one group the first one's counts for the others.

    Returns:
        Id -> anchor (a `text_hash`) of all questions; those that are nearly the same have the same.
    """
    known = known or {}
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(near_groups(questions).tolist()):
        members[root].append(index)
    anchors: dict[str, bytes] = {}
    for group in members.values():
        names = [questions[index].id for index in group]
        decided = [known[name] for name in names if name in known]
        # Compared from behind: places are made of the first bytes, and no fold is to be favoured.
        anchor = decided[0] if decided else min((text_hash(questions[i]) for i in group), key=_from_behind)
        anchors.update((name, known.get(name, anchor)) for name in names)
    return anchors


def split_questions(
    questions: Sequence[Question],
    *,
    fractions: tuple[float, float, float] = (0.4, 0.3, 0.3),
    limits: tuple[int, int, int] = (0, 0, 0),
    anchors: Mapping[str, bytes] | None = None,
) -> Folds:
    """Split questions over the folds by a stable hash.

    Args:
        questions: Questions of one source.
        fractions: Shares of fit, calibration and test; each above 0, together 1.
        limits: Most questions of each fold (0: no limit); the ones with the smallest hashes stay.
        anchors: Id -> the text hash that decides the fold, where `anchors_of` was asked already.

    Raises:
        ConfigError: fractions or limits make no sense.
    """
    if any(not share > 0 for share in fractions) or abs(sum(fractions) - 1) > 1e-9:
        raise ConfigError(f"fractions are {fractions}; give three shares above 0 that add up to 1")
    anchors = anchors_of(questions) if anchors is None else anchors
    bounds = (fractions[0], fractions[0] + fractions[1])
    parts: tuple[list[Question], ...] = ([], [], [])
    for question in questions:
        place = _place(anchors[question.id])
        parts[sum(place >= bound for bound in bounds)].append(question)
    return _folds(parts, limits, alike=_alike(questions, anchors))


def folds_from_files(
    fit: Sequence[Question],
    calibration: Sequence[Question],
    test: Sequence[Question],
    *,
    limits: tuple[int, int, int] = (0, 0, 0),
) -> Folds:
    """Folds from files of the user's own: what two of them share stays in the one that judges.

    A question is dropped from fit where calibration or test has one with the same text or nearly the same,
    and from calibration where test has. Options don't count under the same text: others can give the answer
    away as well.

    Args:
        fit: Questions to train on.
        calibration: Questions to steer by.
        test: Questions to judge by.
        limits: Most questions of each fold (0: no limit); the ones with the smallest hashes stay.
    """
    parts, overlaps = keep_apart({"fit": fit, "calibration": calibration, "test": test})
    return _folds([parts[name] for name in FOLDS], limits, overlaps)


def keep_apart(
    parts: Mapping[str, Sequence[Question]],
) -> tuple[dict[str, tuple[Question, ...]], tuple[Overlap, ...]]:
    """Parts of which no two share a question, nor nearly the same one: the last one that has it keeps it.

    Args:
        parts: Questions by the name of their part, the ones that judge last.

    Returns:
        The parts without what was dropped, and what was.
    """
    names = list(parts)
    everything = [question for part in parts.values() for question in part]
    owner = [place for place, part in enumerate(parts.values()) for _ in part]
    roots = near_groups(everything).tolist()
    holder: dict[int, int] = {}
    members: dict[int, list[int]] = defaultdict(list)
    for index, root in enumerate(roots):
        holder[root] = max(holder.get(root, 0), owner[index])
        members[root].append(index)
    kept: list[list[Question]] = [[] for _ in names]
    dropped: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, root in enumerate(roots):
        if owner[index] == holder[root]:
            kept[owner[index]].append(everything[index])
        else:
            dropped[owner[index], holder[root]].append(index)
    overlaps = []
    for (place, held_by), indices in sorted(dropped.items(), key=lambda item: (item[0][0], -item[0][1])):
        held = {
            root: [everything[other] for other in members[root] if owner[other] == held_by]
            for root in {roots[index] for index in indices}
        }
        keys = {root: set(map(content_key, group)) for root, group in held.items()}
        texts = {root: set(map(text_hash, group)) for root, group in held.items()}
        overlaps.append(
            Overlap(
                dropped_from=names[place],
                held_by=names[held_by],
                ids=tuple(everything[index].id for index in indices),
                n_same_options=sum(content_key(everything[i]) in keys[roots[i]] for i in indices),
                n_near=sum(text_hash(everything[i]) not in texts[roots[i]] for i in indices),
            )
        )
    return {name: tuple(part) for name, part in zip(names, kept, strict=True)}, tuple(overlaps)


def check_disjoint(folds: Folds) -> None:
    """Check that no text of a question is in two folds.

    Raises:
        DataFormatError: one is; the message names the first ones.
    """
    texts = {name: {text_hash(question): question.id for question in getattr(folds, name)} for name in FOLDS}
    for one, other in combinations(FOLDS, 2):
        if shared := sorted(texts[one].keys() & texts[other].keys()):
            examples = ", ".join(f"{texts[one][text]!r}" for text in shared[:20])
            raise DataFormatError(
                f"folds {one} and {other} share {len(shared)} questions (ids in {one}: {examples}); "
                "split them again with split_questions or folds_from_files"
            )


def _folds(
    parts: Iterable[Sequence[Question]],
    limits: tuple[int, int, int],
    overlaps: tuple[Overlap, ...] = (),
    alike: tuple[tuple[str, ...], ...] = (),
) -> Folds:
    """Folds in the order of their hashes, cut to their limits, and checked."""
    if any(limit < 0 for limit in limits):
        raise ConfigError(f"limits are {limits}; give 0 (no limit) or more")
    fit, calibration, test = (
        tuple(sorted(part, key=lambda question: (text_hash(question), question.id))[: limit or None])
        for part, limit in zip(parts, limits, strict=True)
    )
    folds = Folds(fit=fit, calibration=calibration, test=test, overlaps=overlaps, alike=alike)
    check_disjoint(folds)
    return folds


def _alike(questions: Sequence[Question], anchors: Mapping[str, bytes]) -> tuple[tuple[str, ...], ...]:
    """Ids of the questions that share an anchor, by groups, in an order that doesn't depend on theirs."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for question in questions:
        groups[anchors[question.id]].append(question.id)
    return tuple(sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1))


def _from_behind(digest: bytes) -> bytes:
    return digest[::-1]


def _place(anchor: bytes) -> float:
    """The place in [0, 1) of the questions with this anchor."""
    return int.from_bytes(anchor[:8]) / 2**64
