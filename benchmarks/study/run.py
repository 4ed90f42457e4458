r"""The study: every method on every model, data set, order of options and seed, one JSON file a run.

    calib prepare --fit train.jsonl --calibration validation.jsonl --test test.jsonl \
        --out-of-domain others.jsonl --max-fit 1600 --out data/openbookqa
    python benchmarks/study/run.py --model smollm2=FOLDER --data openbookqa=data/openbookqa --out results
    python benchmarks/study/tables.py results --out study

A run whose file is there is not run again, so that the command goes on where it was stopped; started several
times, each takes runs that no other has (one GPU holds several). Questions out of domain belong to a set by
what stands before the slash in their subject. Overnight on a CPU, minutes on a GPU.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import filelock
import numpy as np
import torch
import transformers
from methods import METHODS, Orders
from readings import read

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from checkout import commit

from calib_core.predictions.files import read_predictions
from calib_core.predictions.preferences import PREFERENCES_FILE, read_preference_logprobs
from calib_core.runtime.progress import say
from calib_core.steps.evaluate import EvaluateConfig, evaluate
from calib_core.steps.finetune import cft, rcft
from calib_core.storage.files import read_json, whole_file
from calib_core.training.config import FinetuneConfig

STEPS = {"cft": cft, "rcft": rcft}
ConfigType = TypeVar("ConfigType", FinetuneConfig, EvaluateConfig)


@dataclass(frozen=True, kw_only=True)
class Spec:
    """One run.

    Attributes:
        model: name of the aligned model.
        data: name of the data set.
        method: key of `METHODS`.
        orders: of the options while training.
        seed: of everything.
    """

    model: str
    data: str
    method: str
    orders: Orders
    seed: int

    @property
    def key(self) -> str:
        """Name of its file."""
        parts = (self.model, self.data, self.method, self.orders, str(self.seed))
        return "--".join(part.replace(", ", "-").replace(" ", "-") for part in parts)


@dataclass(frozen=True, kw_only=True)
class Study:
    """Where everything is.

    Attributes:
        models: folders or hub ids by name.
        data: data folders of `calib prepare` by name.
        out: folder of the results; what training makes is below it in `work`.
        settings: parameters that differ from the library's defaults, for all runs.
    """

    models: dict[str, str]
    data: dict[str, str]
    out: Path
    settings: dict[str, Any]

    def adapter(self, spec: Spec) -> Path:
        """Folder of a run's adapter."""
        return self.out / "work" / spec.key / "model"

    def result(self, spec: Spec) -> Path:
        """A run's file."""
        return self.out / f"{spec.key}.json"


def specs(study: Study, methods: list[str], orders: list[Orders], seeds: list[int]) -> Iterator[Spec]:
    """Every run, those that others start from before these; a method with one order of options has it."""
    for seed in seeds:
        for data in study.data:
            for model in study.models:
                for name, method in METHODS.items():
                    wanted = name in methods or any(METHODS[other].start == name for other in methods)
                    for order in method.orders if wanted else ():
                        if order in orders or len(method.orders) == 1:
                            yield Spec(model=model, data=data, method=name, orders=order, seed=seed)


def train(study: Study, spec: Spec) -> tuple[str, list[dict[str, Any]]]:
    """The model of a run, and the evaluations of the calibration fold that training made."""
    method = METHODS[spec.method]
    model = study.models[spec.model]
    if method.start:
        started = METHODS[method.start]
        first = Spec(
            model=spec.model, data=spec.data, method=method.start, orders=started.orders[0], seed=spec.seed
        )
        model = str(study.adapter(first))
    history: list[dict[str, Any]] = []
    for number in range(method.passes if method.step else 0):
        last = number == method.passes - 1
        out = study.adapter(spec) if last else study.adapter(spec).with_name(f"pass-{number}")
        settings = {**study.settings, **method.settings, "option_orders": spec.orders}
        config = configured(FinetuneConfig, {**settings, "seed": spec.seed + 1000 * number})
        if not (out / "calibration.json").is_file():
            STEPS[method.step](config, model, Path(study.data[spec.data]), out)
        record = read_json(out / "calibration.json")
        history += [{**point, "epoch": point["epoch"] + number} for point in record["history"]]
        model = str(out)
    return model, history


def run(study: Study, spec: Spec) -> dict[str, Any]:
    """Train, evaluate and read one run."""
    started_s = time.monotonic()
    model, history = train(study, spec)
    trained_s = time.monotonic() - started_s
    folder = study.out / "work" / spec.key / "evaluation"
    config = configured(EvaluateConfig, study.settings)
    found = evaluate(config, model, Path(study.data[spec.data]), folder)
    tables = {name: read_predictions(folder / f"{name}.parquet") for name in found["predictions"]}
    pairs = folder / PREFERENCES_FILE
    return {
        "run": vars(spec),
        "environment": {
            "commit": commit(),
            "python": sys.version.split()[0],
            "numpy": np.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "machine": platform.machine(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        },
        "settings": study.settings,
        "regime": found["regime"],
        "win_rate": found["win_rate"],
        "perplexity": perplexity(pairs) if pairs.is_file() else None,
        "recorded_temperature": found["model"]["temperature"],
        **read(tables, found["model"]["temperature"], n_resamples=config.n_resamples),
        "history": history,
        "seconds": {"training": trained_s, "all": time.monotonic() - started_s},
    }


def configured(config_class: type[ConfigType], settings: dict[str, Any]) -> ConfigType:
    """A config with those of the settings that it has; the others are its defaults."""
    known = {field.name for field in fields(config_class)}
    return config_class(**{name: value for name, value in settings.items() if name in known})


def perplexity(pairs: Path) -> float:
    """Of the chosen continuations of the held-out preference pairs, over all their tokens."""
    table = read_preference_logprobs(pairs)
    return float(np.exp(-table.chosen_nats.sum() / table.chosen_tokens.sum()))


def run_all(study: Study, methods: list[str], orders: list[Orders], seeds: list[int]) -> None:
    """Every run that has no file yet and that no other process has taken."""
    study.out.mkdir(parents=True, exist_ok=True)
    for spec in specs(study, methods, orders, seeds):
        if study.result(spec).is_file():
            continue
        lock = filelock.FileLock(study.out / f"{spec.key}.lock", blocking=bool(_starts_others(spec)))
        try:
            with lock:
                if not study.result(spec).is_file():
                    say(f"study: {spec.key}")
                    text = json.dumps(run(study, spec), indent=1)
                    with whole_file(study.result(spec)) as file:
                        file.write_text(text + "\n", encoding="utf-8")
        except filelock.Timeout:  # another process has it
            continue


def _starts_others(spec: Spec) -> bool:
    """Whether other runs start from this one, so that it is waited for."""
    return any(method.start == spec.method for method in METHODS.values())


def _named(text: str) -> tuple[str, str]:
    name, _, value = text.partition("=")
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r}: give NAME=VALUE")
    return name, value


def _setting(text: str) -> tuple[str, Any]:
    name, value = _named(text)
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    """Run what hasn't been run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", type=_named, action="append", required=True, metavar="NAME=MODEL")
    parser.add_argument("--data", type=_named, action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--orders", nargs="+", default=["cyclic", "given"], choices=["cyclic", "given"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="for all runs"
    )
    given = parser.parse_args()
    known = {field.name for part in (FinetuneConfig, EvaluateConfig) for field in fields(part)}
    if unknown := dict(given.set).keys() - known:
        parser.error(f"--set: no parameter {', '.join(sorted(unknown))}")
    study = Study(models=dict(given.model), data=dict(given.data), out=given.out, settings=dict(given.set))
    run_all(study, given.methods, given.orders, given.seeds)


if __name__ == "__main__":
    main()
