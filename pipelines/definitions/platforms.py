"""Where a pipeline's tasks run: one definition, placed on no platform in particular or on a cluster.

A definition is a function whose first parameter is a `Platform`; it makes its tasks as
`place(component)(...)`, and `build` turns it into a pipeline that KFP compiles.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from kfp import dsl
from kfp.dsl.base_component import BaseComponent

from calib_core.errors import ConfigError
from calib_core.models.budget import (
    GIB,
    QUESTION_TOKENS,
    Work,
    fitting_questions,
    host_bytes,
    parse_parameters,
)
from calib_core.settings.checks import Config, ConfigCheck
from calib_core.settings.parameters import parameter
from calib_pipelines.definitions.run_record import recorder_of

Definition = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What a placement must know of a component.

    Attributes:
        work: What it does with a model; None if it loads none.
        outside: Whether it reads what users name: files, buckets or a model hub.
        cached: Whether equal inputs give equal outputs, so that KFP may take an earlier task's.
    """

    work: Work | None = None
    outside: bool = False
    cached: bool = False


KINDS = {
    "data-prep": Kind(outside=True, cached=True),
    "dpo-align": Kind(work="dpo", outside=True, cached=True),
    "evaluate": Kind(work="scoring", outside=True, cached=True),
    "cft-finetune": Kind(work="lora", outside=True, cached=True),
    "em-ece-finetune": Kind(work="lora", outside=True, cached=True),
    "calibrate": Kind(work="lora", outside=True, cached=True),
    "temperature-scaling": Kind(outside=True, cached=True),
    "promote": Kind(outside=True),
    "shard-questions": Kind(outside=True, cached=True),
    "score-shard": Kind(work="scoring", outside=True, cached=True),
    "merge-predictions": Kind(cached=True),
    "measure": Kind(cached=True),
    "convert-predictions": Kind(outside=True, cached=True),
    "fresh-data": Kind(outside=True),
    "publish-champion": Kind(outside=True),
    "register-model": Kind(outside=True),
    "end-branch": Kind(),
    "record-end": Kind(outside=True),
}
"""By a component's name. One that isn't here loads no model and is never cached."""

DEFAULT_BATCH = 8
"""Questions of `QUESTION_TOKENS` in a pass of fine-tuning, and pairs in one of DPO, by default."""

FIRST_PAUSE_S, PAUSE_FACTOR, LONGEST_PAUSE_S = 60, 2.0, 600
"""Pauses between the attempts of a task."""

LIGHT_CPU, LIGHT_GIB = "1", 4
"""What tasks get that load no model."""


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """A GPU.

    Attributes:
        vertex: Its name in Vertex's API.
        gib: Memory that a process can use.
        bfloat16: Whether it computes in bfloat16; where not, `auto` is float32.
    """

    vertex: str
    gib: int
    bfloat16: bool = True


ACCELERATORS = {
    "nvidia-tesla-t4": Accelerator(vertex="NVIDIA_TESLA_T4", gib=14, bfloat16=False),
    "nvidia-tesla-v100": Accelerator(vertex="NVIDIA_TESLA_V100", gib=15, bfloat16=False),
    "nvidia-l4": Accelerator(vertex="NVIDIA_L4", gib=22),
    "nvidia-tesla-a100": Accelerator(vertex="NVIDIA_TESLA_A100", gib=39),
    "nvidia-a100-80gb": Accelerator(vertex="NVIDIA_A100_80GB", gib=79),
    "nvidia-h100-80gb": Accelerator(vertex="NVIDIA_H100_80GB", gib=79),
    "nvidia-h100-mega-80gb": Accelerator(vertex="NVIDIA_H100_MEGA_80GB", gib=79),
    "nvidia-h200-141gb": Accelerator(vertex="NVIDIA_H200_141GB", gib=139),
}
"""By the names that node labels have on GKE."""


@dataclass(frozen=True, kw_only=True)
class Settings(Config):
    """Settings of both platforms."""

    GROUP = "all platforms"

    model_parameters: str = parameter(
        "",
        "Size of the model, such as 135M or 8B: memory is requested accordingly, and hardware that is too "
        "small is refused.",
    )
    accelerator: str = parameter(
        "",
        "GPU of the tasks that load a model, such as nvidia-l4; none if left out.",
        choices=("", *ACCELERATORS),
    )
    count: int = parameter(1, "GPUs for each of these tasks.", at_least=1)
    retries: int = parameter(
        2,
        "How often a failed task is retried, after one minute, then two, then four.",
        at_least=0,
        at_most=10,
    )
    timeout_hours: float = parameter(
        0.0,
        "Longest time that a task with a model may take; 0 for the platform's own limit.",
        at_least=0,
    )
    run_records: str = parameter(
        "",
        "Folder that gets one JSON file at the end of each run, as the tasks see it.",
    )

    def rules(self, check: ConfigCheck) -> None:
        """The fields that all platforms have; a platform's settings go on from here."""
        super().rules(check)
        check.value(
            "model_parameters",
            lambda text: not text or bool(parse_parameters(text)),
            "a size such as 8B",
        )
        check.that(
            lambda c: c.accelerator or c.count == 1,
            f"`count` is {self.count!r} without an `accelerator`; name one of {', '.join(ACCELERATORS)}",
        )

    def check_memory(self, check: ConfigCheck) -> None:
        """A GPU must hold the model and a training step of one question at least.

        Where settings have been found usable one by one, that is.
        """
        if not self.model_parameters or not self.accelerator:
            return
        fitting = [name for name in ACCELERATORS if self._fits(name)]
        check.that(
            lambda c: c.accelerator in fitting,
            f"`accelerator` {self.accelerator!r} has {ACCELERATORS[self.accelerator].gib} GiB, too little "
            f"for a training step of even one question, in {self.dtype(self.accelerator)}, of a model of "
            f"{self.model_parameters} parameters; "
            + (f"give one of {', '.join(fitting)}" if fitting else "no GPU here holds it whole"),
        )

    def _fits(self, accelerator: str) -> bool:
        return self.questions_per_step("lora", accelerator) > 0

    def questions_per_step(self, work: Work, accelerator: str) -> int:
        """How many questions (or pairs) of `QUESTION_TOKENS` one pass of `work` can have on a GPU."""
        return fitting_questions(
            parse_parameters(self.model_parameters),
            work,
            self.dtype(accelerator),
            device_bytes=ACCELERATORS[accelerator].gib * GIB,
        )

    def dtype(self, accelerator: str) -> str:
        """The base model's dtype where the pipeline's `dtype` is `auto`; the larger one on a CPU."""
        return "bfloat16" if accelerator and ACCELERATORS[accelerator].bfloat16 else "float32"

    def host_gib(self, work: Work, *, tokens: int | None = None) -> int:
        """Memory that a task needs beside its GPU, or all of it where it has none, in whole GiB."""
        needed = host_bytes(
            parse_parameters(self.model_parameters),
            work,
            self.dtype(self.accelerator),
            gpu=bool(self.accelerator),
            tokens=tokens,
        )
        return -(-needed // GIB)

    def least_gib(self) -> int:
        """The same for all works, when training takes one question at a time: with less no run can end."""
        return max(self.host_gib("scoring"), self.host_gib("lora", tokens=QUESTION_TOKENS))

    def advice(self, values: Mapping[str, Any] | None = None) -> str:
        """What a run on these settings must mind; empty if there is nothing.

        Args:
            values: parameters that the run is given; None while they aren't known.
        """
        if not self.model_parameters or not self.accelerator:
            return ""
        given = values or {}
        most = {work: self.questions_per_step(work, self.accelerator) for work in ("lora", "dpo")}
        texts = []
        tokens = most["lora"] * QUESTION_TOKENS
        if given.get("pass_tokens", DEFAULT_BATCH * QUESTION_TOKENS) > tokens:
            texts.append(f"fine-tuning takes {tokens} tokens in a pass (`pass_tokens={tokens}`)")
        aligns = values is None or given.get("align", False)
        if aligns and given.get("dpo_batch_size", DEFAULT_BATCH) > most["dpo"]:
            texts.append(
                f"DPO (align) takes {most['dpo']} pairs of 2 x {QUESTION_TOKENS} tokens at a time "
                f"(`dpo_batch_size={most['dpo']}`)"
            )
        if not texts:
            return ""
        return (
            f"on {self.accelerator} with a model of {self.model_parameters} parameters "
            f"{' and '.join(texts)}; more runs out of memory, so run the pipeline with the parameters in "
            "parentheses, or on a larger GPU"
        )


class Platform:
    """Places tasks on no platform in particular: as the components are, with caching set."""

    def __call__(
        self, component: BaseComponent, given: Mapping[str, Any] | None = None
    ) -> Callable[..., dsl.PipelineTask]:
        """What makes a task of `component` here; it takes the component's inputs.

        Args:
            component: what is to run.
            given: the pipeline's parameters; the task gets those that bear the names of its inputs, where it
                isn't given another value.
        """
        kind = KINDS.get(component.name, Kind())
        named = {
            name: value for name, value in (given or {}).items() if name in component.component_spec.inputs
        }

        def make(**inputs: Any) -> dsl.PipelineTask:
            task = self.component(component, kind)(**{**named, **inputs})
            task.set_caching_options(kind.cached)
            self.set_up(task, kind)
            return task

        return make

    def component(self, component: BaseComponent, kind: Kind) -> BaseComponent:
        """The component that runs in its place."""
        return component

    def set_up(self, task: dsl.PipelineTask, kind: Kind) -> None:
        """Give a task what this place knows."""


class ClusterPlatform(Platform):
    """Places tasks on a cluster: failed ones are tried again, and the end of the run is recorded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def set_up(self, task: dsl.PipelineTask, kind: Kind) -> None:
        """Try a failed task again, with growing pauses."""
        if self.settings.retries:
            limit_s = self.backoff_limit_s()
            task.set_retry(self.settings.retries, f"{FIRST_PAUSE_S}s", PAUSE_FACTOR, f"{limit_s}s")

    def backoff_limit_s(self) -> int:
        """What the platform is told as the retries' longest backoff, in whatever sense it takes that."""
        return LONGEST_PAUSE_S


def build(definition: Definition, place: Platform, *, name: str) -> BaseComponent:
    """A pipeline of `definition`, whose tasks run in `place`.

    Args:
        definition: makes the tasks; its first parameter takes the place, the others are the pipeline's.
        place: where they run. On a cluster all tasks stand under an exit handler, which records how the run
            ended; KFP lets nothing out of it, so that pipeline has no outputs of its own.
        name: the pipeline's name.
    """
    if not isinstance(place, ClusterPlatform):
        bound: Definition = functools.partial(definition, place)
        bound.__doc__ = definition.__doc__
        return dsl.pipeline(name=name)(bound)
    signature = inspect.signature(functools.partial(definition, place))
    recorder = recorder_of(signature)

    def under_exit_handler(*values: Any) -> None:
        given = dict(zip(signature.parameters, values, strict=True))
        end = place(recorder)(pipeline=name, folder=place.settings.run_records, **given)
        with dsl.ExitHandler(end, name="run"):
            definition(place, **given)

    under_exit_handler.__signature__ = signature.replace(return_annotation=None)  # type: ignore[attr-defined]
    under_exit_handler.__doc__ = definition.__doc__
    return dsl.pipeline(name=name)(under_exit_handler)


def missing_package(extra: str, package: str) -> ConfigError:
    """What to say where a platform's package isn't installed."""
    return ConfigError(f"{extra} needs {package}; install it with: pip install 'calib-core[{extra}]'")
