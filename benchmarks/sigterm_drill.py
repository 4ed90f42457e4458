"""How long does training take from SIGTERM to the end, with a checkpoint?

Trains SmolLM2-135M-Instruct (or the model given) by `cft`, sends SIGTERM at a random time, and measures until
the process has ended with exit code 143 (or by the signal, before training begins). The next trial goes on
from the checkpoint that is there then, and must have no fewer batches done. Prints JSON with all times; the
exit code is 1 where one is over `--limit` or a checkpoint is missing.

    python benchmarks/sigterm_drill.py [--trials 20] [--model FOLDER] [--limit 10] [--seed 0]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

import forked
from checkout import commit

from calib_core.data.questions import write_questions
from calib_core.demo.geography import make_questions
from calib_core.models.embedded import embedded_model
from calib_core.runtime.interrupts import deferred  # noqa: F401 (imported before the forks)
from calib_core.steps.finetune import cft
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.steps.task import reported_errors
from calib_core.storage.files import read_json
from calib_core.training import loop  # noqa: F401
from calib_core.training.config import FinetuneConfig

EARLIEST_S, LATEST_S = 8.0, 25.0
"""When SIGTERM comes, after the start: while the model is trained, or scores the calibration fold."""


def stopped(work: Path, model: Path, after_s: float) -> tuple[float, int]:
    """Train, and send SIGTERM after some time; seconds until the end, and the exit code."""
    config = FinetuneConfig(target_ece=0.15, epochs=1000, patience=10**6, learning_rate=1e-4)

    def train() -> None:
        with reported_errors():
            cft(config, str(model), work / "data", work / "adapter")

    pid = os.fork()
    if pid == 0:
        os.environ["CALIB_CACHE"] = str(work / "cache")
        output = os.open(work / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(output, stream)
        try:
            train()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        os._exit(0)
    time.sleep(after_s)
    told_s = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    end = forked.ended(pid, after_s=300.0)
    return time.monotonic() - told_s, os.waitstatus_to_exitcode(end.status)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--limit", type=float, default=10.0, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    draw, times, wrong = random.Random(given.seed), [], []  # noqa: S311 (no secret)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        write_questions(make_questions(n_other=0)[:600], work / "questions.parquet")
        prepare(PrepareConfig(questions=str(work / "questions.parquet")), work / "data")
        batches = 0
        for number in range(given.trials):
            seconds, code = stopped(work, given.model or embedded_model(), draw.uniform(EARLIEST_S, LATEST_S))
            times.append(round(seconds, 2))
            state = next((work / "cache" / "training").glob("*/state.json"), None)
            done = read_json(state)["batches_done"] if state else -1
            good = code in (128 + signal.SIGTERM, -signal.SIGTERM)  # the latter before training has begun
            if not good or done < batches or seconds > given.limit:
                last = (work / "log").read_text().splitlines()[-1:]
                wrong.append({"trial": number, "code": code, "seconds": seconds, "said": last})
            batches = done
    result = {
        "trials": given.trials,
        "seconds": times,
        "median": statistics.median(times),
        "longest": max(times),
        "batches done in all": batches,
        "wrong": wrong,
        "cpus": os.cpu_count(),
        "commit": commit(),
    }
    print(json.dumps(result, indent=2))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
