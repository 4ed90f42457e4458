"""A compiled pipeline of one task, which loads faster than a real one."""

from __future__ import annotations

from pathlib import Path

from kfp import compiler, dsl

NAME = "small"


def write_small_package(path: Path) -> Path:
    """Compile a pipeline that takes some of `restore-calibration`'s parameters."""

    @dsl.component(base_image="python:3.11")
    def task(model: str, epochs: int, align: bool, target_ece: float, seed: int):
        pass

    @dsl.pipeline(name=NAME)
    def small(model: str, epochs: int = 5, align: bool = False, target_ece: float = 0.08, seed: int = 0):
        task(model=model, epochs=epochs, align=align, target_ece=target_ece, seed=seed)

    compiler.Compiler().compile(small, str(path))
    return path
