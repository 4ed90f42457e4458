"""SIGTERM and Ctrl-C: noted, honoured between two parts of the work; training goes on as if nothing came."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest
import torch
from test_training import CONFIG, Run, last_state, model_folder, whole  # noqa: F401 - fixtures

from calib_core.runtime import interrupts
from calib_core.runtime.interrupts import Stopped
from calib_core.steps.task import error_with, reported_errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_is_honoured_at_the_next_check(number) -> None:
    before = [signal.getsignal(each) for each in interrupts.SIGNALS]
    done = []

    def work() -> None:
        with interrupts.deferred():
            assert not interrupts.check()
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # launchers hand signals on that processes have got themselves
            done.append("the step")
            interrupts.check()
            done.append("another step")

    with pytest.raises(Stopped) as raised:
        work()
    assert done == ["the step"]
    assert raised.value.exit_code == 128 + number
    assert str(raised.value) == f"stopped by {number.name}"
    assert [signal.getsignal(each) for each in interrupts.SIGNALS] == before
    assert not interrupts.asked()
    assert not interrupts.check()  # outside nothing is deferred


def test_second_signal_long_after_the_first_ends_the_work_where_it_is(monkeypatch) -> None:
    monkeypatch.setattr(interrupts, "PATIENCE_S", -1.0)

    def work() -> None:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as raised:
        work()
    assert not isinstance(raised.value, Stopped)


def test_nothing_is_deferred_in_another_thread() -> None:
    found = []

    def work() -> None:
        with interrupts.deferred():
            found.append(interrupts.check(note=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [True]


def test_what_is_told_goes_to_the_caller_and_the_note_comes_back() -> None:
    told = []
    with interrupts.deferred(told.append):
        assert interrupts.check(note=True)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.asked() == signal.SIGTERM
    assert told == [signal.SIGTERM]


def test_stopped_component_ends_with_the_signal_s_exit_code(capsys) -> None:
    with pytest.raises(SystemExit) as raised, reported_errors():
        raise Stopped(signal.SIGTERM, "stopped at step 3")
    assert raised.value.code == 143
    assert capsys.readouterr().err == "error: stopped at step 3\n"
    again = error_with("stopped at step 3", 143)
    assert isinstance(again, Stopped)
    assert (again.exit_code, str(again)) == (143, "stopped at step 3")


def stop_at(monkeypatch: pytest.MonkeyPatch, call: int) -> list[int]:
    """SIGTERM just before the call of this number, counted from 1, that asks for it; the calls so far."""
    calls, check = [0], interrupts.check

    def counted(note: bool = False) -> bool:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return check(note)

    monkeypatch.setattr(interrupts, "check", counted)
    return calls


# In an epoch of 7 batches of 2, two batches a step, these are checks before a pass, between two batches of a
# step, in an evaluation, in an E-step, and where the run rests; first and last one included.
@pytest.mark.parametrize(("objective", "calls"), [("cft", (1, 2, 3, 5, 8, 11)), ("rcft", (1, 2, 4, 9, 13))])
def test_run_that_was_stopped_anywhere_ends_as_one_that_was_not(
    model_folder: Path,  # noqa: F811
    whole,  # noqa: F811
    tmp_path: Path,
    objective: str,
    calls: tuple[int, ...],
) -> None:
    expected, whole_run = whole[objective]
    for attempt, call in enumerate(calls):  # one run, stopped again and again
        torch.manual_seed(attempt)  # another process
        run = Run(model_folder, CONFIG, objective, tmp_path / "work")
        with pytest.MonkeyPatch.context() as patch:
            stop_at(patch, call)
            with pytest.raises(Stopped, match="of training; its checkpoint is kept"):
                run.run()
    run = Run(model_folder, CONFIG, objective, tmp_path / "work")
    assert run.run() == expected
    assert run.digest() == whole_run.digest()
    assert last_state(run) == last_state(whole_run)


@pytest.mark.parametrize("call", [2, 6, 11, 19, 31])
def test_each_stop_alone_ends_as_none(
    model_folder: Path,  # noqa: F811
    whole,  # noqa: F811
    tmp_path: Path,
    monkeypatch,
    call: int,
) -> None:
    expected, whole_run = whole["rcft"]
    with monkeypatch.context() as patch:
        stop_at(patch, call)
        with pytest.raises(Stopped):
            Run(model_folder, CONFIG, "rcft", tmp_path / "work").run()
    torch.manual_seed(7)
    run = Run(model_folder, CONFIG, "rcft", tmp_path / "work")
    assert run.run() == expected
    assert run.digest() == whole_run.digest()
    assert last_state(run) == last_state(whole_run)


def test_a_checkpoint_is_written_after_some_time_whatever_the_evaluations(
    model_folder: Path,  # noqa: F811
    whole,  # noqa: F811
    tmp_path: Path,
    monkeypatch,
) -> None:
    expected, _ = whole["cft"]
    run = Run(model_folder, CONFIG, "cft", tmp_path / "work")
    monkeypatch.setattr("calib_core.training.loop.SAVE_EVERY_S", -1.0)
    saved: list[int] = []
    save = run.training._save
    monkeypatch.setattr(run.training, "_save", lambda: (saved.append(run.training._state.steps), save()))
    assert run.run() == expected
    assert set(saved) == set(range(9))  # at every step, and six evaluations twice
