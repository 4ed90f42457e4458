"""Does a step that was killed anywhere end, when it is run again, as if nothing had happened?

Runs each step on a tiny model once undisturbed, then again and again with SIGKILL: half of the kills come
just before one of the step's own changes of the disk (a file opened for writing, renamed, removed, a folder
made), half at a random time. Then the step is run to its end, as an orchestrator does that tries again, and
everything below the trial's folder (results, cache with checkpoints, temporary folder) must be, name by name
and byte by byte, what the undisturbed run has left. Clocks that results record stand still for that.

    python benchmarks/kill_drill.py run --results kills.jsonl [--trials 60] [--step cft ...] [--seed 0]
    python benchmarks/kill_drill.py summary --results kills.jsonl

`run` appends one JSON line per trial and goes on where an earlier call ended. Trials are forks of one
process that has imported everything, and take a second or two; `cft, 2 processes` starts two of its own and
takes half a minute. The exit code is 1 where a trial ended otherwise than it should.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on matrices this small threads only wait for each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import forked
import tiny
import torch
import trained
from checkout import commit
from forked import ended

from calib_core.data.preferences import Preference, write_preferences
from calib_core.data.questions import write_questions
from calib_core.steps import align as align_step
from calib_core.steps import evaluate as evaluate_step
from calib_core.steps import finetune as finetune_step
from calib_core.steps import promote as promote_step
from calib_core.steps import publish as publish_step
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.training import dpo, loop  # noqa: F401 (imported before the forks)
from calib_core.training.config import AlignConfig

TIME = "2026-01-01T00:00:00+00:00"
SETTINGS: dict[str, Any] = {
    "target_ece": 0.3,  # what a hundred questions in a fold can decide on
    "dtype": "float32",
    "option_orders": "given",  # in this world a cue tells the letter, whatever the option says
    "lora_r": 4,
    "lora_alpha": 8,
    "learning_rate": 5e-3,
    "batch_size": 16,
    "epochs": 2,
    "n_resamples": 100,
    "accuracy_margin": 0.2,
    "mode": "cft",
}
CONFIG = CalibrateConfig(**SETTINGS)
TRAINING = CONFIG.part(finetune_step.FinetuneConfig)
ALIGN = AlignConfig(epochs=2, lora_r=4, lora_alpha=8, learning_rate=1e-2, dtype="float32")
KILLS = 3
"""A trial has from one to so many kills, one in most cases."""

LONGEST_S = 300.0
VARIABLE = "CALIB_DRILL"
"""Marks the processes of a trial, and those that they start."""


@dataclass(frozen=True)
class Places:
    """Where things lie; the same in each trial, since results name paths.

    Attributes:
        inputs: What steps read, made once.
        trial: All that a trial writes.
        done: The stages that a trial has finished: the orchestrator's knowledge, which no kill touches.
    """

    inputs: Path
    trial: Path
    done: Path


Stage = Callable[[Places], object]


def _adapter(places: Places) -> Path:
    return places.trial / "adapter"


def _fresh(places: Places) -> None:
    fresh(
        FreshConfig(model=str(places.inputs / "model")),
        stream=str(places.inputs / "stream"),
        champion=str(places.trial / "champion"),
        data=places.trial / "data",
        snapshot=places.trial / "snapshot",
    )


def _calibrate(places: Places) -> None:
    calibrate(
        CONFIG,
        model=str(places.inputs / "model"),
        data=places.trial / "data",
        out=places.trial / "out",
        adapter=_adapter(places),
    )


def _publish(places: Places, work: Path) -> None:
    publish_step.publish(
        publish_step.PublishConfig(run_name="run"),
        champion=str(places.trial / "champion"),
        snapshot=work / "snapshot",
        summary=work / "out",
        model=work / "adapter",
    )


def _promote(places: Places) -> None:
    run = places.inputs / "run"
    promote_step.promote(
        CONFIG.part(promote_step.PromoteConfig),
        before=run / "out" / "before",
        after=run / "out" / "after",
        model_before=str(places.inputs / "model"),
        model_after=str(run / "adapter"),
        branch="cft",
        out=places.trial / "out",
    )


def _finetune(method: str, processes: int = 1) -> Stage:
    def stage(places: Places) -> None:
        step = finetune_step.cft if method == "cft" else finetune_step.rcft
        config = replace(TRAINING, processes=processes)
        step(config, str(places.inputs / "model"), places.inputs / "data", _adapter(places))

    return stage


STEPS: dict[str, tuple[Stage, ...]] = {
    "prepare": (
        lambda places: prepare(
            PrepareConfig(
                questions=str(places.inputs / "questions.parquet"),
                preferences=str(places.inputs / "pairs.parquet"),
            ),
            places.trial / "data",
        ),
    ),
    "align": (
        lambda places: align_step.align(
            ALIGN, str(places.inputs / "model"), places.inputs / "data", _adapter(places)
        ),
    ),
    "cft": (_finetune("cft"),),
    "rcft": (_finetune("rcft"),),
    "evaluate": (
        lambda places: evaluate_step.evaluate(
            CONFIG.part(evaluate_step.EvaluateConfig),
            str(places.inputs / "model"),
            places.inputs / "data",
            places.trial / "out",
        ),
    ),
    "promote": (_promote,),
    "publish": (lambda places: _publish(places, places.inputs / "run"),),
    "recalibrate": (_fresh, _calibrate, lambda places: _publish(places, places.trial)),
    "cft, 2 processes": (_finetune("cft", processes=2),),
}
"""A step's stages: what an orchestrator runs as tasks, of which it repeats the one that was killed."""


def stop_clocks() -> None:
    """Let results record the same times in every run; what waits or measures for itself keeps its clock."""
    still = SimpleNamespace(monotonic=lambda: 0.0)
    for module in (align_step, evaluate_step, finetune_step):
        module.time = still  # type: ignore[attr-defined]
    for module in (promote_step, publish_step):
        module.now = lambda: TIME  # type: ignore[attr-defined]
    from calib_core.champion import state

    state.now = lambda: TIME


def make_inputs(places: Places) -> None:
    """Make what steps read: a model that is too sure, its questions and pairs, and a run to be published."""
    inputs = places.inputs
    if (inputs / "whole").exists():
        return
    shutil.rmtree(inputs, ignore_errors=True)
    torch.set_num_threads(1)
    plain = tiny.save_tiny_model(
        inputs / "plain", hidden_size=64, head_dim=16, num_hidden_layers=1, initializer_range=0.05
    )
    trained.train(plain, inputs / "model", trained.world(1000, seed=10, right=1.0), epochs=4)
    questions = trained.world(700, seed=1)
    write_questions(questions, inputs / "questions.parquet")
    (inputs / "stream").mkdir()
    write_questions(questions, inputs / "stream" / "batch-1.parquet")
    pairs = [
        Preference(id=f"p{i}", prompt=f"Question {i}: {word}? Answer:", chosen=" one", rejected=" two")
        for i, word in enumerate(tiny.WORDS * 3)
    ]
    write_preferences(pairs, inputs / "pairs.parquet")
    STEPS["prepare"][0](replace(places, trial=inputs))
    _fresh(replace(places, trial=inputs / "run"))
    _calibrate(replace(places, trial=inputs / "run"))
    (inputs / "whole").touch()


def act(places: Places, step: str) -> None:
    """Do a step's stages that are not done yet."""
    done = places.done.read_text().split() if places.done.exists() else []
    for number, stage in enumerate(STEPS[step]):
        if str(number) not in done:
            stage(places)
            done.append(str(number))
            places.done.with_suffix(".new").write_text(" ".join(done))
            places.done.with_suffix(".new").replace(places.done)


def start(places: Places, step: str, kill_at: int, token: str) -> int:
    """Start a step in a fork, with the trial's cache; its id."""
    return forked.start(
        lambda: act(places, step),
        root=places.trial,
        log=places.done.with_suffix(".log"),
        environment={"CALIB_CACHE": str(places.trial / "cache"), VARIABLE: token},
        kill_at=kill_at,
        changes=places.done.with_suffix(".changes"),
    )


def tree(places: Places) -> dict[str, str]:
    """What lies below the trial's folder: paths with the digests of files."""
    found = {}
    for path in sorted(places.trial.rglob("*")):
        name = path.relative_to(places.trial).as_posix()
        found[name] = "/" if path.is_dir() else _digest(path)
    return found


def _digest(path: Path) -> str:
    data = path.read_bytes()
    if path.name == "calibration.json":  # where several processes write it, their clocks go on
        record = json.loads(data)
        record.pop("seconds")
        data = json.dumps(record).encode()
    return hashlib.sha256(data).hexdigest()[:16]


def clear(places: Places) -> None:
    """Make room for a trial."""
    shutil.rmtree(places.trial, ignore_errors=True)
    for path in places.done.parent.glob(f"{places.done.name}*"):
        path.unlink()
    (places.trial / "tmp").mkdir(parents=True)


def alive(token: str) -> list[int]:
    """Processes that bear a trial's mark and haven't ended."""
    mark, found = f"{VARIABLE}={token}".encode(), []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "environ").read_bytes().split(b"\0"):
                found.append(int(path.name))
    return found


@dataclass
class Reference:
    """An undisturbed run of a step: what it leaves, its changes of the disk, and how long it takes."""

    tree: dict[str, str]
    changes: int
    seconds: float


def undisturbed(places: Places, step: str) -> Reference:
    """Run a step to its end."""
    clear(places)
    began_s = time.monotonic()
    if ended(start(places, step, 0, "reference"), after_s=LONGEST_S).status:
        raise SystemExit(f"{step}: fails undisturbed: {places.done.with_suffix('.log').read_text()[-2000:]}")
    changes = int(places.done.with_suffix(".changes").read_text())
    return Reference(tree(places), changes, time.monotonic() - began_s)


def trial(places: Places, step: str, number: int, seed: int, reference: Reference) -> dict[str, Any]:
    """Kill a step, once or more often, run it to its end, and compare."""
    draw = random.Random(f"{seed}:{step}:{number}")  # noqa: S311 (no secret)
    clear(places)
    token, began_s = f"{os.getpid()}-{number}-{seed}", time.monotonic()
    at: list[str] = []
    for _ in range(draw.choice([1, 1, 1, 2, KILLS])):
        by_change = draw.random() < 0.5 and "processes" not in step
        change = draw.randint(1, reference.changes) if by_change else 0
        wait_s = LONGEST_S if by_change else draw.uniform(0.0, reference.seconds)
        attempt = ended(start(places, step, change, token), after_s=wait_s)
        if attempt.killed:
            at.append(f"change {change}" if by_change else f"{wait_s:.3f} s")
        elif attempt.status == 0:
            break  # it was faster
    last = ended(start(places, step, 0, token), after_s=LONGEST_S)
    found = tree(places)
    end_s = time.monotonic() + 20.0
    while (left := alive(token)) and time.monotonic() < end_s:
        time.sleep(0.2)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    both = found.keys() & reference.tree.keys()
    result: dict[str, Any] = {
        "step": step,
        "trial": number,
        "seed": seed,
        "kills": at,
        "ended well": last.status == 0,
        "left behind": sorted(found.keys() - reference.tree.keys()),
        "missing": sorted(reference.tree.keys() - found.keys()),
        "differs": sorted(name for name in both if found[name] != reference.tree[name]),
        "processes left": len(left),
        "seconds": round(time.monotonic() - began_s, 2),
    }
    if last.status:
        result["log"] = places.done.with_suffix(".log").read_text()[-1500:]
    return result


def is_right(result: dict[str, Any]) -> bool:
    """Whether a trial ended as if nothing had happened."""
    bad = ("left behind", "missing", "differs", "processes left")
    return bool(result["ended well"]) and not any(result[name] for name in bad)


def read_results(path: Path) -> list[dict[str, Any]]:
    """The trials that a file holds."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def run(given: argparse.Namespace) -> int:
    """Do the trials that are missing in the file of results."""
    work = given.work.absolute()
    places = Places(inputs=work / "inputs", trial=work / "trial", done=work / "done")
    stop_clocks()
    make_inputs(places)
    known = {(result["step"], result["trial"], result["seed"]) for result in read_results(given.results)}
    wrong = 0
    for step in given.step or STEPS:
        numbers = [n for n in range(given.trials) if (step, n, given.seed) not in known]
        if not numbers:
            continue
        reference = undisturbed(places, step)
        for number in numbers:
            result = trial(places, step, number, given.seed, reference)
            wrong += not is_right(result)
            with given.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
            if not is_right(result):
                print(json.dumps(result), file=sys.stderr)
    return int(bool(wrong))


def summary(given: argparse.Namespace) -> int:
    """Print counts by step as JSON."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for result in read_results(given.results):
        of_step = counts[result["step"]]
        of_step["trials"] += 1
        of_step["kills"] += len(result["kills"])
        of_step["as if nothing had happened" if is_right(result) else "WRONG"] += 1
    total = sum(counts.values(), Counter[str]())
    print(json.dumps({"steps": counts, "total": total, "commit": commit()}, indent=2))
    return int("WRONG" in total)


def main() -> int:
    """Run trials, or count them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "summary"))
    parser.add_argument("--results", type=Path, required=True, help="file of JSON lines")
    parser.add_argument("--work", type=Path, default=Path("kill-drill"), help="folder for models and trials")
    parser.add_argument("--trials", type=int, default=60, help="of each step")
    parser.add_argument("--step", action="append", choices=tuple(STEPS), help="default: all of them")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    return {"run": run, "summary": summary}[given.command](given)


if __name__ == "__main__":
    sys.exit(main())
