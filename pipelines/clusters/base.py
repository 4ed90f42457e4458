"""What the platforms have in common: runs, schedules, and requests that must not take effect twice."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.progress import say
from calib_pipelines.clusters.cron import Cron
from calib_pipelines.packages.reading import Submission

CONNECT_S, ANSWER_S, UPLOAD_S = 10, 30, 300  # longest waits for a connection, an answer, an upload
RETRY_PAUSES_S: tuple[float, ...] = (1, 3, 10)  # between attempts at what may be sent again
LOOKUP_PAUSES_S: tuple[float, ...] = (2, 5, 10, 20)  # between looks for what an unanswered request started
POLL_S = 10.0  # between looks at a run's state
PATIENCE_S = 900.0  # how long a service may be out of reach while a run is watched

SUCCEEDED = "succeeded"
ENDS = (SUCCEEDED, "failed", "cancelled", "skipped")

T = TypeVar("T")


class UnreachableError(ConfigError):
    """No connection came about, so nothing was sent."""


class TryAgainError(CalibError):
    """The request was not taken, or taking it twice changes nothing; it may be sent again."""


class UnansweredError(CalibError):
    """The request was sent, and whether it was taken is not known."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as the platform describes it.

    Attributes:
        id: The platform's own id.
        name: Name that it was submitted under.
        state: In lower case, such as `running`; finished runs have one of `ENDS`.
        link: Page that shows it.
        fingerprint: Of the submission that it was made from; "" for runs made elsewhere.
        tasks: State of each task that has one, by name.
        error: What the platform says went wrong.
    """

    id: str
    name: str
    state: str
    link: str
    fingerprint: str = ""
    tasks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
    """A schedule as the platform describes it.

    Attributes:
        id: The platform's own id.
        name: Name that it was made under.
        state: `active` or `paused`; else the platform's own word.
        cron: Expression in the platform's form.
        link: Page that shows it.
        fingerprint: Of the submission and the times that it was made from; "" for those made elsewhere.
        in_place_of: State of the one that it was made to replace, and that it is to get; "" where none was.
    """

    id: str
    name: str
    state: str
    cron: str
    link: str
    fingerprint: str = ""
    in_place_of: str = ""


class Cluster(Protocol):
    """A platform that runs pipelines.

    Attributes:
        version: Its release, as its server says it; "" where it says none.
    """

    version: str

    def put_run(self, submission: Submission) -> tuple[Run, bool]:
        """Start a run, or find the one that the same submission started; whether it was started now."""

    def get_run(self, run_id: str) -> Run:
        """The run with that id; one request."""

    def find_schedules(self, name: str = "") -> list[Schedule]:
        """Schedules of that name, or all."""

    def put_schedule(self, submission: Submission, cron: Cron) -> tuple[Schedule, str]:
        """Make a schedule, or change the one of that name; returns what was done in a word."""

    def pause(self, schedule: Schedule) -> None:
        """Let it start no more runs until it is resumed."""

    def resume(self, schedule: Schedule) -> None:
        """Let it start runs again; what it missed is not caught up on, but for KFP's last missed time."""

    def delete(self, schedule: Schedule) -> None:
        """Remove it; its runs stay."""


def retried(request: Callable[[], T]) -> T:
    """Send a request that may be sent twice, again where it wasn't answered."""
    for pause_s in RETRY_PAUSES_S:
        try:
            return request()
        except (TryAgainError, UnansweredError):
            time.sleep(pause_s)
    return request()


def create_once(create: Callable[[], T], find: Callable[[], T | None], *, what: str) -> T:
    """Create something under a name of our choosing, and never twice.

    A request that was refused for the moment is sent again, after a look whether it took effect all the same.
    After one that got no answer we only look: the service may still be at work on it, so a second request
    could make a second one.

    Raises:
        CalibError: it could not be created, or whether it was is not known; the message says which.
    """
    pauses = iter(RETRY_PAUSES_S)
    while True:
        try:
            return create()
        except TryAgainError as error:
            if (found := find()) is not None:
                return found
            pause_s = next(pauses, None)
            if pause_s is None:
                raise CalibError(
                    f"{error}; {what} was not created, so the same command may be sent again"
                ) from None
            say(f"{error}; trying again in {pause_s:g} s")
            time.sleep(pause_s)
        except UnansweredError as error:
            say(f"{error}; looking whether {what} was created")
            for pause_s in LOOKUP_PAUSES_S:
                if (found := find()) is not None:
                    return found
                time.sleep(pause_s)
            if (found := find()) is not None:
                return found
            raise CalibError(
                f"{error}. Whether {what} was created is not known: it can't be seen yet, and was not "
                "requested a second time, which could have made two. Look again with the same command and "
                "the same --name in a few minutes: it takes what is there before it creates anything"
            ) from None


def only(found: Sequence[T], *, what: str) -> T | None:
    """The one that was found, or None.

    Raises:
        ConfigError: several were; `what` says in the plural what they are.
    """
    if len(found) > 1:
        ids = ", ".join(str(getattr(one, "id", one)) for one in found)
        raise ConfigError(
            f"{len(found)} {what}: {ids}. Delete those that are not wanted, or choose another --name"
        )
    return found[0] if found else None


def same_run(run: Run, submission: Submission) -> Run:
    """The run, if this submission made it.

    Raises:
        ConfigError: it was made from another package or with other parameters.
    """
    if run.fingerprint != submission.fingerprint():
        raise ConfigError(
            f"a run named {run.name!r} already exists, from another package or with other parameters "
            f"({run.link}); choose another --name"
        )
    return run


def refuse_foreign(schedules: Sequence[Schedule]) -> None:
    """Keep from changing schedules that were made by other means.

    Raises:
        ConfigError: one of them was.
    """
    for one in schedules:
        if not one.fingerprint:
            raise ConfigError(
                f"schedule {one.name!r} was not made by this command ({one.link}); delete it first, or "
                "choose another --name"
            )
