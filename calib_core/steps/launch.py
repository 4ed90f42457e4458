"""Several processes on this machine, started by `accelerate launch`: one command, all of a pod's GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence

from calib_core.errors import CalibError, ConfigError
from calib_core.runtime.interrupts import SIGNALS, Stopped, asked, deferred
from calib_core.runtime.secrets import without_secrets
from calib_core.steps.task import ERROR_FILE_VARIABLE, error_with
from calib_core.storage.leftovers import scratch_folder

LAUNCHER_SPEAKS = ("Traceback (most recent call last)", "torch.distributed.elastic")
"""How the lines begin, or what they hold, with which a launcher tells at length that a process has failed."""

TIED = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 15)  # PR_SET_PDEATHSIG, SIGTERM
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
"""Python that becomes Python with the arguments that follow, and is told to end when its parent has ended:
the processes must not go on alone where this one is killed."""


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run a command of `calib` in several processes of this machine, and wait for them.

    Args:
        processes: how many, one for each GPU where there are GPUs.
        arguments: the command and its flags.

    Raises:
        CalibError: the one that the command raised; or a process ended otherwise (its output has been shown).
        Stopped: this process, or one of them, was told to end.
    """
    _check_devices(processes)
    with scratch_folder() as folder:
        command = [
            *(sys.executable, "-c", TIED),
            *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
            *("--num_processes", str(processes), "--main_process_port", "0", "--mixed_precision", "no"),
            *("--dynamo_backend", "no", "--num_cpu_threads_per_process", str(_threads(processes))),
            *("--log_dir", str(folder), "-m", "calib_core", *arguments),  # else it leaves folders behind
        ]
        error_file = folder / "error.json"
        environment = {**os.environ, ERROR_FILE_VARIABLE: str(error_file)}
        withheld, code = _run(command, environment)
        if code == 0:
            return
        if error_file.exists():
            raise error_with(**json.loads(error_file.read_text(encoding="utf-8")))
    if code in {128 + number for number in SIGNALS}:
        raise Stopped(code - 128)
    sys.stderr.writelines(map(without_secrets, withheld))
    raise CalibError(
        f"one of {processes} training processes ended without an error message, or with the one above "
        f"(the launcher's exit code is {code}); one that is killed for lack of memory leaves none: give "
        "more memory, or use fewer processes"
    )


def _run(command: Sequence[str], environment: dict[str, str]) -> tuple[list[str], int]:
    """Run a command and pass on what it writes; the launcher's own last words, and the exit code."""
    withheld: list[str] = []
    with subprocess.Popen(  # noqa: S603 - our own command
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        try:
            # A signal is handed on to the processes, which end in good order, and this waits for them.
            with deferred(running.send_signal):
                for line in running.stdout or ():
                    if withheld or any(words in line for words in LAUNCHER_SPEAKS):
                        withheld.append(line)
                    else:
                        sys.stderr.write(without_secrets(line))
                        sys.stderr.flush()
                running.wait()
                stopped = asked()
        except BaseException:
            running.terminate()
            raise
    return withheld, 128 + stopped if stopped else running.returncode


def _check_devices(processes: int) -> None:
    import torch  # noqa: PLC0415

    devices = torch.cuda.device_count()
    if 0 < devices < processes:
        raise ConfigError(
            f"`processes` is {processes}, and this machine has {devices} GPU{'s' * (devices > 1)}; give "
            f"{devices} or fewer, or a machine with more GPUs"
        )


def _threads(processes: int) -> int:
    if "OMP_NUM_THREADS" in os.environ:
        return int(os.environ["OMP_NUM_THREADS"])
    return max(1, len(os.sched_getaffinity(0)) // processes)
