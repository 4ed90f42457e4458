"""Looking at something until it has ended: what is waited out, for how long, and what isn't."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from calib_components import watching
from calib_components.watching import looks


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """The pauses that were made, on a clock that nothing else moves."""
    made: list[float] = []
    clock = SimpleNamespace(monotonic=lambda: sum(made), sleep=made.append)
    monkeypatch.setattr(watching, "time", clock)
    return made


def answers(*given: Any):
    left = iter(given)

    def look() -> Any:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return look


def passes(error: Exception) -> bool:
    return isinstance(error, OSError)


def test_errors_that_pass_are_waited_out_and_said(pauses, capsys) -> None:
    look = answers(1, OSError("busy"), OSError("busy"), 2, OSError("away"), 3)
    found = looks(look, every_s=10, patience_s=20, passes=passes)
    assert [next(found) for _ in range(3)] == [1, 2, 3]
    assert pauses == [10] * 5
    assert capsys.readouterr().err.splitlines() == [
        *["busy; looking again in 10 s"] * 2,
        "away; looking again in 10 s",
    ]


def test_patience_counts_from_the_last_answer(pauses) -> None:
    found = looks(answers(1, *[OSError("busy")] * 3), every_s=10, patience_s=20, passes=passes)
    assert next(found) == 1
    with pytest.raises(OSError, match="busy"):
        next(found)
    assert pauses == [10] * 3


def test_other_errors_are_raised_as_they_come(pauses) -> None:
    with pytest.raises(ValueError, match="wrong"):
        next(looks(answers(ValueError("wrong")), every_s=10, patience_s=20, passes=passes))
    assert pauses == []


def test_looking_ends_when_time_is_up(pauses) -> None:
    assert list(looks(answers(1, 2, 3), every_s=10, patience_s=20, passes=passes, timeout_s=25)) == [1, 2, 3]
