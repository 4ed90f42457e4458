"""Does a reader do anything with a damaged file but read it or say what is wrong with it?

Changes files that are right, in their values or in their bytes, makes Parquet tables of any types, and gives
them to every reader (`tests/fuzz_targets.py`). Anything but an error of this package with a message of
bounded length is a finding, and so is what takes long. Prints JSON with the inputs tried, read and refused
for each target; the exit code is 1 where something was found, and such inputs are kept in `--findings`.

    python benchmarks/fuzz_readers.py [--inputs 1000000] [--target NAME ...] [--seed 0]
    python benchmarks/fuzz_readers.py --engine atheris --target NAME [options of libFuzzer]

A million inputs take about half an hour on one core. With atheris (`pip install atheris`, not for all
versions of Python) the inputs are chosen by the branches that they reach.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import os
import platform
import random
import shutil
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from checkout import commit
from fuzz_inputs import changed, parquet
from fuzz_targets import TARGETS, WORK, Target

from calib_core.errors import CalibError
from calib_core.runtime.messages import MESSAGE_CHARACTERS, shown_message

SLOW_S = 2.0


def made(name: str, rng: random.Random) -> bytes:
    """An input for a target."""
    seeds = TARGETS[name].seeds
    return changed(rng.choice(seeds), rng) if seeds else parquet(name, rng)


def outcome(target: Target, data: bytes) -> str:
    """What a target makes of an input: `read`, `refused`, or what should not be."""
    began_s = time.perf_counter()
    try:
        target.read(data)
        found = "read"
    except CalibError as error:
        fits = len(shown_message(error)) <= MESSAGE_CHARACTERS
        found = "refused" if fits else "a message that is too long"
    except Exception as error:  # what the fuzzing looks for
        place = traceback.extract_tb(error.__traceback__)[-1]
        found = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {str(error)[:80]}"
    return found if time.perf_counter() - began_s < SLOW_S else f"{found}, after {SLOW_S:g} s and more"


def run(inputs: int, seed: int, names: list[str], findings: Path | None) -> dict[str, dict[str, int]]:
    """Try so many inputs, in equal parts for each target."""
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for number in range(inputs):
        name = names[number % len(names)]
        data = made(name, random.Random(f"{seed}:{number}"))  # noqa: S311 (no secret)
        found = outcome(TARGETS[name], data)
        if found not in ("read", "refused") and findings and not counts[name][found]:
            findings.mkdir(parents=True, exist_ok=True)
            (findings / f"{name}-{hashlib.sha256(data).hexdigest()[:12]}".replace("/", " ")).write_bytes(data)
        counts[name][found] += 1
    return {name: dict(found) for name, found in counts.items()}


def with_atheris(name: str, arguments: list[str]) -> None:
    """Let atheris choose the inputs by the branches that they reach; it never returns."""
    import atheris

    def one(data: bytes) -> None:
        try:
            TARGETS[name].read(data)
        except CalibError:
            return

    corpus = WORK / "corpus"
    corpus.mkdir()
    for number in range(200):
        (corpus / str(number)).write_bytes(made(name, random.Random(number)))  # noqa: S311
    atheris.instrument_all()
    atheris.Setup([sys.argv[0], *arguments, str(corpus)], one)
    atheris.Fuzz()


def main() -> int:
    """Fuzz, and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="default: all")
    parser.add_argument("--findings", type=Path, default=Path("fuzz-findings"))
    parser.add_argument("--engine", choices=("random", "atheris"), default="random")
    given, rest = parser.parse_known_args()
    names = given.target or sorted(TARGETS)
    try:
        if given.engine == "atheris":
            with_atheris(names[0], rest)
        began_s = time.monotonic()
        with contextlib.redirect_stderr(io.StringIO()):
            counts = run(given.inputs, given.seed, names, given.findings)
        bad = {
            name: {kind: n for kind, n in found.items() if kind not in ("read", "refused")}
            for name, found in counts.items()
        }
        bad = {name: found for name, found in bad.items() if found}
        result = {
            "inputs": given.inputs,
            "seed": given.seed,
            "seconds": round(time.monotonic() - began_s),
            "targets": counts,
            "findings": bad,
            "environment": {
                "commit": commit(),
                "python": platform.python_version(),
                "cpus": os.cpu_count(),
            },
        }
        sys.stdout.write(json.dumps(result, indent=2) + "\n")
        return int(bool(bad))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
