"""A year of scheduled runs with faults: are the figures complete, and do memory and disk stay as they are?

Runs what the pipeline `recalibrate` does (fresh, calibrate, publish) once a week for 52 weeks on a tiny
model, each time after a batch of new questions, whose annotators' accuracy changes with the season. Each task
is a process of its own. In half of the weeks something befalls the run: a task is killed, at a random time or
just before a random change of the disk, and tried again; the run is lost, and never tried again; it is
published by X

    python benchmarks/scheduled_soak.py [--store local|gs|s3] [--weeks 52] [--seed 0]

Prints JSON: what befell the runs, and the checks: one row of figures for each run that was published, the
questions of a lost run in the next one, every question measured once, nothing left in the temporary folder,
the checkpoints' folder and the champion's runs, and the most memory that a task had at the beginning and at
the end. The exit code is 1 where one fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # on matrices this small threads only wait for each other
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import forked
import storage_soak
import tiny
import torch
import trained
from checkout import commit
from fault_proxy import FaultProxy

from calib_core.champion.history import read_figures
from calib_core.champion.state import read_champion
from calib_core.data.questions import read_questions, write_questions
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.fresh import FreshConfig, fresh
from calib_core.steps.publish import PublishConfig, publish
from calib_core.storage import bucket as limits
from calib_core.storage import objects, uris
from calib_core.storage.files import read_json
from calib_core.training import loop  # noqa: F401 (imported before the forks)

CONFIG = CalibrateConfig(
    target_ece=0.3,
    dtype="float32",
    option_orders="given",
    lora_r=4,
    lora_alpha=8,
    learning_rate=5e-3,
    batch_size=16,
    epochs=2,
    n_resamples=100,
    accuracy_margin=0.2,
)
SEASONS = (0.75, 0.75, 0.4, 0.4)
"""Annotators' accuracy, a quarter of a year each."""

BATCH = 160
LONGEST_S = 300.0
FAULT_EVERY = 4
"""In a bucket, one request of so many has a fault."""


class Soak:
    """The runs, what befell them, and what they must leave."""

    def __init__(self, work: Path, root: str, seed: int) -> None:
        self.work, self.stream, self.champion = work, f"{root}/stream", f"{root}/champion"
        self.random = random.Random(seed)  # noqa: S311 (no secret)
        self.counts: Counter[str] = Counter()
        self.published: list[set[str]] = []
        self.memory_kb: dict[str, list[int]] = defaultdict(list)
        self.left: list[str] = []
        self.model = str(self._model())
        self.waiting: set[str] = set()

    def _model(self) -> Path:
        torch.set_num_threads(1)
        sizes = {"hidden_size": 64, "head_dim": 16, "num_hidden_layers": 1, "initializer_range": 0.05}
        plain = tiny.save_tiny_model(self.work / "plain", **sizes)
        return trained.train(plain, self.work / "model", trained.world(1000, seed=10, right=1.0), epochs=4)

    def week(self, number: int, *, calm: bool) -> None:
        """A batch arrives, and a run takes place."""
        questions = trained.world(BATCH, seed=1000 + number, right=SEASONS[number // 13 % len(SEASONS)])
        batch = self.work / "batch.parquet"
        write_questions(questions, batch)
        uris.publish(batch, f"{self.stream}/batch-{number:03d}.parquet")
        self.waiting |= {f"{q.question} {q.choices}" for q in questions}
        run = self.work / "run"
        shutil.rmtree(run, ignore_errors=True)
        for name in ("gcs", "s3"):  # where there are buckets, a pod's downloads end with it
            shutil.rmtree(self.work / "cache" / name, ignore_errors=True)
        befalls = "nothing" if calm else self.random.choice(["nothing"] * 3 + ["killed", "lost", "twice"])
        stages = [self._fresh, self._calibrate, self._publish]
        struck = self.random.randrange(len(stages))
        self.counts[f"runs: {befalls}"] += 1
        for index, stage in enumerate(stages):
            if index == struck and befalls in ("killed", "lost"):
                for _ in range(self.random.randint(1, 3)):
                    self._killed(lambda stage=stage: stage(run))  # type: ignore[misc]
                if befalls == "lost" and index < len(stages) - 1:
                    return
            self._task(stage, run, twice=befalls == "twice" and index == len(stages) - 1)
        read = read_questions(run / "snapshot" / "questions.parquet")[0]
        self.published.append({f"{q.question} {q.choices}" for q in read})
        self.waiting -= self.published[-1]
        summary = read_json(run / "out" / "summary.json")
        self.counts[f"branch {summary['branch']}{', promoted' * summary['promoted']}"] += 1
        self._look_for_leftovers(number)

    def _fresh(self, run: Path) -> None:
        config = FreshConfig(model=self.model)
        places = {"data": run / "data", "snapshot": run / "snapshot"}
        fresh(config, stream=self.stream, champion=self.champion, **places)

    def _calibrate(self, run: Path) -> None:
        model = read_json(run / "snapshot" / "state.json")["champion"]["model"]
        local = uris.fetch(model)
        calibrate(
            CONFIG,
            model=str(local),
            model_uri=model,
            data=run / "data",
            out=run / "out",
            adapter=run / "adapter",
        )

    def _publish(self, run: Path) -> None:
        publish(
            PublishConfig(run_name="weekly"),
            champion=self.champion,
            snapshot=run / "snapshot",
            summary=run / "out",
            model=run / "adapter",
        )

    def _start(self, stage: Callable[[], object], kill_at: int = 0) -> int:
        """A task in a process of its own."""
        (self.work / "tmp").mkdir(exist_ok=True)
        cache = {"CALIB_CACHE": str(self.work / "cache")}
        return forked.start(stage, root=self.work, log=self.work / "log", environment=cache, kill_at=kill_at)

    def _killed(self, stage: Callable[[], object]) -> None:
        by_change = self.random.random() < 0.5
        pid = self._start(stage, self.random.randint(1, 60) if by_change else 0)
        found = forked.ended(pid, after_s=LONGEST_S if by_change else self.random.uniform(0.0, 1.5))
        self.counts["kills"] += found.killed

    def _task(self, stage: Callable[[Path], object], run: Path, *, twice: bool) -> None:
        """A task to its end, tried again as an orchestrator does where storage gave up."""
        for _ in range(4):
            forks = [self._start(lambda: stage(run)) for _ in range(1 + twice)]
            found = [forked.ended(pid, after_s=LONGEST_S) for pid in forks]
            self.memory_kb[stage.__name__.strip("_")] += [each.memory_kb for each in found]
            if not any(each.status for each in found):
                return
            self.counts["tasks tried again"] += 1
            self.counts[(self.work / "log").read_text().splitlines()[-1][:160]] += 1
        raise SystemExit(f"a task fails: {(self.work / 'log').read_text()[-2000:]}")

    def _look_for_leftovers(self, number: int) -> None:
        for path in (self.work / "tmp", self.work / "cache" / "training"):
            self.left += [f"week {number}: {each}" for each in (path.iterdir() if path.is_dir() else ())]

    def wrong(self) -> list[str]:
        """What is not as it must be at the end."""
        wrong = [f"left: {path}" for path in self.left]
        rows = read_figures(self.champion)
        if len(rows) != len(self.published) or len({row["run"] for row in rows}) != len(rows):
            wrong.append(f"{len(rows)} rows of figures for {len(self.published)} runs")
        if self.waiting:
            wrong.append(f"{len(self.waiting)} questions were never measured")
        total = sum(map(len, self.published))
        if total != len(set().union(*self.published)):
            wrong.append("questions were measured twice")
        found = read_champion(self.champion)
        keys = {row["run"] for row in rows}
        if found is None or found[0].run not in keys:
            wrong.append("the champion was written by a run without figures")
        strange = set(uris.list_folders(f"{self.champion}/runs")) - keys
        if strange:
            wrong.append(f"folders of overtaken runs: {sorted(strange)}")
        promoted = sum(row["promoted"] for row in rows)
        if found and found[0].number != 1 + promoted:
            wrong.append(f"{promoted} promotions make change {found[0].number}")
        return wrong


@contextlib.contextmanager
def faulty_store(store: str, seed: int) -> Iterator[str]:
    """URI of a bucket behind a proxy with faults, which runs in a process of its own."""
    with storage_soak.server(store) as (url, root):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            proxy = FaultProxy(url)
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            os.write(writer, proxy.url.encode())
            os.close(writer)
            draw = random.Random(seed)  # noqa: S311 (no secret)
            soak = storage_soak.Soak(root, store, proxy, Path(), seed)
            while True:
                seen = len(proxy.requests)
                proxy.faults = [fault for fault in proxy.faults if fault.seen < fault.times]
                if not proxy.faults and draw.randrange(FAULT_EVERY) == 0:
                    soak.add_fault()
                del proxy.requests[:seen]
                time.sleep(0.02)
        os.close(writer)
        storage_soak.point_at(store, os.read(reader, 200).decode())
        try:
            yield root
        finally:
            os.kill(pid, signal.SIGTERM)
            os.waitpid(pid, 0)
            storage_soak.point_at(store, url)


def main() -> int:
    """Run the weeks, and print what came of them."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=("local", "gs", "s3"), default="local")
    parser.add_argument("--weeks", type=int, default=52)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    limits.FIRST_PAUSE_S, objects.PAUSE_S = 0.05, 0.05
    began_s = time.monotonic()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="weeks-")))
        local = given.store == "local"
        root = str(work / "root") if local else stack.enter_context(faulty_store(given.store, given.seed))
        soak = Soak(work, root, given.seed)
        for number in range(given.weeks):
            soak.week(number, calm=number == given.weeks - 1)  # the last one leaves nothing waiting
        wrong = soak.wrong()
        sizes = {
            name: sum(path.stat().st_size for path in (work / name).rglob("*") if path.is_file())
            for name in ("tmp", "cache")
        }
        memory_mb = {
            stage: [round(statistics.median(part) / 1024) for part in (known[:10], known[-10:])]
            for stage, known in soak.memory_kb.items()
        }
    if any(last > 1.1 * first for first, last in memory_mb.values()):
        wrong.append("memory grows")
    result: dict[str, Any] = {
        "store": given.store,
        "weeks": given.weeks,
        "seed": given.seed,
        "counts": dict(sorted(soak.counts.items())),
        "rows of figures": len(soak.published),
        "most memory of a task, medians of the first and last ten, MB": memory_mb,
        "bytes left in the temporary folder and the cache": sizes,
        "wrong": wrong,
        "seconds": round(time.monotonic() - began_s),
        "commit": commit(),
    }
    print(json.dumps(result, indent=2))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
