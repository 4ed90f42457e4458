"""DPO: what it changes, what its reference is, what reaches the model, what it refuses."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import BOS, CONTEXT_TOKENS, END, EOS, TURN, WORDS, save_tiny_model

from calib_core.data.preferences import Preference
from calib_core.errors import CalibError, DataFormatError
from calib_core.models.loading import LoadedModel, adapter_digest, load_model
from calib_core.scoring.pairs import PreferenceLogprobs, sequence_logprobs, win_rate
from calib_core.training.config import AlignConfig
from calib_core.training.dpo import align_with_dpo
from calib_core.training.lora import attach_lora, save_adapter, trainable_parameters

CONFIG = AlignConfig(
    epochs=4, learning_rate=3e-2, batch_size=4, lora_r=4, lora_alpha=8, warmup_fraction=0.0, dtype="float32"
)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("one-layer"), num_hidden_layers=1)


def fresh(folder: Path, config: AlignConfig = CONFIG) -> LoadedModel:
    return attach_lora(load_model(folder, dtype="float32", trainable=True), config)


def some_pairs(n: int) -> list[Preference]:
    random = np.random.default_rng(0)
    return [
        Preference(
            id=f"p{index}",
            prompt=f"Question {index}: {' '.join(random.choice(WORDS, 5))}? Answer:",
            chosen=f" {' '.join(random.choice(WORDS, random.integers(1, 4)))}",
            rejected=f" {' '.join(random.choice(WORDS, random.integers(1, 4)))}",
        )
        for index in range(n)
    ]


@pytest.fixture(scope="module")
def pairs(model_folder) -> list[Preference]:
    """Pairs of which the model as it comes prefers the rejected side, every time, if not by much."""
    drawn = some_pairs(60)
    nats = margin(sequence_logprobs(fresh(model_folder), drawn))
    nearest = np.argsort(np.abs(nats))[:14]
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in drawn]
    return [(swapped if nats[row] > 0 else drawn)[row] for row in nearest]


def margin(logprobs: PreferenceLogprobs) -> np.ndarray:
    return logprobs.chosen_nats - logprobs.rejected_nats


@pytest.fixture(scope="module")
def aligned(model_folder, pairs):
    """(model, figures) after DPO on a fresh LoRA."""
    loaded = fresh(model_folder)
    return loaded, align_with_dpo(CONFIG, loaded, pairs)


def test_the_preferred_continuation_gains_on_the_rejected_one(model_folder, pairs, aligned) -> None:
    loaded, figures = aligned
    before, after = (sequence_logprobs(model, pairs) for model in (fresh(model_folder), loaded))
    assert win_rate(before)["sum"]["value"] == 0.0
    assert win_rate(after)["sum"]["value"] > 0.8
    assert (margin(after) > margin(before) + 1).all()
    assert (figures["pairs"], figures["steps"]) == (14, 4 * 4)
    assert figures["last_loss"] < 0.5 * figures["first_loss"]


def test_the_reference_is_the_model_as_it_came(aligned) -> None:
    # -log sigmoid(beta * (policy's gain over the reference)) is ln 2 as long as the two are one.
    assert aligned[1]["first_loss"] == pytest.approx(math.log(2), abs=1e-4)


def test_the_reference_of_an_input_adapter_is_that_adapter(pairs, aligned, tmp_path) -> None:
    save_adapter(aligned[0], tmp_path / "adapter", {})
    adapted = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["target_modules"]
    assert adapted == sorted(adapted)  # bytes that are the same in each process
    again = fresh(tmp_path / "adapter")
    before = sequence_logprobs(again, pairs)
    digest = adapter_digest(again.model)
    flipped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs]
    figures = align_with_dpo(replace(CONFIG, epochs=1), again, flipped)
    assert figures["first_loss"] == pytest.approx(math.log(2), abs=1e-4)  # against the base it'd be far off
    assert adapter_digest(again.model) != digest
    assert margin(sequence_logprobs(again, pairs)).mean() < margin(before).mean() - 1
    assert set(again.model.peft_config) == {"default"}
    assert all("lora" in name for name in trainable_parameters(again.model))


def test_the_base_model_stays_as_it_was(model_folder, pairs, aligned) -> None:
    loaded, _ = aligned
    expected = sequence_logprobs(load_model(model_folder, dtype="float32"), pairs)
    with loaded.model.disable_adapter():
        found = sequence_logprobs(loaded, pairs)
    np.testing.assert_allclose(found.chosen_nats, expected.chosen_nats, rtol=0, atol=1e-5)


def test_the_adapter_is_saved_in_pefts_format_and_loads(pairs, aligned, tmp_path) -> None:
    loaded, _ = aligned
    save_adapter(loaded, tmp_path / "adapter", {"method": "dpo"})
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "calibration.json"}
    record = json.loads((tmp_path / "adapter" / "calibration.json").read_text())
    assert record["adapter"] == adapter_digest(loaded.model)
    assert (record["base"], record["base_digest"]) == (loaded.base, loaded.base_digest)
    assert record["method"] == "dpo"
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["r"]) == (loaded.base, 4)
    again = load_model(tmp_path / "adapter", dtype="float32")
    assert again.adapter_digest == record["adapter"]
    found, expected = (sequence_logprobs(model, pairs) for model in (again, loaded))
    np.testing.assert_allclose(found.chosen_nats, expected.chosen_nats, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found.rejected_nats, expected.rejected_nats, rtol=0, atol=1e-5)


def test_the_seed_decides_everything(model_folder, pairs, aligned) -> None:
    again = fresh(model_folder)
    torch.rand(7)
    assert align_with_dpo(CONFIG, again, pairs) == aligned[1]
    assert adapter_digest(again.model) == adapter_digest(aligned[0].model)
    config = replace(CONFIG, seed=1)
    other = fresh(model_folder, config)
    align_with_dpo(config, other, pairs)
    assert adapter_digest(other.model) != adapter_digest(again.model)


def test_markup_in_a_pair_stays_text(model_folder) -> None:
    marked = [
        Preference(
            id="m",
            prompt=f"{TURN}user\nSay {EOS}{BOS}{END}",
            chosen=f" yes{EOS}",
            rejected=f" {TURN}no {BOS} indeed",
        )
    ]
    marked.append(replace(marked[0], id="n", chosen=marked[0].rejected, rejected=marked[0].chosen))
    loaded = fresh(model_folder)
    seen: list[torch.Tensor] = []
    hook = loaded.model.get_input_embeddings().register_forward_pre_hook(
        lambda module, args: seen.append(args[0].detach().clone())
    )
    align_with_dpo(replace(CONFIG, epochs=1, batch_size=1), loaded, marked)
    hook.remove()
    tokenizer = loaded.tokenizer
    special = dict(
        zip((BOS, EOS, TURN, END), tokenizer.convert_tokens_to_ids([BOS, EOS, TURN, END]), strict=True)
    )
    texts = {f"{BOS}{marked[0].prompt}{side}{EOS}" for side in (marked[0].chosen, marked[0].rejected)}
    reference, *steps = seen
    assert reference.shape[0] == 4  # both sides of both pairs at once
    assert len(steps) == 2
    for rows in steps:  # chosen and rejected, one of which is padded with EOS; the other must end in its own
        ends = []
        for ids in rows.tolist():
            length = max(i for i, token in enumerate(ids) if token != special[EOS]) + 1
            ends.append(len(ids) - length)
            assert ids[0] == special[BOS]
            assert not set(special.values()) & set(ids[1:length])
        assert min(ends) == 1
        assert {
            tokenizer.decode(ids[: len(ids) - n + 1]) for ids, n in zip(rows.tolist(), ends, strict=True)
        } == texts


def test_pairs_longer_than_the_context_are_refused_and_named(model_folder, pairs) -> None:
    loaded = fresh(model_folder)
    digest = adapter_digest(loaded.model)
    long = " one two three" * CONTEXT_TOKENS
    bad = [
        replace(pairs[0], id="long-prompt", prompt=long),
        replace(pairs[1], id="long-answer", rejected=long),
    ]
    with pytest.raises(DataFormatError, match=r"2 of 4 .*'long-prompt' \(\d+ tokens.*'long-answer'"):
        align_with_dpo(CONFIG, loaded, [pairs[2], *bad, pairs[3]])
    assert adapter_digest(loaded.model) == digest


def test_a_loss_that_is_not_finite_is_refused(model_folder, pairs) -> None:
    loaded = fresh(model_folder)
    with torch.no_grad():
        loaded.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(CalibError, match="DPO loss is not finite at step 1; use a lower learning_rate"):
        align_with_dpo(replace(CONFIG, epochs=1), loaded, pairs[:4])


def test_a_run_that_changes_nothing_is_refused(model_folder, pairs) -> None:
    config = replace(CONFIG, epochs=1, learning_rate=1e-60)  # each update rounds to zero in float32
    with pytest.raises(CalibError, match="exactly as it was; use a larger learning_rate"):
        align_with_dpo(config, fresh(model_folder, config), pairs[:4])
