"""Two processes train as one does: losses, evaluations, targets, adapters, and each other's checkpoints."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import in_processes
import numpy as np
import pytest
import torch
from tiny import save_tiny_model

import calib_core.__main__
from calib_core.runtime import processes

HERE = Path(__file__).parent
INTERRUPTED = {"objective": "rcft", "interrupt_at": 5}
SAME = ("losses", "targets", "adapter")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def one(model, tmp_path_factory) -> dict[str, Any]:
    """Runs in one process; the interrupted one leaves its checkpoint for two."""
    work = tmp_path_factory.mktemp("one")
    cases = {name: {"objective": name} for name in ("cft", "rcft")} | {"interrupted": INTERRUPTED}
    seen = {
        name: in_processes.trained_in(model, {**case, "work": str(work / name)})
        for name, case in cases.items()
    }
    return {**seen, "work": work}


@pytest.fixture(scope="module")
def two(model, one, tmp_path_factory) -> list[dict[str, Any]]:
    """The same in two processes, and more: what each of them saw."""
    work = tmp_path_factory.mktemp("two")
    spread = {"placement": "fsdp", "processes": 2}
    cases = {
        "cft": {"objective": "cft"},
        "rcft": {"objective": "rcft"},
        "spread": {"objective": "rcft", "changes": spread},
        "passes": {"objective": "rcft", "changes": {"pass_tokens": 1}},
        "spread passes": {"objective": "rcft", "changes": {**spread, "pass_tokens": 1}},
        "interrupted": INTERRUPTED,
        "resumed": {"objective": "rcft", "work": str(one["work"] / "interrupted")},
        "cut": {"objective": "cft", "changes": {"lora_dropout": 0.3}, "interrupt_at": 3},
        "whole": {"objective": "cft", "changes": {"lora_dropout": 0.3}},
        "spread cut": {"objective": "rcft", "changes": spread, "interrupt_at": 5},
        "stopped": {"objective": "cft", "changes": {"lora_dropout": 0.3}, "stop_at": 9},
    }
    cases = {name: {"work": str(work / name), **case} for name, case in cases.items()}
    going_on = {"goes on": "cut", "spread goes on": "spread cut", "stopped goes on": "stopped"}
    for name, cut in going_on.items():
        cases[name] = {
            key: value for key, value in cases[cut].items() if key not in ("interrupt_at", "stop_at")
        }
    launch(model, work, cases)
    return [{**json.loads((work / f"{rank}.json").read_text()), "work": work} for rank in (0, 1)]


def launch(model: Path, out: Path, cases: dict[str, Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    command += ["--master_addr=127.0.0.1", f"--master_port={port}"]
    command += [str(HERE / "in_processes.py"), str(model), str(out), json.dumps(cases)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert run.returncode == 0, run.stderr[-12000:]


def assert_close(found: Any, expected: Any) -> None:
    """Equal to 1e-5, whatever the nesting."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            assert_close(found[key], expected[key])
    elif isinstance(expected, str):
        assert found == expected
    else:
        np.testing.assert_allclose(np.array(found, float), np.array(expected, float), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_two_processes_train_as_one(one, two, objective) -> None:
    found, expected = two[0][objective], one[objective]
    assert len(expected["losses"]) == 15  # five batches an epoch, the fifth of one question
    for part in SAME:
        if expected[part] is not None:
            assert_close(found[part], expected[part])
    assert found["chosen"] == expected["chosen"]
    assert [e["step"] for e in found["history"]] == [e["step"] for e in expected["history"]]
    for name in ("nll_nats", "mean_confidence", "train_loss"):
        assert_close([e[name] for e in found["history"]], [e[name] for e in expected["history"]])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["spread", "passes", "spread passes"])
def test_a_model_spread_over_the_processes_or_batches_in_many_passes_train_the_same(one, two, case) -> None:
    for part in SAME:
        assert_close(two[0][case][part], one["rcft"][part])


@pytest.mark.slow
@pytest.mark.parametrize("case", ["cft", "rcft", "spread", "passes", "resumed", "whole"])
def test_all_processes_see_the_same(two, case) -> None:
    first, second = (seen[case] for seen in two)
    assert first == second
    assert first["digest"]


@pytest.mark.slow
def test_first_scores_are_one_process_s_to_the_last_bit(one, two) -> None:
    assert two[0]["rcft"]["tables"][0] == one["rcft"]["tables"][0]


@pytest.mark.slow
def test_a_checkpoint_of_two_processes_goes_on_in_one(model, one, two) -> None:
    work = str(two[0]["work"] / "interrupted")
    rest = in_processes.trained_in(model, {"objective": "rcft", "work": work})
    assert 0 < len(rest["losses"]) < len(one["rcft"]["losses"])
    assert_close(rest["losses"], one["rcft"]["losses"][-len(rest["losses"]) :])
    assert_close(rest["adapter"], one["rcft"]["adapter"])


@pytest.mark.slow
def test_a_checkpoint_of_one_process_goes_on_in_two(one, two) -> None:
    rest = two[0]["resumed"]
    assert 0 < len(rest["losses"]) < len(one["rcft"]["losses"])
    assert_close(rest["losses"], one["rcft"]["losses"][-len(rest["losses"]) :])
    assert_close(rest["adapter"], one["rcft"]["adapter"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("whole", "goes_on"), [("whole", "goes on"), ("spread", "spread goes on"), ("whole", "stopped goes on")]
)
def test_two_processes_that_resume_end_as_if_they_had_never_stopped(two, whole, goes_on) -> None:
    # With dropout too: each process has its own random numbers, and finds them again.
    rest, expected = two[0][goes_on], two[0][whole]
    assert 0 < len(rest["losses"]) < len(expected["losses"])
    assert rest["losses"] == expected["losses"][-len(rest["losses"]) :]
    assert rest["digest"] == expected["digest"]


@pytest.mark.slow
def test_where_one_process_is_told_to_end_all_of_them_do(two) -> None:
    said = [process["stopped"]["stopped"] for process in two]
    assert said[0] == said[1]
    assert said[0].startswith("stopped by SIGTERM at step ")


def test_processes_part_once_their_work_is_done(monkeypatch) -> None:
    """And not before: what the command does may still need the others."""
    group, seen = torch.distributed, []
    group.init_process_group("gloo", store=group.HashStore(), rank=0, world_size=1)
    monkeypatch.setattr(sys, "argv", ["calib_core", "work"])
    monkeypatch.setattr(
        calib_core.__main__,
        "add_commands",
        lambda commands: commands.add_parser("work").set_defaults(
            run=lambda given: seen.append(group.is_initialized())
        ),
    )
    try:
        calib_core.__main__.main()
        assert seen == [True]
        assert not group.is_initialized()
    finally:
        processes.leave()
    assert processes.count() == 1  # alone again, and nothing to leave


def test_one_process_is_all_there_is() -> None:
    assert (processes.index(), processes.count(), processes.launched()) == (0, 1, False)
    assert processes.even_share([3, 4, 5]) == [3, 4, 5]
    assert processes.even_share([]) == []
    assert processes.gather("mine") == ["mine"]
    assert processes.from_first(lambda: "mine") == "mine"


def test_shares_are_even_and_leave_nothing_out(monkeypatch) -> None:
    items = list("abcde")
    monkeypatch.setattr(processes, "count", lambda: 3)
    shares = []
    for index in range(3):
        monkeypatch.setattr(processes, "index", lambda index=index: index)
        shares.append(processes.even_share(items))
    assert {len(share) for share in shares} == {2}
    assert {item for share in shares for item in share} == set(items)
    monkeypatch.setattr(processes, "count", lambda: 9)
    monkeypatch.setattr(processes, "index", lambda: 8)
    assert processes.even_share(items) == ["d"]


@pytest.mark.parametrize(
    ("environment", "speaks"),
    [({}, True), ({"WORLD_SIZE": "2", "RANK": "0"}, True), ({"WORLD_SIZE": "2", "RANK": "1"}, False)],
)
def test_the_first_process_speaks_for_all(monkeypatch, capsys, environment, speaks) -> None:
    from calib_core.runtime import progress

    monkeypatch.setattr(progress, "LINE_INTERVAL_S", 0.0)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    progress.say("a line")
    with progress.Progress("work", total=2, unit="units") as shown:
        shown.advance()
    said = capsys.readouterr().err
    assert ("a line" in said, "work: 1/2 units" in said) == (speaks, speaks)
