"""Is anything lost or doubled when storage fails at every turn?

Does random work on a store through a proxy that damages every few answers (broken and truncated
connections, short and flipped bodies, lost answers, 429, 500 and 503), and holds it to a model of what must
be there. After each operation the object or folder must be as the model says; where the operation ended in an
error, as before or after it. A file that is only ever written by compare-and-swap keeps the number of each
write: all that were reported, each once. Then writers race for one file, and publishers for one folder, of
which some files are alike, and each has one of its own. Prints JSON with all counts; ends with 1 if
anything was lost or doubled.

    python benchmarks/storage_soak.py --store gs|s3|local [--operations 1000] [--races 500] [--seed 0]

`--store s3` takes the server that CALIB_TEST_S3 names (with CALIB_TEST_S3_KEY and CALIB_TEST_S3_SECRET), or
the one of the tests. Some minutes for each on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import random
import shutil
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from checkout import commit

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
import servers
from fault_proxy import FaultProxy, fault_proxy

from calib_core.errors import CalibError, StaleVersionError
from calib_core.storage import bucket as limits
from calib_core.storage import objects
from calib_core.storage import uris as storage

SLICE_BYTES = 64 * 1024
MEDIA = {"gs": r"^GET .*alt=media", "s3": r"^GET [^?]*$"}
SENT = {"gs": r"^POST /upload/", "s3": r"^PUT "}
ANYWHERE = ("reset", "truncated", "lost", "503", "429", "500")
IN_CONTENT = ("short", "flipped", "slow")


@contextlib.contextmanager
def server(store: str) -> Iterator[tuple[str, str]]:
    """URL of a server, and of an empty bucket on it, while the block runs."""
    name = f"calib-soak-{os.getpid()}"
    if store == "gs":
        from google.cloud.storage import Client

        with servers.gcs_emulator() as url:
            point_at(store, url)
            Client(project=None).create_bucket(name)
            yield url, f"gs://{name}"
        return
    import boto3

    with servers.s3_server() as url:
        os.environ |= servers.s3_environment(url)
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=name)
        yield url, f"s3://{name}"


def point_at(store: str, url: str) -> None:
    """Lead the client library to a URL."""
    os.environ["STORAGE_EMULATOR_HOST" if store == "gs" else "AWS_ENDPOINT_URL_S3"] = url


class Soak:
    """Random operations on a bucket, and the model that they are held to."""

    def __init__(self, root: str, store: str, proxy: FaultProxy, scratch: Path, seed: int) -> None:
        self.root, self.store, self.proxy, self.scratch = root, store, proxy, scratch
        self.random = random.Random(seed)  # noqa: S311 (not for secrets)
        self.model: dict[str, dict[str, bytes] | None] = {}
        self.reported: list[int] = []
        self.counts: Counter[str] = Counter()
        self.wrong: list[str] = []

    def run(self, operations: int) -> None:
        """Do so many operations, each with faults ahead of it."""
        choices = [
            self.publish_file,
            self.publish_folder,
            self.publish_folder,
            self.fetch,
            self.swap,
            self.delete,
        ]
        for number in range(operations):
            self.proxy.faults.clear()
            for _ in range(self.random.randint(0, 3)):
                self.add_fault()
            operation = self.random.choice(choices)
            operation(number)
            self.counts[operation.__name__] += 1
            self.counts["faults"] += sum(fault.seen for fault in self.proxy.faults)
        self.proxy.faults.clear()
        self.check_all()

    def add_fault(self) -> None:
        """A fault that befalls one or two of the next requests, at random."""
        if self.random.random() < 0.5:
            kind, pattern = self.random.choice(IN_CONTENT), MEDIA[self.store]
        elif self.store == "s3" and self.random.random() < 0.2:
            kind, pattern = "spoilt", r"^PUT (?!.*champion)"
        else:
            kind, pattern = self.random.choice(ANYWHERE), self.random.choice(["", SENT[self.store]])
        self.proxy.add(kind, pattern, self.random.randint(1, 2))

    def name(self) -> str:
        """One of a few names, so that operations meet."""
        return f"{self.random.choice('abc')}/{self.random.choice('xyz')}"

    def content(self) -> bytes:
        """Nothing, little, or what travels in slices."""
        return self.random.randbytes(self.random.choice([0, 1, 500, 3 * SLICE_BYTES + 17]))

    def attempt(self, name: str, after: dict[str, bytes] | None, work: Callable[[], object]) -> None:
        """Change something; the model has what is there now, which is one of two where the work failed."""
        before = self.model.get(name)
        try:
            work()
            self.model[name] = after
        except CalibError as error:
            self.counts[f"error: {type(error).__name__}"] += 1
            self.proxy.faults.clear()
            found = self.look(name)
            if found is not None and found not in (before, after):
                self.wrong.append(f"{name}: neither what it was nor what it was to be, after: {error}")
            self.model[name] = found if found in (before, after) else None
            if found != after and (found != before or before is None):
                with contextlib.suppress(
                    CalibError
                ):  # half written, as it says: made again for the next round
                    storage.delete(f"{self.root}/{name}")
                self.model[name] = None

    def look(self, name: str) -> dict[str, bytes] | None:
        """What is there now, without faults; None for nothing, or what says that it is half written."""
        try:
            path = storage.fetch(f"{self.root}/{name}", into=self.scratch / "look")
        except CalibError:
            return None
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        found = {"" if p == path else p.relative_to(path).as_posix(): p.read_bytes() for p in files}
        shutil.rmtree(self.scratch / "look")
        return found

    def publish_file(self, number: int) -> None:
        """A file in a place of its own kind, so that no folder is in its way."""
        name, data = f"files/{self.name()}", self.content()
        (self.scratch / "file").write_bytes(data)
        self.attempt(name, {"": data}, lambda: storage.publish(self.scratch / "file", f"{self.root}/{name}"))

    def publish_folder(self, number: int) -> None:
        """A folder of one to four files, in place of what is there."""
        name, folder = f"folders/{self.name()}", self.scratch / "folder"
        files = {f"f{index}": self.content() for index in range(self.random.randint(1, 4))}
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for path, data in files.items():
            (folder / path).write_bytes(data)
        self.attempt(name, files, lambda: storage.publish(folder, f"{self.root}/{name}"))

    def delete(self, number: int) -> None:
        """A file or folder, there or not."""
        name = f"{self.random.choice(['files', 'folders'])}/{self.name()}"
        self.attempt(name, None, lambda: storage.delete(f"{self.root}/{name}"))

    def fetch(self, number: int) -> None:
        """What is fetched is what the model has, or an error says why not."""
        known = sorted(name for name, content in self.model.items() if content is not None)
        if not known:
            return
        name = self.random.choice(known)
        os.environ["CALIB_CACHE"] = str(self.scratch / "cache")
        try:
            path = storage.fetch(f"{self.root}/{name}")
        except CalibError as error:
            self.counts[f"error: {type(error).__name__}"] += 1
            return
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        found = {"" if p == path else p.relative_to(path).as_posix(): p.read_bytes() for p in files}
        if found != self.model[name]:
            self.wrong.append(f"{name}: fetched other bytes than were published")
        shutil.rmtree(self.scratch / "cache", ignore_errors=True)

    def swap(self, number: int) -> None:
        """Add a number to the file of numbers, as a champion's change is."""
        uri = f"{self.root}/champion.json"
        try:
            found = storage.read_versioned(uri)
            numbers = json.loads(found[0]) if found else []
            data = json.dumps([*numbers, number]).encode()
            storage.write_versioned(uri, data, expected=found and found[1])
            self.reported.append(number)
        except CalibError as error:
            self.counts[f"error: {type(error).__name__}"] += 1
            self.proxy.faults.clear()
            now = storage.read_versioned(uri)
            if now and number in json.loads(now[0]):
                self.reported.append(number)  # it did happen, and the error said only that no answer came
                self.counts["swaps that happened though no answer came"] += 1

    def check_all(self) -> None:
        """Everything that must be there is, and nothing else."""
        for name, content in self.model.items():
            if self.look(name) != content:
                self.wrong.append(f"{name}: is not what was published last")
        found = storage.read_versioned(f"{self.root}/champion.json")
        numbers = json.loads(found[0]) if found else []
        if numbers != self.reported:
            self.wrong.append(f"champion.json: holds {len(numbers)} writes of {len(self.reported)} reported")
        expected = {"champion.json"}
        for name, content in self.model.items():
            expected |= {f"{name}/{path}" if path else name for path in content or {}}
        if extra := {file.path for file in storage.list_files(self.root)} - expected:
            self.wrong.append(f"objects that no one has published: {sorted(extra)[:5]}")
        self.counts["objects at the end"] = len(expected)


def races(root: str, rounds: int, writers: int = 4) -> dict[str, int]:
    """Writers who all read the same version and write at once: how many rounds had one winner."""
    uri, expected, counts = f"{root}/race.json", None, Counter[str]()
    start = threading.Barrier(writers)

    def write(data: bytes) -> str | None:
        start.wait()
        try:
            return storage.write_versioned(uri, data, expected=expected)
        except StaleVersionError:
            return None

    with ThreadPoolExecutor(writers) as pool:
        for turn in range(rounds):
            contents = [f"turn {turn}, writer {number}".encode() for number in range(writers)]
            won = list(pool.map(write, contents))
            winners = [number for number, version in enumerate(won) if version]
            found = storage.read_versioned(uri)
            right = len(winners) == 1 and found == (contents[winners[0]], won[winners[0]])
            counts["one winner, whose content is there" if right else "WRONG"] += 1
            expected = found[1] if found else None
    return dict(counts)


def folder_races(root: str, rounds: int, scratch: Path) -> dict[str, int]:
    """Two who publish one folder at once: how often one, or both in turn, are told that they did."""
    counts: Counter[str] = Counter()
    contents: list[dict[str, bytes]] = [
        {f"f{index}": bytes([side]) * 3000 for index in range(3)}
        | {"alike": b"a" * 3000, f"own-{side}": b"o"}
        for side in (0, 1)
    ]
    for side, files in enumerate(contents):
        (scratch / f"side{side}").mkdir()
        for name, data in files.items():
            (scratch / f"side{side}" / name).write_bytes(data)

    def publish(side: int) -> bool:
        try:
            storage.publish(scratch / f"side{side}", f"{root}/raced")
        except StaleVersionError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        for _ in range(rounds):
            won = list(pool.map(publish, (0, 1)))
            path = storage.fetch(f"{root}/raced", into=scratch / "raced")
            found = {p.name: p.read_bytes() for p in path.iterdir()}
            there = {file.path for file in storage.list_files(f"{root}/raced")}
            won_here = [files for files, winner in zip(contents, won, strict=True) if winner]
            right = found in won_here and there == found.keys()
            counts["WRONG" if not right else "one winner" if sum(won) == 1 else "one after the other"] += 1
    return dict(counts)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=("gs", "s3", "local"), required=True)
    parser.add_argument("--operations", type=int, default=1000)
    parser.add_argument("--races", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for name in ("urllib3", "google", "botocore"):
        logging.getLogger(name).setLevel(logging.ERROR)
    limits.SLICE_BYTES, limits.FIRST_PAUSE_S, objects.PAUSE_S = SLICE_BYTES, 0.01, 0.01
    limits.RETRY_S = limits.MOVING_RETRY_S = 2.0
    result: dict[str, Any] = {"store": given.store, "seed": given.seed}
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        wrong: list[str] = []
        if given.store == "local":
            root = str(scratch / "root")
        else:
            url, root = stack.enter_context(server(given.store))
            with fault_proxy(url) as proxy, contextlib.redirect_stderr(io.StringIO()):
                point_at(given.store, proxy.url)
                soak = Soak(root, given.store, proxy, scratch, given.seed)
                soak.run(given.operations)
            wrong = soak.wrong
            result |= {"operations": given.operations, "counts": dict(sorted(soak.counts.items()))}
            point_at(given.store, url)
        result["folders raced"] = folder_races(root, given.races, scratch)
        result["races"] = races(root, given.races)
    result["lost or doubled"] = wrong
    result["environment"] = {"commit": commit(), "python": platform.python_version(), "cpus": os.cpu_count()}
    print(json.dumps(result, indent=2))
    return int(bool(wrong) or "WRONG" in {**result["races"], **result.get("folders raced", {})})


if __name__ == "__main__":
    sys.exit(main())
