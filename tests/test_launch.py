"""`processes`: one command starts several, waits for them, and says what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import save_tiny_model
from trained import world

from calib_core.data.questions import write_questions
from calib_core.errors import CalibError, ConfigError, NotEnoughDataError
from calib_core.runtime.interrupts import Stopped
from calib_core.settings.flags import flags_of
from calib_core.steps import launch as launching
from calib_core.steps.calibrate import CalibrateConfig, calibrate
from calib_core.steps.finetune import cft, rcft
from calib_core.steps.launch import launch
from calib_core.steps.prepare import PrepareConfig, prepare
from calib_core.storage.files import read_json
from calib_core.training.config import FinetuneConfig
from calib_pipelines.commands import main as cli

TWO = FinetuneConfig(
    target_ece=0.3,
    dtype="float32",
    epochs=1,
    learning_rate=5e-3,
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.0,
    processes=2,
)


@pytest.fixture(autouse=True)
def environment(tmp_path, monkeypatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setenv("CALIB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return str(save_tiny_model(tmp_path_factory.mktemp("model"), num_hidden_layers=1))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    sources = {name: str(folder / f"{name}.parquet") for name in ("fit", "calibration", "test")}
    for seed, path in enumerate(sources.values()):
        write_questions(world(31, seed=seed), path)
    prepare(PrepareConfig(**sources), folder / "data")
    return folder / "data"


@pytest.mark.slow
def test_several_processes_leave_what_one_leaves(model, data, tmp_path, monkeypatch, capfd) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    record = rcft(TWO, model, data, tmp_path / "two")
    assert capfd.readouterr().err.count("epoch 1.00: held-out accuracy") == 1
    expected = rcft(replace(TWO, processes=1), model, data, tmp_path / "one")
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        path.name for path in (tmp_path / "one").iterdir()
    }
    assert record == read_json(tmp_path / "two" / "calibration.json")
    assert record["steps"] == expected["steps"]
    for found, wanted in zip(record["history"], expected["history"], strict=True):
        for name in ("train_loss", "nll_nats", "mean_confidence"):
            assert found[name] == pytest.approx(wanted[name], abs=1e-5)
    assert not any((tmp_path / "cache" / "training").iterdir())  # no checkpoint is left
    assert not any((tmp_path / "tmp").iterdir())  # nor the launcher's folders


@pytest.mark.slow
def test_an_error_of_the_processes_is_one_message(data, tmp_path, capfd) -> None:
    arguments = ["cft", "--model", "/no/model", "--data", str(data), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *flags_of(TWO)]) == 2
    said = capfd.readouterr().err
    assert said.count("/no/model: no such folder") == 1
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


def test_wrong_data_is_told_before_anything_is_started(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(launching, "_run", lambda *_: pytest.fail("processes were started"))
    with pytest.raises(CalibError, match=r"data\.json: no such file"):
        cft(TWO, "any", tmp_path, tmp_path / "out")


def test_more_processes_than_gpus_are_refused(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="`processes` is 2, and this machine has 1 GPU; give 1 or fewer"):
        launch(2, ["cft"])


def fake(monkeypatch, script: str) -> None:
    """Put a shell script in the launcher's place."""
    run = launching._run
    monkeypatch.setattr(launching, "_run", lambda _, env: run(["sh", "-c", script], env))


def test_a_process_that_dies_is_told_with_what_it_said(monkeypatch, capsys) -> None:
    fake(monkeypatch, "echo a line; echo 'Traceback (most recent call last):'; echo 'SIGKILL'; exit 1")
    with pytest.raises(CalibError, match=r"one of 2 training processes ended .*exit code is 1"):
        launch(2, ["cft"])
    assert capsys.readouterr().err == "a line\nTraceback (most recent call last):\nSIGKILL\n"


@pytest.mark.parametrize(("code", "kind"), [(1, CalibError), (2, ConfigError), (3, NotEnoughDataError)])
def test_an_error_keeps_its_exit_code(monkeypatch, capsys, code, kind) -> None:
    report = f'{{"message": "too few", "exit_code": {code}}}'
    fake(
        monkeypatch, f"echo '{report}' > $CALIB_ERROR_FILE; echo Traceback '(most recent call last)'; exit 1"
    )
    with pytest.raises(kind, match=r"^too few$") as caught:
        launch(2, ["cft"])
    assert caught.type is kind
    assert capsys.readouterr().err == ""


def test_an_interruption_ends_the_processes(monkeypatch, tmp_path) -> None:
    # Not `sleep`: it would not hear of SIGINT where the tests themselves were started in the background.
    program = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60)"
    fake(monkeypatch, f"echo $$ > {tmp_path}/pid; exec {sys.executable} -c '{program}'")
    timer = threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT))  # to the process, as from a terminal
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        launch(2, ["cft"])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_processes_that_stopped_in_good_order_are_no_error(monkeypatch, tmp_path) -> None:
    report = '{"message": "stopped by SIGTERM at step 3", "exit_code": 143}'
    on_term = "echo '$REPORT' > $CALIB_ERROR_FILE; exit 1"
    script = f'trap "{on_term}" TERM; touch {tmp_path}/on; sleep 60 > /dev/null 2>&1 & wait'
    monkeypatch.setenv("REPORT", report)
    fake(monkeypatch, script)

    def tell() -> None:
        while not (tmp_path / "on").exists():
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    with pytest.raises(Stopped, match=r"^stopped by SIGTERM at step 3$") as caught:
        launch(2, ["cft"])
    teller.join()
    assert caught.value.exit_code == 143


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_command_that_is_told_to_end_keeps_what_it_has_done(model, data, tmp_path, processes, number) -> None:
    config = replace(
        TWO, processes=processes, epochs=300, batch_size=2, evaluations_per_epoch=1, patience=1000
    )
    command = [sys.executable, "-m", "calib_pipelines.commands.main", "cft", f"--model={model}"]
    command += [f"--data={data}", f"--out={tmp_path / 'out'}", *flags_of(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        for line in running.stderr:
            if line.startswith("epoch 2"):
                break
        time.sleep(1)  # somewhere between two evaluations
        (state,) = (tmp_path / "cache" / "training").glob("*/state.json")
        before = read_json(state)
        running.send_signal(number)
        told_s = time.monotonic()
        said = running.stderr.read()
        assert running.wait(60) == 128 + number
        assert time.monotonic() - told_s < 30  # 10 s are promised, on a machine that does nothing else
    after = read_json(state)
    assert after["batches_done"] >= before["batches_done"]
    assert f"stopped by {number.name} at step {after['steps']} of training; its checkpoint is kept" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()
    again = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    with again as running:
        for line in running.stderr:
            if "epoch" in line:
                break
            if line.startswith("resuming from step"):
                found = line
        running.terminate()
    assert found == f"resuming from step {after['steps']} of an earlier attempt\n"


@pytest.mark.skipif(
    sys.platform != "linux", reason="other systems don't tell a process that its parent is gone"
)
def test_processes_end_with_the_one_that_started_them(tmp_path) -> None:
    pid = tmp_path / "pid"
    inner = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    outer = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {launching.TIED!r}, '-c', {inner!r}])"
    )
    with subprocess.Popen([sys.executable, "-c", outer]) as running:
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.05)
        running.kill()
    for _ in range(200):
        if not Path(f"/proc/{pid.read_text()}").exists():
            return
        time.sleep(0.05)
    pytest.fail("the process goes on alone")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "`processes` is 0; give 1 or more"),
        ({"placement": "disk"}, "`placement` is 'disk'; give one of 'whole', 'fsdp', 'qlora'"),
    ],
)
def test_impossible_values_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FinetuneConfig(), **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 9}, "`batch_size` is 8, and each of 9 processes takes at least one question"),
        ({"placement": "fsdp"}, "and there is one; raise `processes`, or give `placement=whole`"),
    ],
)
def test_impossible_numbers_of_processes_are_refused_before_any_work(changes, message, tmp_path) -> None:
    config = replace(FinetuneConfig(), **changes)
    with pytest.raises(ConfigError, match=message):
        cft(config, "any", tmp_path / "no-data", tmp_path / "out")
    everything = CalibrateConfig(**changes)
    with pytest.raises(ConfigError, match=message):
        calibrate(everything, model="any", data=tmp_path, out=tmp_path / "out", adapter=tmp_path / "adapter")


def test_flags_give_the_config_again() -> None:
    assert {"--aim=calibration", "--epochs=1", "--learning-rate=0.005"} <= set(flags_of(TWO))
    assert not [flag for flag in flags_of(TWO) if "critical" in flag]  # not given
