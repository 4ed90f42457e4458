"""A few inputs for each fuzz target: that they run, and that nothing came back which was found before."""

from __future__ import annotations

import random

import pytest
from fuzz_inputs import changed, parquet
from fuzz_targets import TARGETS, Target

from calib_core.errors import CalibError

INPUTS = 40


@pytest.mark.parametrize("name", TARGETS)
def test_readers_read_or_refuse(name: str) -> None:
    target = TARGETS[name]
    read = [_is_read(target, seed) for seed in target.seeds]
    assert any(read) or not read
    for number in range(INPUTS):
        rng = random.Random(f"{name}:{number}")  # noqa: S311 (no secret)
        data = changed(rng.choice(target.seeds), rng) if target.seeds else parquet(name, rng)
        _is_read(target, data)


def _is_read(target: Target, data: bytes) -> bool:
    try:
        target.read(data)
    except CalibError:
        return False
    return True
