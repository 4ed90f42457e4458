"""The training loop: resuming, E-steps, stopping, refusals, and what is kept, on tiny models."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import trained
from tiny import save_tiny_model

from calib_core.decisions.bounds import required_examples
from calib_core.decisions.target import estimate_bin_targets
from calib_core.errors import CalibError, ConfigError
from calib_core.models.loading import LoadedModel, adapter_digest, load_model
from calib_core.predictions.table import Predictions
from calib_core.scoring.prompts import PromptEncoder, PromptForm
from calib_core.scoring.questions import EncodedQuestions, encode_questions, score_encoded
from calib_core.storage.files import read_json
from calib_core.training import loop as training
from calib_core.training.batches import LengthGroupedBatches, cft_loss, rcft_loss
from calib_core.training.checkpoints import load_checkpoint
from calib_core.training.config import FinetuneConfig
from calib_core.training.loop import Finetuning, TrainingResult
from calib_core.training.lora import attach_lora, save_adapter, trainable_parameters
from calib_core.training.stopping import Evaluation, evaluate_heldout

CONFIG = FinetuneConfig(
    epochs=2,
    learning_rate=1e-2,
    batch_size=2,
    gradient_accumulation=2,
    lora_r=4,
    lora_alpha=8,
    lora_dropout=0.2,
    warmup_fraction=0.0,
    evaluations_per_epoch=3,
    e_steps_per_epoch=2,
    patience=99,
    dtype="float32",
)
FIT = tuple(trained.world(13, seed=1))  # 7 batches of 2, the last one not full: 4 steps an epoch
HELDOUT = tuple(trained.world(20, seed=2))

LOSSES = {"cft": cft_loss, "rcft": rcft_loss}

Hook = Callable[["Run"], None]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> Path:
    torch.set_num_threads(1)
    return save_tiny_model(tmp_path_factory.mktemp("one-layer"), num_hidden_layers=1)


@dataclass
class Run:
    """One run of training, with the calls of its scoring functions counted."""

    folder: Path
    config: FinetuneConfig
    objective: str
    work: Path
    fit: Any = FIT
    heldout: Any = HELDOUT
    before_heldout: Hook = lambda run: None
    after_heldout: Hook = lambda run: None
    fit_of_epoch: Callable[[int], EncodedQuestions] | None = None

    def __post_init__(self) -> None:
        self.loaded: LoadedModel = attach_lora(
            load_model(self.folder, dtype="float32", trainable=True), self.config
        )
        encoder = PromptEncoder(self.loaded.tokenizer, PromptForm())
        self.encoded = {
            name: encode_questions(fold, encoder, context_tokens=self.loaded.context_tokens)
            for name, fold in (("fit", self.fit), ("heldout", self.heldout))
        }
        self.calls = {"fit": 0, "heldout": 0}
        self.digests: list[str] = []
        self.tables: list[Predictions] = []
        self.training = Finetuning(
            self.config,
            self.loaded,
            self.fit_of_epoch or (lambda _: self.encoded["fit"]),
            score_fit=lambda: self.score("fit"),
            score_heldout=self.score_heldout,
            objective=self.objective,
            work=self.work,
        )

    def score(self, fold: str) -> Predictions:
        self.calls[fold] += 1
        return score_encoded(self.loaded, self.encoded[fold])

    def score_heldout(self) -> Predictions:
        self.before_heldout(self)
        self.digests.append(self.digest())
        self.tables.append(self.score("heldout"))
        self.after_heldout(self)
        return self.tables[-1]

    def run(self) -> TrainingResult:
        return self.training.run()

    def digest(self) -> str:
        return adapter_digest(self.loaded.model)


class MachineError(Exception):
    """The machine went away."""


def interrupt_at(call: int) -> Hook:
    def hook(run: Run) -> None:
        if run.calls["heldout"] == call:
            raise MachineError

    return hook


@pytest.fixture(scope="module")
def whole(model_folder, tmp_path_factory) -> dict[str, tuple[TrainingResult, Run]]:
    """Runs without an interruption, by objective."""
    runs = {}
    for objective in ("cft", "rcft"):
        run = Run(model_folder, CONFIG, objective, tmp_path_factory.mktemp("whole") / "work")
        runs[objective] = (run.run(), run)
    return runs


def last_state(run: Run) -> dict[str, Any]:
    """Everything that a run's last checkpoint holds, as plain values."""
    checkpoint = load_checkpoint(run.work)
    assert checkpoint is not None
    tensors = {
        part: {name: tensor.tolist() for name, tensor in getattr(checkpoint, part).items()}
        for part in ("adapter", "best_adapter", "optimizer", "random_states")
    }
    return {**tensors, "state": checkpoint.state}


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_evaluations_lie_where_they_should(whole, objective) -> None:
    result, run = whole[objective]
    assert [e.step for e in result.history] == [1, 3, 4, 5, 7, 8]
    assert result.history[2].epoch == 1.0
    assert result.history[5].epoch == 2.0
    assert result.steps == 8
    assert result.stopped == "all 2 epochs were trained"
    # RCFT's E-steps: before the first step, in the middle of each epoch, and where an evaluation has
    # scored already none is scored again.
    assert run.calls == {"fit": 0, "heldout": {"cft": 6, "rcft": 9}[objective]}


# Evaluations come after steps 1, 3, 4 (an epoch's end), 5, 7, 8; RCFT's first call is an E-step.
@pytest.mark.parametrize(
    ("objective", "call"),
    [("cft", 1), ("cft", 2), ("cft", 3), ("cft", 5), ("rcft", 4), ("rcft", 5), ("rcft", 7)],
)
def test_a_run_that_resumes_ends_as_one_that_was_never_interrupted(
    model_folder, whole, tmp_path, objective, call
) -> None:
    expected, whole_run = whole[objective]
    first = Run(model_folder, CONFIG, objective, tmp_path / "work", before_heldout=interrupt_at(call))
    with pytest.raises(MachineError):
        first.run()
    torch.manual_seed(99)  # another process
    second = Run(model_folder, CONFIG, objective, tmp_path / "work")
    result = second.run()
    assert second.calls["heldout"] < whole_run.calls["heldout"]  # it did go on, not begin again
    assert result == expected
    assert second.digest() == whole_run.digest()
    assert last_state(second) == last_state(whole_run)


@pytest.fixture(scope="module")
def hurried(model_folder, tmp_path_factory) -> tuple[TrainingResult, Run]:
    """A run that knows the answers soon, and then learns by heart who was wrong."""
    config = replace(LEARNABLE, patience=2, epochs=40, evaluations_per_epoch=1)
    fit = tuple(trained.world(48, seed=3, right=0.8))
    work = tmp_path_factory.mktemp("hurried") / "work"
    run = Run(model_folder, config, "cft", work, fit=fit, heldout=LEARNABLE_HELDOUT)
    return run.run(), run


def test_the_best_evaluations_adapter_is_kept(hurried) -> None:
    result, run = hurried
    assert "NLL has not improved for 2 evaluations" in result.stopped
    assert result.chosen == len(result.history) - 3
    lowest = min(e.tempered_nll_nats for e in result.history)
    assert result.history[result.chosen].tempered_nll_nats == lowest
    assert run.digest() == run.digests[result.chosen] != run.digests[-1]


def test_no_run_is_left_while_accuracy_is_at_chance(model_folder, tmp_path) -> None:
    # Nothing can be learnt from answers that are drawn at random, so patience alone would end it.
    heldout = tuple(trained.world(60, seed=9, right=0.25))
    config = replace(CONFIG, patience=1, epochs=4, learning_rate=1e-3)
    result = Run(model_folder, config, "cft", tmp_path / "work", heldout=heldout).run()
    assert not any(e.above_chance for e in result.history)
    assert result.stopped == "all 4 epochs were trained"


def test_a_run_that_had_stopped_does_not_go_on_when_it_resumes(model_folder, hurried) -> None:
    expected, first = hurried
    # Say, the adapter could not be written.
    second = Run(model_folder, first.config, "cft", first.work, fit=first.fit, heldout=first.heldout)
    assert second.run() == expected
    assert second.digest() == first.digest()
    assert second.calls["heldout"] == 0


def test_the_seed_decides_everything(model_folder, whole, tmp_path) -> None:
    expected, whole_run = whole["cft"]
    torch.manual_seed(12345)
    again = Run(model_folder, CONFIG, "cft", tmp_path / "again")
    assert again.run() == expected
    assert again.digest() == whole_run.digest()
    other = Run(model_folder, replace(CONFIG, seed=1), "cft", tmp_path / "other")
    assert other.run().history != expected.history


LEARNABLE = replace(
    CONFIG,
    batch_size=4,
    gradient_accumulation=1,
    learning_rate=2e-2,
    lora_r=8,
    lora_alpha=16,
    lora_dropout=0.0,
    epochs=3,
    evaluations_per_epoch=1,
)
LEARNABLE_FIT, LEARNABLE_HELDOUT = (
    tuple(trained.world(n, seed=seed, right=1.0)) for n, seed in ((96, 3), (60, 4))
)


def test_cft_learns_what_can_be_learnt(tiny_llama, tmp_path) -> None:
    run = Run(tiny_llama, LEARNABLE, "cft", tmp_path / "work", fit=LEARNABLE_FIT, heldout=LEARNABLE_HELDOUT)
    before = measured(run)
    result = run.run()
    after, best = measured(run), result.history[result.chosen]
    assert (after.nll_nats, after.accuracy) == (best.nll_nats, best.accuracy)
    assert before.nll_nats > 1.3  # ln 4 = 1.39 is a guess
    assert after.nll_nats < 0.7
    assert before.accuracy < 0.5
    assert after.accuracy > 0.8


def test_rcft_takes_overconfidence_back(model_folder, tmp_path) -> None:
    config = replace(LEARNABLE, epochs=2)
    run = Run(model_folder, config, "rcft", tmp_path / "work", fit=LEARNABLE_FIT, heldout=LEARNABLE_HELDOUT)
    before = measured(run)
    run.run()
    after = measured(run)
    assert before.conf_ece > 0.3
    assert after.conf_ece < 0.5 * before.conf_ece
    assert after.nll_nats < before.nll_nats - 0.2


def measured(run: Run) -> Evaluation:
    table = run.score("heldout")
    return evaluate_heldout(
        table,
        step=0,
        epoch=0,
        objective="",
        train_loss=None,
        lambda_ece=0,
        label_smoothing=0,
        n_bins=10,
    )


def test_every_epoch_goes_through_all_questions_in_another_order(model_folder, tmp_path, monkeypatch) -> None:
    seen: list[int] = []

    def noted(model: Any, encoded: Any, rows: list[int], smoothing: float) -> torch.Tensor:
        seen.extend(rows)
        return cft_loss(model, encoded, rows, smoothing)

    monkeypatch.setattr(training, "cft_loss", noted)
    Run(model_folder, CONFIG, "cft", tmp_path / "work").run()
    first, second = seen[: len(FIT)], seen[len(FIT) :]
    assert sorted(first) == sorted(second) == list(range(len(FIT)))
    assert first != second


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_a_batch_in_several_passes_trains_as_in_one(model_folder, tmp_path, monkeypatch, objective) -> None:
    adapters, sizes = [], []
    for pass_tokens in (10_000, 1):
        seen: list[int] = []

        def noted(
            model: Any, encoded: Any, rows: list[int], *rest: Any, seen=seen, **options: Any
        ) -> torch.Tensor:
            seen.append(len(rows))
            return LOSSES[objective](model, encoded, rows, *rest, **options)

        monkeypatch.setattr(training, f"{objective}_loss", noted)
        config = replace(CONFIG, pass_tokens=pass_tokens, lora_dropout=0.0)
        run = Run(model_folder, config, objective, tmp_path / f"{pass_tokens}")
        run.run()
        adapters.append(run.training._stepper.adapter())
        sizes.append(sorted(set(seen)))
    assert sizes == [[1, 2], [1]]  # 13 questions in batches of 2, or one by one
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=0, atol=1e-5)


def test_dropout_is_on_while_training(model_folder, whole, tmp_path) -> None:
    without = Run(model_folder, replace(CONFIG, lora_dropout=0.0), "cft", tmp_path / "work").run()
    assert without.history[1].nll_nats != whole["cft"][0].history[1].nll_nats


def test_an_adapters_config_names_the_base_as_it_was_asked_for(model_folder, tmp_path) -> None:
    loaded = attach_lora(load_model(model_folder, dtype="float32", trainable=True), CONFIG)
    save_adapter(replace(loaded, base="someone/a-model"), tmp_path / "adapter", {})
    written = read_json(tmp_path / "adapter" / "adapter_config.json")
    assert written["base_model_name_or_path"] == "someone/a-model"


def test_train_loss_is_the_mean_since_the_evaluation_before(model_folder, tmp_path, monkeypatch) -> None:
    values: list[float] = []

    def noted(*args: Any) -> torch.Tensor:
        loss = cft_loss(*args)
        values.append(loss.item())
        return loss

    monkeypatch.setattr(training, "cft_loss", noted)
    result = Run(model_folder, replace(CONFIG, epochs=1), "cft", tmp_path / "work").run()
    assert [e.train_loss for e in result.history] == pytest.approx(
        [sum(values[:2]) / 2, sum(values[2:6]) / 4, values[6]], abs=1e-12
    )


def test_a_model_without_trainable_parameters_is_refused(model_folder, tmp_path) -> None:
    made = attach_lora(load_model(model_folder, dtype="float32", trainable=True), CONFIG)
    save_adapter(made, tmp_path / "adapter", {})
    frozen = load_model(tmp_path / "adapter", dtype="float32", trainable=False)
    with pytest.raises(ConfigError, match="no parameter of the model is trainable; load the adapter with"):
        attach_lora(frozen, CONFIG)
    assert trainable_parameters(attach_lora(load_model(tmp_path / "adapter", trainable=True), CONFIG).model)


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_a_run_that_changes_nothing_is_refused(model_folder, tmp_path, objective) -> None:
    config = replace(CONFIG, epochs=1, learning_rate=1e-60)  # each update rounds to zero in float32
    with pytest.raises(CalibError, match="left the adapter exactly as it was; use a larger learning_rate"):
        Run(model_folder, config, objective, tmp_path / "work").run()


@pytest.mark.parametrize("objective", ["cft", "rcft"])
def test_a_loss_that_is_not_finite_stops_the_run_with_step_and_questions(
    model_folder, tmp_path, objective
) -> None:
    def poison(run: Run) -> None:
        if run.training._state.steps == 1:
            with torch.no_grad():
                next(iter(trainable_parameters(run.loaded.model).values())).fill_(torch.nan)

    run = Run(model_folder, CONFIG, objective, tmp_path / "work", after_heldout=poison)
    third = list(LengthGroupedBatches([len(ids) for ids in run.encoded["fit"].input_ids], 2, CONFIG.seed))[2]
    named = ", ".join(repr(FIT[row].id) for row in third)
    with pytest.raises(
        CalibError, match=f"loss is nan at step 2, questions {named}; use a lower learning_rate"
    ):
        run.run()


@pytest.mark.parametrize(
    ("fold", "times", "calls"),
    [
        # Evaluations score the calibration fold after steps 1, 3, 4, 5, 7, 8: these needn't be scored again.
        pytest.param("holdout", 1, {"fit": 0, "heldout": 6 + 1}, id="holdout: steps 0, (4)"),
        pytest.param("holdout", 2, {"fit": 0, "heldout": 6 + 3}, id="holdout: steps 0, 2, (4), 6"),
        pytest.param("fit", 1, {"fit": 2, "heldout": 6}, id="fit: steps 0, 4"),
        pytest.param("fit", 4, {"fit": 8, "heldout": 6}, id="fit: every step"),
        pytest.param("initial", 4, {"fit": 1, "heldout": 6}, id="initial: once"),
    ],
)
def test_e_steps_use_the_fold_they_are_told_as_often_as_they_are_told(
    model_folder, tmp_path, fold, times, calls
) -> None:
    config = replace(CONFIG, estimation_fold=fold, e_steps_per_epoch=times)
    run = Run(model_folder, config, "rcft", tmp_path / "work")
    run.run()
    assert run.calls == calls


def test_targets_are_those_of_the_latest_e_step(model_folder, whole, tmp_path) -> None:
    _, run = whole["rcft"]
    seventh = run.tables[6]  # before: E-steps at steps 0 and 2, evaluations after 1, 3, 4, 5; now at step 6
    expected = estimate_bin_targets(seventh.confidence(), seventh.correct())
    assert last_state(run)["state"]["targets"] == expected.to_dict()
    config = replace(CONFIG, estimation_fold="initial")
    initial = Run(model_folder, config, "rcft", tmp_path / "work")
    table = initial.score("fit")  # of the model as it came
    initial.run()
    expected = estimate_bin_targets(table.confidence(), table.correct())
    assert last_state(initial)["state"]["targets"] == expected.to_dict()


def test_e_steps_see_the_model_as_it_is(whole) -> None:
    _, run = whole["rcft"]
    assert len(set(run.digests)) == len(run.digests)


@dataclass
class ScriptedRegime:
    """Stands in for the regime test: says `non_calibratable` from its `at`-th call on."""

    at: int
    calls: list[tuple[Predictions, Predictions, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, fit: Predictions, heldout: Predictions, **settings: Any) -> SimpleNamespace:
        self.calls.append((fit, heldout, settings))
        regime = "non_calibratable" if len(self.calls) >= self.at else "calibratable"
        return SimpleNamespace(regime=regime, reasons=("scripted",))


ACCURACY = replace(CONFIG, aim="accuracy", epochs=3, evaluations_per_epoch=2, critical_accuracy=0.5)


def test_aim_accuracy_goes_on_with_rcft_once_the_bound_says_so(model_folder, tmp_path, monkeypatch) -> None:
    regime = ScriptedRegime(at=2)
    monkeypatch.setattr(training, "regime_test", regime)
    run = Run(model_folder, ACCURACY, "cft", tmp_path / "work")
    result = run.run()
    # Asked at the end of each epoch of CFT, and no more once it has been left.
    assert [e.objective for e in result.history] == ["cft"] * 4 + ["rcft"] * 2
    assert len(regime.calls) == 2
    fit, heldout, settings = regime.calls[1]
    assert fit.ids == tuple(q.id for q in FIT)
    assert heldout is run.tables[3]
    assert fit.protocol["adapter"] == heldout.protocol["adapter"] == run.digests[3]
    assert settings == {
        "target_ece": ACCURACY.target_ece,
        "tolerance": ACCURACY.tolerance,
        "critical_accuracy": 0.5,
        "n_bins": ACCURACY.n_bins,
    }


def test_a_run_that_resumes_after_the_change_of_loss_ends_as_the_whole_one(
    model_folder, tmp_path, monkeypatch
) -> None:
    runs = []
    for name, hook in (("whole", None), ("cut", interrupt_at(3))):  # evaluations 0, 1: CFT; 2, 3: RCFT
        monkeypatch.setattr(training, "regime_test", ScriptedRegime(at=1))
        run = Run(model_folder, replace(ACCURACY, epochs=2), "cft", tmp_path / name)
        if hook:
            run.before_heldout = hook
            with pytest.raises(MachineError):
                run.run()
            run = Run(model_folder, replace(ACCURACY, epochs=2), "cft", tmp_path / name)
        runs.append((run.run(), run.digest(), last_state(run)))
    assert [e.objective for e in runs[0][0].history] == ["cft"] * 2 + ["rcft"] * 2
    assert runs[0] == runs[1]


@pytest.mark.parametrize(("aim", "objective", "asked"), [("accuracy", "rcft", 0), ("calibration", "cft", 0)])
def test_the_loss_is_never_changed_otherwise(
    model_folder, tmp_path, monkeypatch, aim, objective, asked
) -> None:
    regime = ScriptedRegime(at=1)
    monkeypatch.setattr(training, "regime_test", regime)
    result = Run(model_folder, replace(ACCURACY, aim=aim, epochs=2), objective, tmp_path / "work").run()
    assert {e.objective for e in result.history} == {objective}
    assert len(regime.calls) == asked


@pytest.mark.parametrize(("critical_accuracy", "second"), [(0.33, "rcft"), (1.0, "cft")])
def test_the_measured_bound_decides(tiny_llama, tmp_path, critical_accuracy, second) -> None:
    # A model that is right on most questions it was trained on and on a third of others has learnt those
    # by heart if people agree on a third of the answers only; if they agree on all, that isn't shown.
    config = replace(
        LEARNABLE, aim="accuracy", critical_accuracy=critical_accuracy, target_ece=0.15, epochs=2
    )
    n = required_examples(config.target_ece)
    fit, heldout = tuple(trained.world(n, seed=3, right=1.0)), tuple(trained.world(n, seed=4, right=0.33))
    result = Run(tiny_llama, config, "cft", tmp_path / "work", fit=fit, heldout=heldout).run()
    assert result.history[0].debiased_ece_high > config.target_ece  # else all would be well
    assert [e.objective for e in result.history] == ["cft", second]
