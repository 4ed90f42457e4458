"""Checkpoints: one is whole at each moment, safetensors and JSON only, and back exactly."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch

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
    assert json.loads((folder / "state.json").read_text())["step"] == 2  # where the run stands, for people
    drop_checkpoint(folder)
    assert load_checkpoint(folder) is None
    assert list(folder.parent.iterdir()) == []


def test_a_checkpoint_before_the_first_best_adapter_comes_back(tmp_path: Path) -> None:
    one = made(1)
    empty = Checkpoint(**{**vars(one), "best_adapter": {}})
    save_checkpoint(tmp_path / "run", empty)
    assert_same(load_checkpoint(tmp_path / "run"), empty)


def newest(place: Path) -> Path:
    """Folder of the checkpoint that counts."""
    return place / json.loads((place / "current.json").read_text())["generations"][0]


def test_it_holds_safetensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, made(1))
    folder = newest(tmp_path)
    assert {path.name for path in folder.iterdir()} == {"tensors.safetensors", "state.json", "seal.json"}
    length = int.from_bytes((folder / "tensors.safetensors").read_bytes()[:8], "little")
    header = json.loads((folder / "tensors.safetensors").read_bytes()[8 : 8 + length])
    assert header["adapter/layer.lora_A"]["shape"] == [3, 4]
    assert json.loads((folder / "state.json").read_text())["step"] == 1


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
    assert load_checkpoint(tmp_path / "first") is None


def flip(path: Path) -> None:
    """One bit of a file's bytes, far from both its ends."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


DAMAGES = {
    "flipped bit in tensors": lambda folder: flip(folder / "tensors.safetensors"),
    "flipped bit in state": lambda folder: flip(folder / "state.json"),
    "cut tensors": lambda folder: (folder / "tensors.safetensors").write_bytes(
        (folder / "tensors.safetensors").read_bytes()[:-40]
    ),
    "tensors of another run": lambda folder: checkpoints.save_file(
        {"adapter/weight": torch.zeros(1)}, folder / "tensors.safetensors"
    ),
    "no tensors": lambda folder: (folder / "tensors.safetensors").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "empty state": lambda folder: (folder / "state.json").write_text("{}"),
    "cut state": lambda folder: (folder / "state.json").write_text('{"step": 1'),
    "no folder": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_that_is_said(
    tmp_path: Path, damage, capsys
) -> None:
    place = tmp_path / "run"
    for step in (1, 2):
        save_checkpoint(place, made(step))
    damage(newest(place))
    assert_same(load_checkpoint(place), made(1))
    assert f"{place}: generation {newest(place).name} is damaged" in capsys.readouterr().err
    save_checkpoint(place, made(3))
    assert_same(load_checkpoint(place), made(3))


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_where_no_checkpoint_is_whole_the_run_starts_anew_and_that_is_said(
    tmp_path: Path, damage, capsys
) -> None:
    save_checkpoint(tmp_path / "run", made(1))
    damage(newest(tmp_path / "run"))
    assert load_checkpoint(tmp_path / "run") is None
    assert "training starts over" in capsys.readouterr().err


def test_a_reader_has_one_checkpoint_while_others_are_written(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path, made(1))
    load = checkpoints.load_file
    steps = iter([[2], [3, 4], []])  # of another attempt of the same run

    def load_and_save(path: Path) -> dict[str, torch.Tensor]:
        tensors = load(path)
        for step in next(steps):
            save_checkpoint(tmp_path, made(step))
        return tensors

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "load_file", load_and_save)
        assert_same(load_checkpoint(tmp_path), made(1))  # the one before the newest stays
        assert_same(load_checkpoint(tmp_path), made(4))  # the one that was being read is gone


def test_an_attempt_goes_on_whose_checkpoints_another_one_has_removed(tmp_path: Path, monkeypatch) -> None:
    save_checkpoint(tmp_path / "run", made(1))
    save = checkpoints.save_file
    removed = []

    def removing(tensors: dict[str, torch.Tensor], path: Path) -> None:
        if not removed:
            removed.append(drop_checkpoint(tmp_path / "run"))
        save(tensors, path)

    monkeypatch.setattr(checkpoints, "save_file", removing)
    save_checkpoint(tmp_path / "run", made(2))
    assert removed
    assert_same(load_checkpoint(tmp_path / "run"), made(2))


def test_a_bucket_keeps_checkpoints_as_a_folder_does(gcs: str) -> None:
    place = f"{gcs}/checkpoints/run"
    assert load_checkpoint(place) is None
    for step in (1, 2, 3):
        save_checkpoint(place, made(step))
        assert_same(load_checkpoint(place), made(step))
    drop_checkpoint(place)
    assert load_checkpoint(place) is None


def test_checkpoints_that_nothing_goes_on_from_are_swept(tmp_path: Path) -> None:
    for name in ("old", "young"):
        save_checkpoint(tmp_path / name, made(1))
    past = time.time() - checkpoints.KEPT_S - 60
    os.utime(tmp_path / "old" / "state.json", (past, past))
    (tmp_path / "else").mkdir()
    checkpoints.sweep_checkpoints(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"young", "else"}
    checkpoints.sweep_checkpoints(tmp_path / "absent")


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
