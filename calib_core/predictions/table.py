"""The table of option logits that scoring leaves and that everything after it reads.

A table is made here or elsewhere: ours has a column `logits` and a protocol that says how it was made; other
tools' tables may have `logprobs` or `probs` instead. What is missing is refused, never filled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from calib_core.data.answers import MAX_OPTIONS, MIN_OPTIONS
from calib_core.data.rows import Problem, said_once
from calib_core.errors import ConfigError, DataFormatError
from calib_core.predictions.clusters import CLUSTER_BY, cluster_index
from calib_core.predictions.digests import content_digest
from calib_core.predictions.reading import (
    SUM_TOLERANCE,
    checked_scores,
    to_logits,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Predictions:
    """What a model says about N questions with up to K options each.

    Arrays are copied and made read-only. Columns that no row uses are dropped, so that K is the largest
    number of options.

    Attributes:
        ids: the N questions' ids, each once.
        labels: int64 (N,), the right option counted from 0, or -1 where it isn't known.
        logits: float32 (N, K), finite for a row's own options, -inf beyond them.
        n_options: int64 (N,), each in 2..26.
        letter_mass: float32 (N,) in [0, 1], the share of the whole vocabulary's probability that lies on the
            letters; None where the table has none.
        subjects: N names, or None where a question has none.
        groups: N names, or None where a question stands alone: questions of one group depend on each other
            (wordings of one question, questions about one text), and intervals take them together. None
            where the table says nothing about it.
        protocol: how the predictions were made; None for tables from elsewhere.

    Raises:
        DataFormatError: shapes don't agree, or rows break the rules above; the first 20 rows are named, all
            counted.

    Example:
        >>> predictions = Predictions.from_probs([[0.7, 0.3], [0.1, 0.9], [0.6, 0.4]], [0, 1, 1])
        >>> predictions
        Predictions(n=3, options=2, labelled=3, model=None)
        >>> predictions.confidence().round(6).tolist(), predictions.correct().tolist()
        ([0.7, 0.9, 0.6], [1.0, 1.0, 0.0])
    """

    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]
    n_options: NDArray[np.int64]
    letter_mass: NDArray[np.float32] | None = None
    subjects: tuple[str | None, ...]
    groups: tuple[str | None, ...] | None = None
    protocol: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ids", tuple(self.ids))
        object.__setattr__(self, "subjects", tuple(self.subjects))
        if self.groups is not None:
            object.__setattr__(self, "groups", tuple(self.groups))
        object.__setattr__(self, "labels", _integers("labels", self.labels))
        object.__setattr__(self, "n_options", _integers("n_options", self.n_options))
        object.__setattr__(self, "logits", _floats("logits", self.logits))
        if self.letter_mass is not None:
            object.__setattr__(self, "letter_mass", _floats("letter_mass", self.letter_mass))
        self._check_shapes()
        _refuse(self._problems())
        used = int(self.n_options.max()) if len(self) else self.logits.shape[1]
        object.__setattr__(self, "logits", self.logits[:, :used])

    @classmethod
    def from_probs(
        cls,
        probs: ArrayLike | Sequence[Sequence[float]],
        labels: ArrayLike | None = None,
        *,
        ids: Sequence[str] | None = None,
        subjects: Sequence[str | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> Predictions:
        """A table from option probabilities that a program has at hand.

        Args:
            probs: (N, K), or N lists with a number for each of a question's 2 to 26 options; each row lies in
                [0, 1] and sums to 1 within 1e-3.
            labels: the right options (N,), counted from 0; -1 where one isn't known, as all are if left out.
            ids: a name for each question; its row, counted from 0, if left out.
            subjects: a subject for each question, or None.
            groups: the group of questions that depend on each other, or None for one that stands alone.

        Raises:
            DataFormatError: rows are no distributions (the first 20 are named, all counted), or fields have
                different numbers of rows.

        Example:
            >>> Predictions.from_probs([[0.7, 0.2, 0.1], [0.5, 0.5]], [0, 1])
            Predictions(n=2, options=2 to 3, labelled=2, model=None)
        """
        return cls._from_scores(probs, "probs", labels, ids, subjects, groups)

    @classmethod
    def from_logits(
        cls,
        logits: ArrayLike | Sequence[Sequence[float]],
        labels: ArrayLike | None = None,
        *,
        ids: Sequence[str] | None = None,
        subjects: Sequence[str | None] | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> Predictions:
        """A table from option logits, or log-probabilities, that a program has at hand.

        Args:
            logits: (N, K), or N lists with a finite number for each of a question's 2 to 26 options.
            labels: as in `from_probs`.
            ids: as in `from_probs`.
            subjects: as in `from_probs`.
            groups: as in `from_probs`.

        Raises:
            DataFormatError: a number is missing, not finite or too many, or the numbers of rows differ.

        Example:
            >>> Predictions.from_logits([[2.0, 0.0], [0.0, 0.0]]).confidence().round(3).tolist()
            [0.881, 0.5]
        """
        return cls._from_scores(logits, "logits", labels, ids, subjects, groups)

    @classmethod
    def _from_scores(
        cls,
        scores: Any,
        kind: str,
        labels: ArrayLike | None,
        ids: Sequence[str] | None,
        subjects: Sequence[str | None] | None,
        groups: Sequence[str | None] | None,
    ) -> Predictions:
        checked = [checked_scores(np.asarray(row).tolist(), kind) for row in scores]
        _refuse([(row, kind, fault) for row, (_, fault) in enumerate(checked) if fault])
        rows = [values for values, _ in checked]
        n_options = np.array([len(row) for row in rows], dtype=np.int64)
        logits = np.full((len(rows), int(n_options.max(initial=0))), -np.inf)
        for target, row in zip(logits, rows, strict=True):
            target[: len(row)] = to_logits(row, kind)
        return cls(
            ids=tuple(map(str, range(len(rows)))) if ids is None else tuple(ids),
            labels=np.full(len(rows), -1) if labels is None else np.asarray(labels),
            logits=logits,
            n_options=n_options,
            subjects=(None,) * len(rows) if subjects is None else tuple(subjects),
            groups=None if groups is None else tuple(groups),
        )

    def __repr__(self) -> str:
        sizes = sorted(set(self.n_options.tolist())) or [0]
        options = str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        labelled = int((self.labels >= 0).sum())
        made_by = (self.protocol or {}).get("model")
        return f"Predictions(n={len(self)}, options={options}, labelled={labelled}, model={made_by!r})"

    def __len__(self) -> int:
        return len(self.ids)

    def probs(self) -> NDArray[np.float64]:
        """Option probabilities, float64 (N, K): the softmax of a row's own logits, 0 beyond its options."""
        shifted = np.exp(self.logits.astype(np.float64) - self._top_logit())
        return shifted / shifted.sum(axis=1, keepdims=True)

    def log_probs(self) -> NDArray[np.float64]:
        """Natural logs of the option probabilities, float64 (N, K), -inf beyond a row's options."""
        shifted = self.logits.astype(np.float64) - self._top_logit()
        return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))

    def confidence(self) -> NDArray[np.float64]:
        """Probability of the top option, float64 (N,) in [1/K, 1]."""
        return self.probs().max(axis=1, initial=0.0)

    def top(self) -> NDArray[np.int64]:
        """The most probable option, int64 (N,); the first of several equal ones."""
        return self.logits.argmax(axis=1).astype(np.int64)

    def correct(self) -> NDArray[np.float64]:
        """1.0 where the top option is the right one, else 0.0, float64 (N,).

        Raises:
            DataFormatError: a label isn't known.
        """
        unknown = np.flatnonzero(self.labels < 0)
        if unknown.size:
            raise DataFormatError(
                f"predictions: {unknown.size} of {len(self)} rows have no label (first: row "
                f"{unknown[0] + 1}, id {self.ids[unknown[0]]!r}, field 'label'); label them or leave them out"
            )
        return (self.top() == self.labels).astype(np.float64)

    def digest(self) -> str:
        """Hex SHA-256 over everything that the table says, its protocol included."""
        own = np.arange(self.logits.shape[1]) < self.n_options[:, None]
        mass = [] if self.letter_mass is None else [self.letter_mass]
        names: list[Any] = [self.ids, [subject or None for subject in self.subjects], self.protocol]
        if self.groups is not None:
            names.append(self.groups)
        return content_digest(names, [self.labels, self.n_options, self.logits[own], *mass])

    def clusters(self, by: str = "group") -> NDArray[np.int64] | None:
        """The cluster of each row for intervals, int64 (N,); None where every row stands alone.

        Args:
            by: `group` (questions of one group), `subject` (all of one subject; rows without one as for
                `group`), or `none`.

        Raises:
            ConfigError: `by` is none of the three.
        """
        if by not in CLUSTER_BY:
            raise ConfigError(f"cluster_by must be one of {', '.join(CLUSTER_BY)}, received {by!r}")
        groups = self.groups or (None,) * len(self)
        if by == "none":
            return None
        if by == "group":
            return cluster_index(groups)
        pairs = zip(self.subjects, groups, strict=True)
        return cluster_index([("group", group) if name is None and group else name for name, group in pairs])

    def subset(self, index: ArrayLike) -> Predictions:
        """The rows that `index` picks (integers, or booleans (N,)), in that order."""
        rows = np.arange(len(self))[np.asarray(index)]
        return Predictions(
            ids=tuple(self.ids[row] for row in rows),
            labels=self.labels[rows],
            logits=self.logits[rows],
            n_options=self.n_options[rows],
            letter_mass=None if self.letter_mass is None else self.letter_mass[rows],
            subjects=tuple(self.subjects[row] for row in rows),
            groups=None if self.groups is None else tuple(self.groups[row] for row in rows),
            protocol=self.protocol,
        )

    def _top_logit(self) -> NDArray[np.float64]:
        return self.logits.max(axis=1, keepdims=True, initial=-np.inf).astype(np.float64)

    def _check_shapes(self) -> None:
        n = len(self.ids)
        shapes: dict[str, tuple[int, ...]] = {
            "labels": self.labels.shape,
            "n_options": self.n_options.shape,
            "subjects": (len(self.subjects),),
        }
        if self.letter_mass is not None:
            shapes["letter_mass"] = self.letter_mass.shape
        if self.groups is not None:
            shapes["groups"] = (len(self.groups),)
        wrong = [f"{name} {shape}" for name, shape in shapes.items() if shape != (n,)]
        if self.logits.ndim != 2 or self.logits.shape[0] != n:
            wrong.append(f"logits {self.logits.shape}")
        if wrong:
            raise DataFormatError(
                f"predictions: with {n} ids every field needs {n} rows, and logits (N, K); "
                f"found {', '.join(wrong)}"
            )

    def _problems(self) -> list[tuple[int, str, str]]:
        """(row, field, message) of every row that breaks a rule."""
        problems: list[tuple[int, str, str]] = []

        def add(rows: Any, field: str, message: str) -> None:
            problems.extend((int(row), field, message) for row in np.flatnonzero(rows))

        seen: dict[str, int] = {}
        for row, (key, subject) in enumerate(zip(self.ids, self.subjects, strict=True)):
            if not isinstance(key, str) or not key:
                problems.append((row, "id", f"{key!r} where a non-empty string is expected"))
            elif key in seen:
                problems.append(
                    (row, "id", f"{key!r} was already used in row {seen[key] + 1}; ids must be unique")
                )
            else:
                seen[key] = row
            if subject is not None and not isinstance(subject, str):
                problems.append((row, "subject", f"{subject!r} where a string or null is expected"))
        for row, group in enumerate(self.groups or ()):
            if group is not None and not isinstance(group, str):
                problems.append((row, "group", f"{group!r} where a string or null is expected"))
        width = self.logits.shape[1]
        add(
            (self.n_options < MIN_OPTIONS) | (self.n_options > min(width, MAX_OPTIONS)),
            "logits",
            f"number of options outside {MIN_OPTIONS}..{MAX_OPTIONS}, or above the {width} columns",
        )
        own = np.arange(width) < self.n_options[:, None]
        add(
            (own & ~np.isfinite(self.logits)).any(axis=1),
            "logits",
            "NaN or infinite; score the question again",
        )
        add(
            (~own & (self.logits != -np.inf)).any(axis=1),
            "logits",
            "a value other than -inf beyond the row's options",
        )
        add((self.labels < -1) | (self.labels >= self.n_options), "label", "not one of the row's options")
        if self.letter_mass is not None:
            inside = (self.letter_mass >= 0) & (self.letter_mass <= 1 + SUM_TOLERANCE)
            add(~inside, "letter_mass", "not a share in [0, 1]")
        return sorted(problems)


def concatenate(tables: Sequence[Predictions]) -> Predictions:
    """The rows of several tables, one after the other, with the first one's protocol.

    Letter masses are kept where all tables have them, groups where one has.

    Raises:
        DataFormatError: an id is there twice.
    """
    widest = max(table.logits.shape[1] for table in tables)
    masses = [table.letter_mass for table in tables if table.letter_mass is not None]
    return Predictions(
        ids=tuple(name for table in tables for name in table.ids),
        labels=np.concatenate([table.labels for table in tables]),
        logits=np.concatenate(
            [
                np.pad(table.logits, ((0, 0), (0, widest - table.logits.shape[1])), constant_values=-np.inf)
                for table in tables
            ]
        ),
        n_options=np.concatenate([table.n_options for table in tables]),
        letter_mass=np.concatenate(masses) if len(masses) == len(tables) else None,
        subjects=tuple(subject for table in tables for subject in table.subjects),
        groups=tuple(group for table in tables for group in table.groups or (None,) * len(table))
        if any(table.groups for table in tables)
        else None,
        protocol=tables[0].protocol,
    )


def _refuse(problems: Sequence[tuple[int, str, str]]) -> None:
    """Raise one error for all problems (row from 0, field, message), if there are any."""
    if not problems:
        return
    shown, more = said_once(
        (Problem(row + 1, f"field '{field}'", text) for row, field, text in problems), "row"
    )
    if more:
        shown.append(f"  ... and {more} more")
    raise DataFormatError(
        f"predictions: {len(problems)} problems; correct or leave out these rows:\n" + "\n".join(shown)
    )


def _integers(name: str, values: ArrayLike) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise DataFormatError(
            f"predictions: {name} must be integers, found {array.dtype}; convert them first"
        )
    return _read_only(array.astype(np.int64))


def _floats(name: str, values: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(values)
    if array.size and not np.issubdtype(array.dtype, np.floating):
        raise DataFormatError(f"predictions: {name} must be floating-point numbers, found {array.dtype}")
    # A float64 beyond float32's range becomes infinite, and is refused as such.
    with np.errstate(over="ignore"):
        return _read_only(array.astype(np.float32))


def _read_only(array: NDArray[Any]) -> NDArray[Any]:
    array.setflags(write=False)
    return array
