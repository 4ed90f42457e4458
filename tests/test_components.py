"""Components: the same parameters as the steps' configs, nothing stale, nothing heavy at module scope."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from dataclasses import MISSING
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from kfp.components import load_component_from_file

import calib_components
from calib_components.variants import variant
from calib_core.settings.parameters import parameters_of
from calib_core.version import __version__
from calib_pipelines import compile as compiling
from calib_pipelines import docs, sources

ROOT = Path(calib_components.__file__).parent
GIVEN_BY_PIPELINES = {
    *("model", "source", "shard", "stream", "champion", "number"),
    *("evaluation", "before", "after", "model_before", "model_after", "branch"),
}
OWN = {"fresh_data": {"model"}}
"""Parameters that bear such a name, and are a config's all the same."""
VARIANTS = {"em_ece_finetune": {"calib_components.cft_finetune.component", "calib_components.variants"}}
"""Components that are another one with some words replaced, and what they are made from."""

TYPES = {str: "String", int: "Integer", float: "Float", bool: "Boolean"}


def test_every_component_is_tested():
    assert set(sources.COMPONENTS) == set(calib_components.__all__)
    folders = {path.parent.name for path in ROOT.glob("*/component.py")}
    assert folders == set(sources.COMPONENTS)


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_parameters_mirror_the_config(name):
    spec = getattr(calib_components, name).component_spec
    found = {
        key: (given.type, given.default, " ".join((given.description or "").split()))
        for key, given in spec.inputs.items()
        if not given.type.startswith("system.") and key not in GIVEN_BY_PIPELINES - OWN.get(name, set())
    }
    expected = {
        parameter.name: (
            TYPES[parameter.type],
            None if parameter.default is MISSING else parameter.default,
            parameter.description,
        )
        for parameter in (parameters_of(sources.COMPONENTS[name]) if sources.COMPONENTS[name] else ())
    }
    assert found == expected


SOURCES = sources.sources()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_sources_have_the_parameters_of_the_configs(path):
    assert path.read_text() == SOURCES[path], "stale: run `make docs`"


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_outputs_are_described_and_typed(name):
    outputs = getattr(calib_components, name).component_spec.outputs
    assert all(made.description for made in outputs.values())
    kinds = {made.type for made in outputs.values()}
    artifacts = {f"system.{kind}@0.0.1" for kind in ("Dataset", "Model", "Metrics", "HTML", "Artifact")}
    assert kinds <= artifacts | {*TYPES.values(), "typing.List[int]"}


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_source_is_light(name):
    tree = ast.parse((ROOT / name / "component.py").read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules <= VARIANTS.get(name, {"typing", "kfp", "kfp.dsl", "calib_components.image"})
    assert not [node for node in tree.body if isinstance(node, ast.Import)]
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert len(functions) == (name not in VARIANTS)
    for function in functions:
        first, last = function.body[1], function.body[-1]  # the first statement is the docstring
        assert last.end_lineno - first.lineno < 36


@pytest.mark.parametrize("path", compiling.targets(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_compiled_yaml_is_fresh(path, tmp_path):
    fresh = tmp_path / "fresh.yaml"
    compiling.write(compiling.targets()[path], fresh)
    assert path.read_text() == fresh.read_text(), "stale: run `make docs`"


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_compiled_yaml_loads_and_needs_no_pip(name):
    path = ROOT / name / "component.yaml"
    loaded = load_component_from_file(str(path))
    for side in ("inputs", "outputs"):
        expected = getattr(getattr(calib_components, name).component_spec, side) or {}
        assert set(getattr(loaded.component_spec, side) or {}) == set(expected)
    (executor,) = yaml.safe_load(path.read_text())["deploymentSpec"]["executors"].values()
    assert executor["container"]["image"] == f"calib:{__version__}"
    assert "pip install" not in path.read_text()


def test_variant_differs_in_what_was_replaced_and_runs_by_its_own_name():
    sources = {}
    for name in ("cft_finetune", "em_ece_finetune"):
        container = getattr(calib_components, name).component_spec.implementation.container
        assert container.args[-1] == name
        sources[name] = container.command[-1]
        assert f"def {name}(" in sources[name]
    assert "cft_finetune" not in sources["em_ece_finetune"]
    assert '"cft"' not in sources["em_ece_finetune"]
    assert sources["em_ece_finetune"].count('"rcft"') == sources["cft_finetune"].count('"cft"') == 2
    with pytest.raises(ValueError, match="cft_finetune has no 'nowhere' in its source, which other replaces"):
        variant(calib_components.cft_finetune, "other", {"nowhere": "there"})


@pytest.mark.parametrize("path", compiling.targets(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_compiled_yaml_says_that_it_is_generated(path):
    assert path.read_text().startswith("# Compiled by calib from Python; change the source")


def test_image_is_a_compile_time_setting(tmp_path):
    target = tmp_path / "evaluate.yaml"
    script = (
        "import calib_components, pathlib, sys; from calib_pipelines.compile import write;"
        "write(calib_components.evaluate, pathlib.Path(sys.argv[1]))"
    )
    environment = {**os.environ, "CALIB_IMAGE": "registry.example/team/calib:7"}
    subprocess.run([sys.executable, "-c", script, str(target)], env=environment, check=True)
    assert "image: registry.example/team/calib:7\n" in target.read_text()


@pytest.mark.parametrize("path", docs.readmes(), ids=lambda path: path.parent.name)
def test_readme_tables_are_fresh(path):
    text = path.read_text()
    assert text == docs.with_tables(text, docs.pages()[path]), "stale: run `make docs`"
    for name in docs.readmes()[path].component_spec.inputs:
        assert f"| `{name}` |" in text


def test_readme_without_markers_is_refused():
    with pytest.raises(ValueError, match="a page that begins with '# evaluate"):
        docs.with_tables("# evaluate\n", docs.tables(calib_components.evaluate))


VERSION = re.compile(r"(==|>=|<=)?\d+\.\d+\.\d+")


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_metadata_follows_the_rules_of_kubeflows_components(name):
    """kubeflow/pipelines-components, scripts/validate_metadata: these fields in this order, and no others."""
    metadata = yaml.safe_load((ROOT / name / "metadata.yaml").read_text())
    assert list(metadata) == ["name", "stability", "dependencies", "tags", "lastVerified"]
    assert metadata["name"] == name
    assert metadata["stability"] in {"experimental", "alpha", "beta", "stable"}
    assert isinstance(metadata["lastVerified"], datetime)  # a date alone is refused
    assert all(isinstance(tag, str) for tag in metadata["tags"])
    assert list(metadata["dependencies"]) == ["kubeflow"]
    needed = {made["name"]: made["version"] for made in metadata["dependencies"]["kubeflow"]}
    assert all(VERSION.fullmatch(version) for version in needed.values())
    nodes = "nodes" in getattr(calib_components, name).component_spec.inputs
    assert needed.keys() == ({"Pipelines", "Trainer"} if nodes else {"Pipelines"})


@pytest.mark.parametrize("name", sources.COMPONENTS)
def test_owners_are_an_alias_that_is_there(name):
    aliases = yaml.safe_load((ROOT.parent / "OWNERS_ALIASES").read_text())["aliases"]
    owners = yaml.safe_load((ROOT / name / "OWNERS").read_text())
    assert set(owners["approvers"]) | set(owners["reviewers"]) <= aliases.keys()
