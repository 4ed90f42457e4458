"""Compile every component and pipeline, on no platform in particular, to the YAML beside its source.

Run as `python -m calib_pipelines.compile`. The container image is a compile-time setting: `$CALIB_IMAGE`,
else `calib:<package version>`.
"""

from __future__ import annotations

import functools
from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

import calib_components
import calib_pipelines
from calib_pipelines.definitions import recalibrate, restore_calibration, score_large
from calib_pipelines.definitions.platforms import Definition

GENERATED = "# Compiled by calib from Python; change the source and compile again."
"""First line of every compiled YAML."""

DEFINITIONS: dict[str, Definition] = {
    module.NAME: module.define for module in (restore_calibration, recalibrate, score_large)
}
PIPELINES: dict[str, BaseComponent] = {
    restore_calibration.NAME: restore_calibration.restore_calibration,
    recalibrate.NAME: recalibrate.recalibrate,
    score_large.NAME: score_large.score_large,
}
"""Placed on no platform in particular."""


@functools.cache
def targets() -> dict[Path, BaseComponent]:
    """Where each compiled YAML stands, and what it is compiled from."""
    components = Path(calib_components.__file__).parent
    pipelines = Path(calib_pipelines.__file__).parent
    found: dict[Path, BaseComponent] = {
        components / name / "component.yaml": getattr(calib_components, name)
        for name in calib_components.__all__
    }
    for name, pipeline in PIPELINES.items():
        found[pipelines / f"{name}.yaml"] = pipeline
    return found


def write(source: BaseComponent, path: Path) -> None:
    """Compile `source` to the file `path`, whose name ends in `.yaml` or `.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(source, str(path))
    if path.suffix == ".yaml":
        path.write_text(f"{GENERATED}\n{path.read_text(encoding='utf-8')}", encoding="utf-8")


def main() -> None:
    """Write every YAML again."""
    for path, source in targets().items():
        write(source, path)


if __name__ == "__main__":
    main()
