"""Compile every component and pipeline to the YAML that stands beside its source.

Run as `python -m calib_pipelines.compile`. The container image is a compile-time setting: `$CALIB_IMAGE`,
else `calib:<package version>`.
"""

from __future__ import annotations

from pathlib import Path

from kfp import compiler
from kfp.dsl.base_component import BaseComponent

import calib_components
import calib_pipelines
from calib_pipelines.recalibrate import recalibrate
from calib_pipelines.restore_calibration import restore_calibration

PIPELINES: dict[str, BaseComponent] = {
    pipeline.name: pipeline for pipeline in (restore_calibration, recalibrate)
}


def targets() -> dict[Path, BaseComponent]:
    """Where each compiled YAML stands, and what it is compiled from."""
    components = Path(calib_components.__file__).parent
    pipelines = Path(calib_pipelines.__file__).parent
    found: dict[Path, BaseComponent] = {
        components / name / "component.yaml": getattr(calib_components, name)
        for name in calib_components.__all__
    }
    return found | {pipelines / f"{name}.yaml": pipeline for name, pipeline in PIPELINES.items()}


def write(source: BaseComponent, path: Path) -> None:
    """Compile `source` to the file `path`, whose name ends in `.yaml` or `.json`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    compiler.Compiler().compile(source, str(path))


def main() -> None:
    """Write every YAML anew."""
    for path, source in targets().items():
        write(source, path)


if __name__ == "__main__":
    main()
