"""The champion: which model is in use, in one small file that is replaced atomically.

`champion.json` names the model, the snapshot of the stream that it was last measured on, how questions are
split into folds, and every change of champion so far. It is written by compare-and-swap
(`storage.write_versioned`): of two runs that began from the same state one can write, and whoever reads sees
the state before or after, never one between.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict, cast

from calib_core.errors import ConfigError, DataFormatError
from calib_core.storage.records import check_format, check_record, parse_record
from calib_core.storage.uris import exists, join, read_versioned, write_versioned

FILE = "champion.json"
FORMAT = 1
ACTIONS = ("first", "promoted", "rolled_back")


class FigureRecord(TypedDict):
    """A figure with its interval."""

    value: float
    low: float
    high: float


class ChangeRecord(TypedDict):
    """One change of champion."""

    number: Annotated[int, "Counts changes from 1."]
    time: Annotated[str, "When, in ISO 8601, UTC."]
    action: Annotated[str, "`first`, `promoted` or `rolled_back`."]
    model: Annotated[str, "Path or URI of the model that became champion."]
    run: NotRequired[Annotated[str, "Key of the run that did it; empty for a command."]]
    figures: NotRequired[
        Annotated[
            dict[str, FigureRecord | float | None],
            "Its figures on the test questions of that run; empty if it was not measured.",
        ]
    ]
    digest: NotRequired[
        Annotated[str, "SHA-256 over the files of the model that was measured; empty if a user named it."]
    ]


class SplitRecord(TypedDict):
    """Shares of the folds; the rest is test."""

    fit_fraction: float
    calibration_fraction: float


class ChampionRecord(TypedDict):
    """Which model is in use, and every change of champion so far."""

    format: Annotated[int, "Version of this format: 1."]
    model: Annotated[str, "Path or URI of the model in use: that of the last change."]
    number: Annotated[int, "Number of the last change."]
    snapshot: Annotated[str, "Id of the snapshot that was last measured; empty before the first."]
    split: SplitRecord
    run: Annotated[str, "Key of the run that wrote this state."]
    history: Annotated[list[ChangeRecord], "Changes of champion, the last one in force."]


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change of champion.

    Attributes:
        number: Counts changes from 1.
        time: When, in ISO 8601, UTC.
        action: `first`, `promoted` or `rolled_back`.
        model: Path or URI of the model that became champion.
        run: The run that did it, "" for a command.
        figures: Its figures on the test questions of that run, empty if it was not measured.
        digest: SHA-256 over the files of the model that was measured; "" for one that a user named.
    """

    number: int
    time: str
    action: str
    model: str
    run: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    digest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Champion:
    """The state that `champion.json` holds.

    Attributes:
        snapshot: Id of the snapshot that was last measured, "" before the first.
        split: Shares of the folds fit and calibration; the rest is test. They never change: a question that
            was ever test would be trained on.
        run: Key of the run that wrote this state.
        history: Changes of champion, the last one in force.
    """

    snapshot: str
    split: tuple[float, float]
    run: str
    history: tuple[Change, ...]

    @property
    def model(self) -> str:
        """Path or URI of the model in use."""
        return self.history[-1].model

    @property
    def number(self) -> int:
        """Number of the change that is in force."""
        return self.history[-1].number

    def to_dict(self) -> ChampionRecord:
        """The state as JSON values."""
        return {
            "format": FORMAT,
            "model": self.model,
            "number": self.number,
            "snapshot": self.snapshot,
            "split": {"fit_fraction": self.split[0], "calibration_fraction": self.split[1]},
            "run": self.run,
            "history": [cast(ChangeRecord, asdict(change)) for change in self.history],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any], where: str) -> Champion:
        """Read JSON values.

        Raises:
            DataFormatError: they are of no known form; `where` names their source.
        """
        advice = "not a champion's file: restore it, or name another folder"
        check_record(record, {"format": int}, where, advice=advice)
        check_format(record["format"], FORMAT, where)
        state = check_record(record, ChampionRecord, where, advice=advice)
        try:
            history = tuple(Change(**change) for change in state["history"])
        except TypeError as error:  # a field that this version doesn't know, and would lose
            raise DataFormatError(f"{where}: {error}; {advice}") from None
        champion = cls(
            snapshot=state["snapshot"],
            split=(state["split"]["fit_fraction"], state["split"]["calibration_fraction"]),
            run=state["run"],
            history=history,
        )
        if not champion.history or state["model"] != champion.model:
            raise DataFormatError(f"{where}: field model isn't the last of history; restore the file")
        return champion

    def changed(
        self, action: str, model: str, *, run: str = "", figures: dict[str, Any], digest: str = ""
    ) -> Champion:
        """The state after one more change."""
        change = Change(
            number=self.number + 1,
            time=now(),
            action=action,
            model=model,
            run=run,
            figures=figures,
            digest=digest,
        )
        return replace(self, history=(*self.history, change))


def first_champion(model: str, split: tuple[float, float]) -> Champion:
    """The state in which a folder begins: nothing measured, one model."""
    return Champion(
        snapshot="", split=split, run="", history=(Change(number=1, time=now(), action="first", model=model),)
    )


def read_champion(folder: str | Path) -> tuple[Champion, str] | None:
    """The champion of a folder or bucket prefix with the file's version; None if it has none yet.

    Raises:
        DataFormatError: there is a file of another kind.
        ConfigError: the storage can't be reached.
    """
    uri = join(folder, FILE)
    found = read_versioned(uri)
    if found is None:
        return None
    data, version = found
    return Champion.from_dict(parse_record(data, dict, uri, advice="restore the file"), uri), version


def write_champion(folder: str | Path, champion: Champion, *, expected: str | None) -> str:
    """Replace the champion's file where it is still at the version that was read.

    Args:
        folder: Folder or bucket prefix.
        champion: The new state.
        expected: The version that `read_champion` gave; None if there was none.

    Returns:
        The new version.

    Raises:
        StaleVersionError: another run wrote meanwhile; nothing was written.
    """
    text = json.dumps(champion.to_dict(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return write_versioned(join(folder, FILE), text.encode(), expected=expected)


def rollback(folder: str | Path, *, to: int | None = None) -> Champion:
    """Make an earlier model champion again; the history goes on, and what was read of the stream stays read.

    Args:
        folder: Folder or bucket prefix.
        to: Number of the change whose model is to be used; the last one with another model if left out.

    Raises:
        ConfigError: there is no champion, no such change, or its model has been removed from the folder.
        StaleVersionError: a run wrote meanwhile; nothing was changed.
    """
    found = read_champion(folder)
    if found is None:
        raise ConfigError(f"{join(folder, FILE)}: no champion there; check the folder")
    champion, version = found
    numbers = {change.number: change for change in champion.history}
    others = [change for change in champion.history if change.model != champion.model]
    target = numbers.get(to) if to is not None else (others[-1] if others else None)
    if target is None or target.model == champion.model:
        usable = ", ".join(str(change.number) for change in others) or "none"
        asked = "another model" if to is None else f"change {to}"
        raise ConfigError(
            f"{join(folder, FILE)}: can't roll back to {asked} from {champion.model}; numbers with another "
            f"model: {usable}"
        )
    if target.model.startswith(join(folder, "runs")) and not exists(target.model):
        raise ConfigError(
            f"{target.model}: the model of change {target.number} is no longer there; put the folder back, "
            "or roll back to another change"
        )
    rolled = champion.changed("rolled_back", target.model, figures=target.figures, digest=target.digest)
    write_champion(folder, rolled, expected=version)
    return rolled


def now() -> str:
    """The time in ISO 8601, UTC, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")
