"""Checkpoints: whole or not at all, safetensors and JSON only, and back exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from calib_core.errors import DataFormatError
from calib_core.training import checkpoints
from calib_core.training.checkpoints import (
    Checkpoint,
    drop_checkpoint,
    load_checkpoint,
    optimizer_tensors,
    random_states,
    restore_optimizer,
    restore_random_states,
    save_checkpoint,
)


def made(step: int) -> Checkpoint:
    weights = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
    return Checkpoint(
        adapter={"layer.lora_A": weights, "layer.lora_B": weights.t().bfloat16()},
        best_adapter={"layer.lora_A": weights + 1},
        optimizer={"layer.lora_A.exp_avg": weights * 2, "layer.lora_A.step": torch.tensor(float(step))},
        random_states=random_states(),
        state={"step": step, "loss": 0.1 + 0.2, "targets": None, "history": [{"nll": 1 / 3}]},
    )


def assert_same(found: Checkpoint | None, expected: Checkpoint) -> None:
    assert found is not None
    for part in ("adapter", "best_adapter", "optimizer", "random_states"):
        left, right = getattr(found, part), getattr(expected, part)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].dtype == right[name].dtype
            assert torch.equal(left[name], right[name]), name
    assert found.state == expected.state


def test_what_was_saved_comes_back_exactly(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    assert load_checkpoint(folder) is None
    save_checkpoint(folder, made(1))
    assert_same(load_checkpoint(folder), made(1))
    save_checkpoint(folder, made(2))
    assert_same(load_checkpoint(folder), made(2))
    drop_checkpoint(folder)
    assert load_checkpoint(folder) is None
    assert list(folder.parent.iterdir()) == []


def test_a_checkpoint_before_the_first_best_adapter_comes_back(tmp_path: Path) -> None:
    one = made(1)
    empty = Checkpoint(**{**vars(one), "best_adapter": {}})
    save_checkpoint(tmp_path / "run", empty)
    assert_same(load_checkpoint(tmp_path / "run"), empty)


def test_it_holds_safetensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1))
    assert {path.name for path in tmp_path.iterdir()} == {"tensors.safetensors", "state.json"}
    length = int.from_bytes((tmp_path / "tensors.safetensors").read_bytes()[:8], "little")
    header = json.loads((tmp_path / "tensors.safetensors").read_bytes()[8 : 8 + length])
    assert header["adapter/layer.lora_A"]["shape"] == [3, 4]
    assert json.loads((tmp_path / "state.json").read_text())["step"] == 1


@pytest.mark.parametrize("broken", ["save_file", "write_json"])
def test_an_interruption_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch, broken: str) -> None:
    folder = tmp_path / "run"
    save_checkpoint(folder, made(1))

    def half(target: object, *_: object) -> None:
        path = Path(str(_[0] if isinstance(target, dict) and broken == "save_file" else target))
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, broken, half)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(folder, made(2))
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path / "first", made(2))
    assert_same(load_checkpoint(folder), made(1))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no part of the new ones


def damage_tensors(folder: Path) -> None:
    path = folder / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-40])


DAMAGES = {
    "cut tensors": damage_tensors,
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "cut state": lambda folder: (folder / "state.json").write_text('{"step": 1'),
    "other tensors": lambda folder: checkpoints.save_file(
        {"model/weight": torch.zeros(1)}, folder / "tensors.safetensors"
    ),
    "state that is none": lambda folder: (folder / "state.json").write_text("[1, 2]"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_checkpoint_is_refused_with_what_to_do(tmp_path: Path, damage) -> None:
    save_checkpoint(tmp_path / "run", made(1))
    damage(tmp_path / "run")
    with pytest.raises(
        DataFormatError, match=r"run: not a whole checkpoint .*delete the folder to start anew"
    ):
        load_checkpoint(tmp_path / "run")


def stepped(start: torch.Tensor, gradients: list[torch.Tensor], *, cut: int) -> torch.Tensor:
    """Adam over `gradients`; after `cut` of them everything goes through named tensors to a new optimizer."""
    weights = [torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone() + 1)]
    optimizer = torch.optim.AdamW(weights, lr=0.1)
    names = ["a.b", "a.c"]
    for number, gradient in enumerate(gradients):
        if number == cut:
            tensors = optimizer_tensors(optimizer, names)
            optimizer = torch.optim.AdamW(weights, lr=0.1)
            restore_optimizer(optimizer, names, tensors)
        weights[0].grad, weights[1].grad = gradient, gradient**2
        optimizer.step()
    return torch.stack(list(weights)).detach()


def test_an_optimizer_goes_on_exactly_from_named_tensors() -> None:
    gradients = [torch.randn(5, generator=torch.Generator().manual_seed(i)) for i in range(6)]
    whole = stepped(torch.zeros(5), gradients, cut=99)
    assert torch.equal(stepped(torch.zeros(5), gradients, cut=3), whole)
    assert torch.equal(stepped(torch.zeros(5), gradients, cut=0), whole)  # no state yet


def test_random_numbers_go_on_from_a_state() -> None:
    torch.manual_seed(3)
    torch.rand(5)
    states = random_states()
    expected = torch.rand(4)
    torch.rand(9)
    restore_random_states(states)
    assert torch.equal(torch.rand(4), expected)
