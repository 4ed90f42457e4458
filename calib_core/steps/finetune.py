"""Fine-tune: CFT (calibratable regime) and RCFT (non-calibratable regime) of a model on the fit fold."""

from __future__ import annotations

import functools
import os
import re
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from calib_core.errors import CalibError, ConfigError
from calib_core.models.records import FILE as RECORD
from calib_core.models.records import read_adapter_record
from calib_core.runtime import processes
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.settings.flags import flags_of
from calib_core.steps.calibration_record import CalibrationRecord, HistoryRecord
from calib_core.steps.folder import PreparedData, check_sizes, read_data
from calib_core.storage.disks import cache_dir
from calib_core.storage.files import check_output_folder, sha256_json
from calib_core.storage.uris import as_uri, exists, is_remote, join
from calib_core.training.config import (
    CHECKPOINTS_VARIABLE,
    IN_OUTPUTS_BUCKET,
    FinetuneConfig,
    check_processes,
)
from calib_core.version import __version__

if TYPE_CHECKING:
    from calib_core.models.loading import LoadedModel
    from calib_core.scoring.prompts import PromptEncoder
    from calib_core.training.state import TrainingResult

_RUN = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|.+-\d{14}")
"""The part of an output's URI that names the run: Kubeflow's id, or Vertex's name with the time."""

CHECKPOINT_FORMAT = 3

RUN_WHERE = ("processes",)
"""Parameters that say where a run takes place, and nothing of what it computes."""


def cft(config: FinetuneConfig, model: str, data: Path, out: Path) -> CalibrationRecord:
    """Fine-tune on the answers alone, `L_SFT1` (Xiao et al. 2025, section 4).

    With `aim` `accuracy` the run goes on with RCFT's loss from the epoch at which the bound says that the
    model has left the calibratable regime. With several `processes` this one starts them and waits; one of
    several that have been started already does its part.

    Args:
        config: parameters of the run.
        model: model folder, adapter folder (it is trained on) or hub id.
        data: data folder of `prepare`.
        out: adapter folder to write, atomically.

    Returns:
        What `calibration.json` says of the run: every evaluation of the calibration fold, which one was kept
        and why training stopped, the temperature that scoring divides its logits by, parameters,
        fingerprints of the data, seconds.

    Raises:
        CalibError: the model, the data or a parameter can't be used, the loss is not finite, or nothing was
            learned.
    """
    return _finetune(config, model, data, out, "cft")


def rcft(config: FinetuneConfig, model: str, data: Path, out: Path) -> CalibrationRecord:
    """Fine-tune on questions and answers towards EM targets, `L_SFT2 + lambda * L_ECE`.

    Source: Xiao et al. 2025, section 5.

    Arguments, result and errors are those of `cft`.
    """
    return _finetune(config, model, data, out, "rcft")


def _finetune(
    config: FinetuneConfig, model: str, data: Path, out: Path, method: Literal["cft", "rcft"]
) -> CalibrationRecord:
    if not processes.launched():
        check_processes(config, config.processes)
        if config.processes > 1:
            return _launched(config, model, data, out, method)
    from calib_core.models.loading import load_model  # noqa: PLC0415 (commands without models do without)
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.training.checkpoints import drop_checkpoint  # noqa: PLC0415
    from calib_core.training.lora import attach_lora, save_adapter  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, RECORD, inputs=(model, data))
    processes.join()
    prepared = read_data(data, shots=config.shots)
    if config.aim == "accuracy" and method == "cft":  # the regime test decides when CFT is left
        check_sizes(prepared, target_ece=config.target_ece, n_bins=config.n_bins)
    loaded = load_model(
        model,
        base_model=config.base_model,
        dtype=config.dtype,
        trainable=True,
        placement=config.placement,
    )
    origin = loaded.describe()
    attach_lora(loaded, config)
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(form=config.prompt_form, shots=prepared.shots))
    # A run that goes on may have more processes or fewer.
    training = {name: value for name, value in asdict(config).items() if name not in RUN_WHERE}
    content = [__version__, CHECKPOINT_FORMAT, method, training, origin, prepared.fingerprints()]
    work = processes.from_first(lambda: _place_of_checkpoints(sha256_json(content)[:32], out))
    result = _train(config, loaded, prepared, encoder, method, work)
    record: CalibrationRecord = {
        "method": method,
        "input_adapter": origin["adapter"],
        "data": prepared.fingerprints(),
        "parameters": shown(asdict(config)),
        "prompt": encoder.describe(),
        "history": [
            cast(HistoryRecord, {**asdict(evaluation), "chosen": index == result.chosen})
            for index, evaluation in enumerate(result.history)
        ],
        "temperature": result.temperature,
        "steps": result.steps,
        "processes": processes.count(),
        "stopped": result.stopped,
        "seconds": time.monotonic() - started_s,
    }
    save_adapter(loaded, out, record)
    processes.from_first(lambda: drop_checkpoint(work))
    return record


def _train(
    config: FinetuneConfig,
    loaded: LoadedModel,
    prepared: PreparedData,
    encoder: PromptEncoder,
    method: Literal["cft", "rcft"],
    work: str,
) -> TrainingResult:
    """Train the model on the fit fold, watched on the calibration fold; its checkpoints go to `work`."""
    import torch  # noqa: PLC0415 (commands without models do without)

    from calib_core.scoring.questions import encode_questions, score_encoded  # noqa: PLC0415
    from calib_core.training.loop import Finetuning  # noqa: PLC0415
    from calib_core.training.orders import CyclicOrders  # noqa: PLC0415

    encode = functools.partial(encode_questions, encoder=encoder, context_tokens=loaded.context_tokens)
    fit, heldout = (encode(prepared.folds[name]) for name in ("fit", "calibration"))
    orders = CyclicOrders(fit, encode, context_tokens=loaded.context_tokens, seed=config.seed)
    score = functools.partial(score_encoded, loaded, batch_tokens=config.batch_tokens)
    run = Finetuning(
        config,
        loaded,
        orders if config.option_orders == "cyclic" else lambda _: fit,
        score_fit=lambda: score(fit, description="scoring fit"),
        score_heldout=lambda: score(heldout, description="scoring calibration"),
        objective=method,
        work=work,
    )
    try:
        return run.run()
    except torch.OutOfMemoryError as error:
        raise ConfigError(
            f"the GPU's memory of this machine is too small ({str(error).partition('.')[0]}); use fewer "
            "`pass_tokens`, fewer `batch_tokens`, a smaller `lora_r`, `placement=fsdp` on more `processes`, "
            "`placement=qlora`, or a larger GPU (docs/distributed.md has the arithmetic)"
        ) from error


def _place_of_checkpoints(key: str, out: Path) -> str:
    """Path or URI of a run's checkpoints: below `$CALIB_CHECKPOINTS`, or in the cache folder.

    Args:
        key: what names the run.
        out: the adapter's folder. Where `$CALIB_CHECKPOINTS` asks for the outputs' bucket, checkpoints go
            beside the runs, since another run may have to go on where the pod's own isn't tried again.
    """
    from calib_core.training.checkpoints import sweep_checkpoints  # noqa: PLC0415

    root = os.environ.get(CHECKPOINTS_VARIABLE, "")
    if root == IN_OUTPUTS_BUCKET:
        parts = as_uri(out).split("/")
        run = next((i for i, part in enumerate(parts) if i > 2 and _RUN.fullmatch(part)), len(parts) - 1)
        root = "/".join([*parts[:run], "calib-checkpoints"]) if is_remote(as_uri(out)) else ""
    if root:
        try:
            exists(join(root, key))  # before the work: that it can be reached, and with these credentials
            return join(root, key)
        except CalibError as error:
            say(f"checkpoints can't be kept in {root}, so they end with this machine: {error}")
    sweep_checkpoints(cache_dir() / "training")
    return str(cache_dir() / "training" / key)


def _launched(
    config: FinetuneConfig, model: str, data: Path, out: Path, method: Literal["cft", "rcft"]
) -> CalibrationRecord:
    """The same in several processes of this machine."""
    from calib_core.steps.launch import launch  # noqa: PLC0415

    read_data(data, shots=config.shots)  # so that a wrong folder is told before anything is started
    launch(
        config.processes,
        [method, f"--model={model}", f"--data={data}", f"--out={out}", *flags_of(config)],
    )
    return cast(CalibrationRecord, read_adapter_record(out))
