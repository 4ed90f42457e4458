"""Small pipelines of other people: one that breaks each rule of the backend, and a neighbour that doesn't."""

# KFP reads annotations as they stand: no `from __future__ import annotations` here.
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import yaml
from kfp import compiler, dsl, kubernetes
from kfp.dsl import Artifact, Dataset, Input, Model, Output

Documents = list[dict[str, Any]]
PAIRS: dict[str, tuple[Callable[[], Documents], Callable[[], Documents]]] = {}


@dsl.component(base_image="python:3.11")
def make(text: str = "") -> str:
    return text


@dsl.component(base_image="python:3.11")
def numbers() -> list:
    return [1, 2]


@dsl.component(base_image="python:3.11")
def load(model: Input[Model]) -> str:
    return model.uri


@dsl.component(base_image="python:3.11")
def write(data: Output[Dataset], text: str = ""):
    pass


@dsl.component(base_image="python:3.11")
def read(one: Input[Dataset], other: Input[Dataset]):
    pass


@dsl.component(base_image="python:3.11")
def gather(parts: Input[list[Dataset]]) -> str:
    return ""


def documents(pipeline: Any) -> Documents:
    """A pipeline's package."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "package.yaml"
        compiler.Compiler().compile(pipeline, str(path))
        return list(yaml.safe_load_all(path.read_text()))


def pair(rule: str) -> Callable[[Callable[[bool], Any]], Callable[[bool], Any]]:
    """Enter a function that defines a pipeline which breaks a rule, or, where it is given False, keeps it.

    It returns a pipeline, or the documents of a package.
    """

    def enter(define: Callable[[bool], Any]) -> Callable[[bool], Any]:
        def made(broken: bool) -> Callable[[], Documents]:
            def build() -> Documents:
                result = define(broken)
                return result if isinstance(result, list) else documents(result)

            return build

        PAIRS[rule] = (made(True), made(False))
        return define

    return enter


def imported(uri: Any) -> Any:
    """A model's importer."""
    return dsl.importer(artifact_uri=uri, artifact_class=Model, reimport=False)


# Importers


@pair("importer-input")
def importer_input(broken: bool) -> Any:
    @dsl.pipeline
    def inner(uri: str):
        load(model=imported(uri).output)

    @dsl.pipeline(name="p")
    def pipeline(uri: str):
        made = make(text=uri)
        if broken:
            load(model=imported(made.output).output)
        else:
            inner(uri=made.output)

    return pipeline


@pair("importer-waits")
def importer_waits(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(uri: str):
        made = make(text=uri)
        given = imported(uri)
        used = load(model=given.output)
        (given if broken else used).after(made)

    return pipeline


@pair("importer-name")
def importer_name(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(uri: str):
        given = imported(uri)
        if broken:
            given.set_display_name("input-model")
        load(model=given.output).set_display_name("load-model")

    return pipeline


@pair("importer-twin")
def importer_twin(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(uri: str):
        imported(uri).set_display_name("make" if broken else "not-used")
        make(text=make(text=uri).output)

    return pipeline


@pair("importer-metadata")
def importer_metadata(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(uri: str, version: str = "1"):
        given = dsl.importer(
            artifact_uri=uri, artifact_class=Model, metadata={"version": version if broken else "1"}
        )
        load(model=given.output)

    return pipeline


@pair("importer-scheme")
def importer_scheme(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(model: str = "org/model" if broken else "s3://bucket/model"):
        load(model=imported(model).output)

    return pipeline


# Branches


@pair("branch-cached")
def branch_cached(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(text: str):
        with dsl.If(text == "a"):
            first = make(text="first")
            last = make(text=first.output)
            last.set_caching_options(broken)
        with dsl.Else():
            other = make(text="other")
            other.set_caching_options(False)
        make(text=dsl.OneOf(last.output, other.output))

    return pipeline


@pair("branch-loop")
def branch_loop(broken: bool) -> Any:
    def loop():
        with dsl.ParallelFor(["x", "y"]) as item:
            part = make(text=item)
            part.set_caching_options(False)
        return part

    @dsl.pipeline(name="p")
    def pipeline(text: str):
        if not broken:
            loop()
        with dsl.If(text == "a"):
            one = make(text="one")
            one.set_caching_options(False)
            if broken:
                one.after(loop())
        with dsl.Else():
            other = make(text="other")
            other.set_caching_options(False)
        make(text=dsl.OneOf(one.output, other.output))

    return pipeline


@pair("loop-name")
def loop_name(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        with dsl.ParallelFor(["x", "y"], name="parts" if broken else None) as item:
            part = write(text=item)
        with dsl.ParallelFor(["x", "y"], name="of its own") as item:  # nothing is gathered from it
            make(text=item)
        gather(parts=dsl.Collected(part.outputs["data"]))

    return pipeline


@pair("merged-artifact")
def merged_artifact(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(text: str):
        with dsl.If(text == "a"):
            one = write(text="one")
            one.set_caching_options(False)
        with dsl.Else():
            other = write(text="other")
            other.set_caching_options(False)
        if broken:
            merged = dsl.OneOf(one.outputs["data"], other.outputs["data"])
            read(one=merged, other=write().outputs["data"])

    return pipeline


@pair("doubled-artifact")
def doubled_artifact(broken: bool) -> Any:
    @dsl.pipeline
    def inner(one: Input[Dataset], other: Input[Dataset]):
        read(one=one, other=other)

    @dsl.pipeline(name="p")
    def pipeline():
        made, other = write(text="a").outputs["data"], write(text="b").outputs["data"]
        inner(one=made, other=made if broken else other)

    return pipeline


@pair("artifact-list")
def artifact_list(broken: bool) -> Any:
    @dsl.pipeline
    def inner(parts: Input[list[Dataset]]):
        gather(parts=parts)

    @dsl.pipeline(name="p")
    def pipeline():
        with dsl.ParallelFor(["x", "y"]) as item:
            part = write(text=item)
        (inner if broken else gather)(parts=dsl.Collected(part.outputs["data"]))

    return pipeline


@pair("artifact-loop")
def artifact_loop(broken: bool) -> Any:
    @dsl.pipeline
    def several() -> list[Dataset]:
        with dsl.ParallelFor(["x", "y"]) as item:
            part = write(text=item)
        return dsl.Collected(part.outputs["data"])

    @dsl.component(base_image="python:3.11")
    def use(data: Input[Dataset]):
        pass

    @dsl.pipeline(name="p")
    def pipeline():
        if broken:
            with dsl.ParallelFor(several().output) as part:
                use(data=part)
        else:
            with dsl.ParallelFor(numbers().output) as number:
                make(text=number)

    return pipeline


@pair("exit-task")
def exit_task(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        first, second = make(text="1"), make(text="2")
        after = make(text="3").after(first, *[second] if broken else [])
        after.ignore_upstream_failure()

    return pipeline


# Retries


@pair("retry-time")
def retry_time(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        make().set_retry(2, "60s", 2.0, "600s" if broken else "30d")

    return pipeline


@pair("retry-limit")
def retry_limit(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        make().set_retry(2, backoff_max_duration="3600s" if broken else "30d")

    return pipeline


@pair("retry-factor")
def retry_factor(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        make().set_retry(2, "60s", 1.5 if broken else 2.0, "30d")

    return pipeline


# Placeholders and values


@pair("placeholder-unknown")
def placeholder_unknown(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        make(text=dsl.PIPELINE_ROOT_PLACEHOLDER if broken else dsl.PIPELINE_JOB_ID_PLACEHOLDER)

    return pipeline


@pair("placeholder-embedded")
def placeholder_embedded(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        make(text=f"{'run-' if broken else ''}{dsl.PIPELINE_JOB_NAME_PLACEHOLDER}")

    return pipeline


@pair("placeholder-json")
def placeholder_json(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline(name: str):
        make(text=f'{{"name": "{name}"}}' if broken else f"gs://bucket/{name}")

    return pipeline


@pair("placeholder-absent")
def placeholder_absent(broken: bool) -> Any:
    @dsl.container_component
    def say(text: str = "hello"):
        shown = text if broken else dsl.IfPresentPlaceholder("text", then=[text])
        return dsl.ContainerSpec(image="alpine", command=["echo"], args=[shown])

    @dsl.pipeline(name="p")
    def pipeline():
        say()

    return pipeline


@pair("input-null")
def input_null(broken: bool) -> Any:
    @dsl.component(base_image="python:3.11")
    def strict(text: str):
        pass

    @dsl.pipeline(name="p")
    def pipeline(text: Optional[str] = None):  # noqa: UP045 - KFP knows no other way
        (strict if broken else make)(text=text)

    return pipeline


# Fields and sizes


@pair("pipeline-field")
def pipeline_field(broken: bool) -> Any:
    made = documents(importer_name(False))
    if broken:
        made[0]["components"]["comp-load"]["taskConfigPassthroughs"] = [{"field": "ENV"}]
    return made


@pair("platform-field")
def platform_field(broken: bool) -> Any:
    @dsl.pipeline(name="p", pipeline_config=dsl.PipelineConfig(workspace=workspace()) if broken else None)
    def pipeline():
        kubernetes.set_timeout(make(), 60)

    return pipeline


def workspace() -> Any:
    patch = {"accessModes": ["ReadWriteMany"]}
    return dsl.WorkspaceConfig(size="1Gi", kubernetes=dsl.KubernetesWorkspaceConfig(pvcSpecPatch=patch))


@pair("kubernetes-field")
def kubernetes_field(broken: bool) -> Any:
    @dsl.pipeline(name="p")
    def pipeline():
        kubernetes.mount_pvc(make(), "claim", "/data", sub_path="models" if broken else "")

    return pipeline


@pair("executor-kind")
def executor_kind(broken: bool) -> Any:
    made = documents(retry_time(False))
    if broken:
        executors = made[0]["deploymentSpec"]["executors"]
        executors["exec-make"] = {"customJob": {"customJob": {}}}
    return made


@pair("size-argument")
def size_argument(broken: bool) -> Any:
    @dsl.container_component
    def script(data: Output[Artifact]):
        return dsl.ContainerSpec(
            image="alpine", command=["sh", "-c", "# " + "x" * 1024 * (130 if broken else 100)]
        )

    @dsl.pipeline(name="p")
    def pipeline():
        script()

    return pipeline


@pair("size-workflow")
def size_workflow(broken: bool) -> Any:
    made = documents(retry_time(False))
    parts = {"executors": made[0]["deploymentSpec"]["executors"], "components": made[0]["components"]}
    for number in range(11 if broken else 8):
        command = ["sh", "-c", f"# {number}" + "x" * 100_000]
        parts["executors"][f"exec-{number}"] = {"container": {"image": "alpine", "command": command}}
        parts["components"][f"comp-{number}"] = {"executorLabel": f"exec-{number}"}
        task = {"taskInfo": {"name": f"task-{number}"}, "componentRef": {"name": f"comp-{number}"}}
        made[0]["root"]["dag"]["tasks"][f"task-{number}"] = task
    return made


@pair("component-shared")
def component_shared(broken: bool) -> Any:
    def tool(default: str) -> Any:
        @dsl.container_component
        def step(text: str = default):
            return dsl.ContainerSpec(image="alpine", command=["tool"], args=["--text", text])

        return step

    @dsl.pipeline(name="p")
    def pipeline(text: str):
        tool("a")(text=text)
        tool("b" if broken else "a")(text=text)

    return pipeline
