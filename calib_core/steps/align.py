"""Align: direct preference optimisation of a model on preference pairs (the step that breaks calibration)."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from calib_core.metrics.summary import measure
from calib_core.models.records import FILE as RECORD
from calib_core.runtime.progress import say
from calib_core.runtime.secrets import shown
from calib_core.steps.calibration_record import CalibrationRecord
from calib_core.steps.folder import read_data, read_pairs, required_pairs
from calib_core.storage.files import check_output_folder
from calib_core.training.config import AlignConfig


def align(config: AlignConfig, model: str, data: Path, out: Path) -> CalibrationRecord:
    """Align a model by DPO on the data folder's preference pairs.

    Args:
        config: parameters of the alignment.
        model: model folder, adapter folder (it is trained on) or hub id.
        data: data folder of `prepare`, with preference pairs.
        out: adapter folder to write, atomically.

    Returns:
        What `calibration.json` says of the run: figures of training, win rate on held-out pairs before and
        after, and the test questions' figures before (`unaligned`), against which alignment's harm is seen.

    Raises:
        CalibError: the model, the data or a parameter can't be used, or nothing was learned.
    """
    from calib_core.models.loading import load_model  # noqa: PLC0415
    from calib_core.scoring.forms import resolved_form  # noqa: PLC0415
    from calib_core.scoring.pairs import sequence_logprobs, win_rate  # noqa: PLC0415
    from calib_core.scoring.prompts import PromptEncoder, PromptForm  # noqa: PLC0415
    from calib_core.scoring.questions import score  # noqa: PLC0415
    from calib_core.training.dpo import align_with_dpo  # noqa: PLC0415 (torch, which commands without models do without)
    from calib_core.training.lora import attach_lora, save_adapter  # noqa: PLC0415

    started_s = time.monotonic()
    check_output_folder(out, RECORD, inputs=(model, data))
    pairs, held_out = required_pairs(data), read_pairs(data, "test")
    loaded = attach_lora(
        load_model(
            model,
            base_model=config.base_model,
            dtype=config.dtype,
            trainable=True,
        ),
        config,
    )
    prepared = read_data(data, shots=config.shots)
    form, _ = resolved_form(config.prompt_form, loaded, prepared.folds["fit"], prepared.shots)
    encoder = PromptEncoder(loaded.tokenizer, PromptForm(form=form, shots=prepared.shots))
    unaligned = score(loaded, prepared.folds["test"], encoder, description="scoring test before alignment")
    before = win_rate(sequence_logprobs(loaded, held_out))
    figures = align_with_dpo(config, loaded, pairs)
    after = win_rate(sequence_logprobs(loaded, held_out))
    shares = (before["sum"]["value"], after["sum"]["value"])
    say(f"win rate on {after['n']} held-out pairs: {shares[0]:.3f} -> {shares[1]:.3f}")
    record: CalibrationRecord = {
        "method": "dpo",
        "data": dict(prepared.record["preferences"]),
        "parameters": shown(asdict(config)),
        "prompt": encoder.describe(),
        "training": figures,
        "unaligned": measure(unaligned).to_dict(),
        "win_rate": {"before": before, "after": after},
        "seconds": time.monotonic() - started_s,
    }
    save_adapter(loaded, out, record)
    return record
