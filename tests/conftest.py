"""Fixtures that several test modules share. Torch is imported when a test asks for a model, not before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.register_assert_rewrite("real")  # so that its assertions, too, say what they found


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a tiny random model of one of `tiny.FAMILIES`, made once a session; not to be changed."""
    import tiny
    import torch

    torch.set_num_threads(1)  # on matrices this small threads only wait for each other
    made: dict[str, Path] = {}

    def folder(family: str = "llama") -> Path:
        if family not in made:
            made[family] = tiny.save_tiny_model(tmp_path_factory.mktemp(family), family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def tiny_llama(tiny_model: Callable[[str], Path]) -> Path:
    """Folder of a tiny random Llama."""
    return tiny_model("llama")
