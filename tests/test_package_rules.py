"""Compiled packages, checked against the rules of the backend that is to run them."""

# KFP reads annotations as they stand: no `from __future__ import annotations` here.
import re
from pathlib import Path
from typing import Optional

import pytest
import yaml
from kfp import dsl
from kfp.dsl import Dataset, Input, Model
from rule_packages import PAIRS, documents, load, make, read, write
from strict_backend import Backend

from calib_core.errors import ConfigError
from calib_pipelines import docs
from calib_pipelines.commands import main as cli
from calib_pipelines.packages.checking import RULES, broken, check_package, checked_versions
from calib_pipelines.packages.rules import BACKENDS
from calib_pipelines.packages.spec import Graph
from calib_pipelines.targets import compiling

KUBEFLOW = {rule.id: rule for rule in RULES["kubeflow"]}


def graph(made):
    return Graph(made[0], tuple(made[1:]))


def written(made, path):
    path.write_text(yaml.safe_dump_all(made))
    return path


def found(made, **options):
    return {one.rule.id for one in broken(graph(made), "kubeflow", **options)}


@pytest.mark.parametrize("rule", KUBEFLOW)
def test_every_rule_finds_the_package_that_breaks_it_and_passes_its_neighbour(rule):
    breaks, keeps = PAIRS[rule]
    values = {"uri": "gs://bucket/model"}
    assert found(breaks(), values=values) == {rule}
    assert found(keeps(), values=values) == set()


def test_every_rule_says_where_it_was_read_and_what_to_do():
    assert set(PAIRS) == set(KUBEFLOW)
    assert len(RULES["kubeflow"]) == len(KUBEFLOW)
    for rule in KUBEFLOW.values():
        assert re.search(
            r"(kubeflow/pipelines \d+\.\d+\.\d+|argo-workflows v\d).*\w+\.go:\d+", rule.source
        ), rule.id
        assert rule.text
        assert rule.remedy
        assert set(rule.versions) <= set(BACKENDS)


def test_the_page_of_the_rules_is_fresh():
    path = Path(__file__).parents[1] / "docs" / "backend-rules.md"
    text = path.read_text()
    assert text == docs.with_tables(text, docs.pages()[path]), "stale: run `make docs`"
    told = (path.parent / "kubeflow.md").read_text().partition("## When something goes wrong")[2]
    assert set(re.findall(r"rules? `([\w-]+)`", told)) <= set(KUBEFLOW)


def test_a_refusal_names_rule_place_remedy_and_source(tmp_path):
    path = written(PAIRS["importer-input"][0](), tmp_path / "theirs.yaml")
    with pytest.raises(ConfigError) as caught:
        check_package(path, "kubeflow")
    rule = KUBEFLOW["importer-input"]
    assert caught.value.exit_code == 2
    assert str(caught.value).splitlines() == [
        f"{path} can't run on Kubeflow Pipelines 2.14 to 2.17:",
        f"importer-input: {rule.text}",
        "    root.dag.tasks.importer: the URI is an output of task make",
        f"    remedy: {rule.remedy}",
        f"    source: {rule.source}",
    ]


def test_many_places_of_one_rule_are_counted_and_some_are_named(tmp_path):
    made = PAIRS["retry-time"][0]()
    (task,) = made[0]["root"]["dag"]["tasks"].values()
    made[0]["root"]["dag"]["tasks"] = {f"make-{n}": task for n in range(8)}
    with pytest.raises(ConfigError, match="and 3 more"):
        check_package(written(made, tmp_path / "p.yaml"), "kubeflow")


def test_what_need_not_fail_is_told_and_not_refused(tmp_path):
    (told,) = check_package(written(PAIRS["retry-limit"][0](), tmp_path / "p.yaml"), "kubeflow")
    assert told.startswith("retry-limit: ")
    assert "all attempts together have 3600s" in told


@pytest.mark.parametrize(
    ("rule", "wrong"),
    [
        ("merged-artifact", ("2.14", "2.15", "2.16")),
        ("branch-loop", ("2.14", "2.15", "2.16")),
        ("loop-name", ("2.14", "2.15")),
        ("placeholder-absent", ("2.17",)),
        ("pipeline-field", ("2.14",)),
        ("platform-field", ("2.14",)),
        ("kubernetes-field", ("2.14", "2.15")),
        ("importer-name", BACKENDS),
    ],
)
def test_rules_hold_for_the_releases_that_have_them(rule, wrong):
    made = PAIRS[rule][0]()
    assert tuple(version for version in BACKENDS if rule in found(made, version=version)) == wrong


def test_releases_are_named_where_only_some_refuse_a_package(tmp_path):
    path = written(PAIRS["kubernetes-field"][0](), tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match=r"subPath: is 'models' \(KFP 2.14 to 2.15\)"):
        check_package(path, "kubeflow")
    with pytest.raises(ConfigError, match=r"Kubeflow Pipelines 2.15:\n.*\n.*subPath: is 'models'\n"):
        check_package(path, "kubeflow", version="2.15")
    assert check_package(path, "kubeflow", version="2.16.1") == []


@pytest.mark.parametrize(
    ("given", "checked"),
    [
        ("", BACKENDS),
        ("2.15", ("2.15",)),
        ("v2.16.1", ("2.16",)),
        ("2.17.0-rc.1", ("2.17",)),
        ("3.0", ("2.17",)),
    ],
)
def test_servers_versions_are_read(given, checked):
    assert checked_versions(given) == checked


@pytest.mark.parametrize(
    ("given", "told"), [("2.5.0", "upgrade it"), ("1.8", "upgrade it"), ("newest", "give it as X.Y")]
)
def test_backends_that_are_too_old_are_refused(given, told):
    with pytest.raises(ConfigError, match=told):
        checked_versions(given)


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("text", ["a", "b"])
def test_equal_cached_tasks_make_one_artifact(cached, text):
    @dsl.pipeline(name="p")
    def pipeline():
        one, other = write(text="a"), write(text=text)
        other.set_caching_options(cached)
        read(one=one.outputs["data"], other=other.outputs["data"])

    equal = cached and text == "a"
    assert found(documents(pipeline)) == ({"doubled-artifact"} if equal else set())
    here = Backend({"write": lambda call: None, "read": lambda call: None})
    phases = [here.run(documents(pipeline)).phase for _ in range(2)]
    assert ("Failed" in phases) is equal


def test_one_artifact_is_recognised_through_an_inner_pipeline():
    @dsl.pipeline
    def inner(one: Input[Dataset], other: Input[Dataset]):
        read(one=one, other=other)

    @dsl.pipeline(name="p")
    def pipeline():
        data = write().outputs["data"]
        inner(one=data, other=data)

    (broken_rule,) = broken(graph(documents(pipeline)), "kubeflow")
    assert {one.place for one in broken_rule.findings} == {
        "root.dag.tasks.inner",
        "components.comp-inner.dag.tasks.read",
    }


def test_null_loses_an_inner_pipelines_default():
    @dsl.pipeline
    def inner(text: str = "default"):
        make(text=text)

    @dsl.pipeline(name="p")
    def pipeline(text: Optional[str] = None):  # noqa: UP045 - KFP knows no other way
        inner(text=text)

    made = documents(pipeline)
    assert found(made, values={}) == {"input-null"}
    assert found(made, values={"text": "given"}) == set()
    here = Backend({"make": lambda call: {"Output": call.parameters["text"]}})
    assert here.run(made).errors == {"inner/make": "parent DAG does not have input parameter text"}
    assert here.run(made, {"text": "given"}).phase == "Succeeded"


# Compiling


def compile_to(path, *arguments):
    given = [
        "pipeline",
        "compile",
        "--target",
        "kubeflow",
        "--pipeline",
        "score-large",
        "--output",
        str(path),
    ]
    return cli.main([*given, *arguments])


@pytest.mark.parametrize("version", ["", "2.14", "2.17"])
def test_compiling_checks_what_it_made(tmp_path, version):
    assert compile_to(tmp_path / "p.yaml", "--backend-version", version) == 0
    assert (tmp_path / "p.yaml").is_file()


def test_compiling_for_a_backend_that_is_too_old_is_refused(tmp_path, capsys):
    assert compile_to(tmp_path / "p.yaml", "--backend-version", "2.5") == 2
    assert "2.14 or newer is needed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_breaks_a_rule_is_not_left_behind(tmp_path, capsys, monkeypatch):
    @dsl.pipeline(name="broken")
    def pipeline(uri: str):
        given = dsl.importer(artifact_uri=uri, artifact_class=Model)
        given.set_display_name("input-model")
        load(model=given.output)

    monkeypatch.setattr(compiling, "package", lambda target, settings, *, pipeline: made)
    made = pipeline
    (tmp_path / "p.yaml").write_text("what was there")
    assert compile_to(tmp_path / "p.yaml") == 2
    assert "importer-name: " in capsys.readouterr().err
    assert (tmp_path / "p.yaml").read_text() == "what was there"


# What a run's parameters make of a package


@pytest.mark.parametrize(
    ("uri", "rules"),
    [
        ("gs://bucket/model", set()),
        ("minio://bucket/model", set()),
        ("oci://registry/model", set()),
        ("org/model", {"importer-scheme"}),
        ("/mnt/model", {"importer-scheme"}),
        ("hf://org/model", {"importer-scheme"}),
        ("https://host/model", {"importer-scheme"}),
        ("", {"importer-scheme"}),
    ],
)
def test_uris_that_no_importer_takes_are_found_in_a_runs_parameters(uri, rules):
    made = PAIRS["importer-name"][1]()
    assert found(made, values={"uri": uri}) == rules
    assert found(made) == set()


@pytest.mark.parametrize("name", ['say "no"', "back\\slash", "two\nlines", '{"a": 1}'])
def test_values_that_would_break_a_tasks_inputs_are_found_in_a_runs_parameters(name):
    made = PAIRS["placeholder-json"][1]()
    assert found(made, values={"name": name}) == {"placeholder-json"}
    assert found(made, values={"name": "plain, ünd more"}) == set()


def test_parameters_without_a_value_are_found_once_the_run_has_its_parameters():
    made = PAIRS["input-null"][0]()
    assert found(made) == set()
    assert found(made, values={"text": "given"}) == set()
    assert found(made, values={}) == {"input-null"}
