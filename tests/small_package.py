"""Compiled pipelines of one task, which load faster than a real one."""

# KFP reads annotations as they stand: no `from __future__ import annotations` here.
from pathlib import Path

from kfp import compiler, dsl


def write_small_package(path: Path) -> Path:
    """Compile a pipeline that takes some of `restore-calibration`'s parameters."""

    @dsl.component(base_image="python:3.11")
    def task(model: str, epochs: int, align: bool, target_ece: float, seed: int):
        pass

    @dsl.pipeline(name="small")
    def small(model: str, epochs: int = 5, align: bool = False, target_ece: float = 0.08, seed: int = 0):
        task(model=model, epochs=epochs, align=align, target_ece=target_ece, seed=seed)

    compiler.Compiler().compile(small, str(path))
    return path


def write_others_package(path: Path) -> Path:
    """Compile a pipeline with a parameter that is called as a flag of ours, and with a list."""

    @dsl.component(base_image="python:3.11")
    def task(region: str, sizes: list):
        pass

    @dsl.pipeline(name="others")
    def others(region: str, sizes: list, count: int = 3):
        task(region=region, sizes=sizes)

    compiler.Compiler().compile(others, str(path))
    return path


def write_kubernetes_package(path: Path) -> Path:
    """Compile a pipeline with a setting that only Kubernetes understands."""
    from kfp import kubernetes

    @dsl.component(base_image="python:3.11")
    def task():
        pass

    @dsl.pipeline(name="kubernetes")
    def pipeline():
        kubernetes.use_secret_as_env(task(), secret_name="s", secret_key_to_env={"a": "A"})  # noqa: S106

    compiler.Compiler().compile(pipeline, str(path))
    return path
