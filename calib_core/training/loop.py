"""One training loop for CFT and RCFT on accelerate and PEFT; it stops by the calibration fold, and resumes.

Several processes do what one does: a batch is shared out among them, its loss is the mean over the whole
batch whatever the shares and however many passes its questions take, and what is decided, or estimated from
a fold, the first process decides for all.

Source: Xiao et al. 2025, sections 4 (CFT) and 5 (RCFT, EM); the estimation fold and the stopping rule are
this project's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.nn import Module

from calib_core.decisions.bounds import regime_test
from calib_core.decisions.target import estimate_bin_targets
from calib_core.errors import CalibError
from calib_core.models.loading import LoadedModel, adapter_digest
from calib_core.predictions.table import Predictions
from calib_core.runtime import interrupts, processes
from calib_core.runtime.interrupts import Stopped
from calib_core.runtime.progress import Progress, say
from calib_core.scoring.questions import EncodedQuestions
from calib_core.training.balance import Weights, rebalanced
from calib_core.training.batches import LengthGroupedBatches, Objective, cft_loss, passes, rcft_loss
from calib_core.training.checkpoints import (
    Checkpoint,
    own_random_states,
    random_states,
    restore_own_random_states,
    restore_random_states,
    save_checkpoint,
    shared_checkpoint,
)
from calib_core.training.config import FinetuneConfig
from calib_core.training.state import RunState, TrainingResult
from calib_core.training.stepping import Stepper
from calib_core.training.stopping import best_evaluation, evaluate_heldout, should_stop

SAVE_EVERY_S = 300.0
"""A checkpoint is written at every evaluation, and where these are rare after so much time: a node that is
taken away may say nothing before."""

ScoreFold = Callable[[], Predictions]
FitFold = Callable[[int], EncodedQuestions]
"""The fit fold as an epoch, counted from 0, trains on it: the same rows, their options in any order."""


class Finetuning:
    """A run of CFT or RCFT: owns the checkpoint and the record of evaluations, and decides what comes next.

    Args:
        config: the run's parameters.
        loaded: a model with trainable parameters (`attach_lora`).
        fit: gives the tokenised fit fold of an epoch.
        score_fit: scores the fit fold with the model as it is now.
        score_heldout: scores the calibration fold with the model as it is now.
        objective: the loss that the run begins with.
        work: folder, or URI in a bucket, of the run's checkpoints, named by the content that went into the
            run; a run that finds one goes on.
    """

    def __init__(
        self,
        config: FinetuneConfig,
        loaded: LoadedModel,
        fit: FitFold,
        *,
        score_fit: ScoreFold,
        score_heldout: ScoreFold,
        objective: Objective,
        work: str | Path,
    ) -> None:
        self._config, self._loaded, self._fit_of = config, loaded, fit
        self._score_fit, self._score_heldout = score_fit, score_heldout
        self._work = work
        self._start = Weights(lambda_ece=config.lambda_ece, label_smoothing=config.label_smoothing)
        self._state = RunState(objective=objective, weights=self._start)
        self._best: dict[str, Tensor] = {}
        self._heldout: tuple[int, Predictions] | None = None
        self._saved_s = time.monotonic()
        processes.join()
        self._begin_epoch(0)
        self._per_epoch = len(self._sampler)
        self._steps_per_epoch = math.ceil(self._per_epoch / config.gradient_accumulation)
        self._total = self._per_epoch * config.epochs
        self._stepper = Stepper(config, loaded.model, steps=self._steps_per_epoch * config.epochs)

    def run(self) -> TrainingResult:
        """Train until the calibration fold says stop, then put the best evaluation's adapter into the model.

        Raises:
            CalibError: the loss is not finite (with the step and the questions), or the adapter has not
                changed.
            Stopped: SIGTERM or Ctrl-C came; the run can go on from where it was.
        """
        digest_before = adapter_digest(self._loaded.model)
        self._resume()
        state = self._state
        with interrupts.deferred():
            try:
                self._train()
            except Stopped as stop:
                self._return_to_rest()
                problem = self._save()
                kept = "its checkpoint is kept, and the same run resumes from it"
                if problem:
                    kept = f"the same run resumes from the one before, since this one failed: {problem}"
                raise Stopped(
                    stop.number, f"{stop} at step {self._state.steps} of training; {kept}"
                ) from None
        state.stopped = state.stopped or f"all {self._config.epochs} epochs were trained"
        self._stepper.put_adapter(self._best)
        if adapter_digest(self._loaded.model) == digest_before:
            raise CalibError(
                "training left the adapter exactly as it was; use a larger learning_rate, or more "
                "questions in the fit fold"
            )
        chosen = best_evaluation(state.history, aim=self._config.aim, target_ece=self._config.target_ece)
        say(f"kept step {state.history[chosen].step} of {state.steps}: {state.stopped}")
        return TrainingResult(
            history=tuple(state.history), chosen=chosen, steps=state.steps, stopped=state.stopped
        )

    def _train(self) -> None:
        """Train, evaluate and save until the calibration fold says stop, or all epochs are done.

        Raises:
            Stopped: the process was told to end; the state is that of the last step.
        """
        state = self._state
        with Progress(state.objective, total=self._total, unit="batches") as progress:
            progress.advance(state.batches_done)
            self._rest()
            self._evaluate_where_due()
            for position, rows in self._batches():
                if state.objective == "rcft" and self._is_due(position, self._config.e_steps_per_epoch):
                    self._e_step()
                loss = self._train_batch(position, rows)
                state.batches_done = position + 1
                progress.advance(note=f"loss {loss:.3f}")
                if state.batches_done % self._per_epoch % self._config.gradient_accumulation == 0:
                    self._rest()
                self._evaluate_where_due()
                if state.stopped:
                    break

    def _rest(self) -> None:
        """Remember where the run stands between two steps, which is where it can go on from."""
        state = replace(self._state, history=[*self._state.history])
        self._resting = (state, self._best, own_random_states())
        if interrupts.check(note=time.monotonic() - self._saved_s > SAVE_EVERY_S):
            self._save()

    def _return_to_rest(self) -> None:
        """Forget what was begun since the last step: gradients of a part of a batch, half an evaluation."""
        self._state, self._best, own = self._resting
        restore_own_random_states(own)

    def _begin_epoch(self, epoch: int) -> None:
        self._fit = self._fit_of(epoch)
        self._lengths = [len(ids) for ids in self._fit.input_ids]
        self._sampler = LengthGroupedBatches(self._lengths, self._config.batch_size, self._config.seed)
        self._sampler.epoch = epoch

    def _batches(self) -> Iterator[tuple[int, list[int]]]:
        """Positions in the whole run and rows of the batches that are still to be trained on."""
        if self._state.stopped:  # and was interrupted before its adapter was written
            return
        first = self._state.batches_done // self._per_epoch
        for epoch in range(first, self._config.epochs):
            if epoch != self._sampler.epoch:
                self._begin_epoch(epoch)
            for index, rows in enumerate(self._sampler):
                position = epoch * self._per_epoch + index
                if position >= self._state.batches_done:
                    yield position, rows

    def _is_due(self, position: int, times_per_epoch: int) -> bool:
        """Whether one of an epoch's evenly spread `times_per_epoch` marks lies at this batch.

        Marks lie between optimiser steps, never among the batches of one: a checkpoint holds no gradients.
        """
        marks = {
            round(k * self._steps_per_epoch / times_per_epoch) * self._config.gradient_accumulation
            for k in range(times_per_epoch)
        }
        return position % self._per_epoch in marks

    def _train_batch(self, position: int, rows: list[int]) -> float:
        """A batch forward and backward, and a step where the position ends one; the batch's mean loss."""
        state = self._state
        within_epoch = position % self._per_epoch + 1
        ends_step = within_epoch % self._config.gradient_accumulation == 0 or within_epoch == self._per_epoch
        passing = passes(rows, self._lengths, self._config.pass_tokens * processes.count())
        value = self._stepper.train_batch(passing, self._loss, ends_step=ends_step, named=self._named)
        state.steps += ends_step
        state.loss_sum += value
        state.loss_count += 1
        return value

    def _loss(self, model: Module, rows: list[int]) -> Tensor:
        """Mean loss over some of the fit fold's rows: scalar, float32."""
        state = self._state
        if state.objective == "cft":
            return cft_loss(model, self._fit, rows, state.weights.label_smoothing)
        return rcft_loss(
            model,
            self._fit,
            rows,
            state.targets,
            lambda_ece=state.weights.lambda_ece,
            remainder=self._config.remainder,
        )

    def _named(self, rows: list[int]) -> str:
        """Where the run is, for a message: the step, and the questions of some rows."""
        ids = ", ".join(repr(self._fit.questions[row].id) for row in rows)
        return f"step {self._state.steps + 1}, questions {ids}"

    def _e_step(self) -> None:
        fold = self._config.estimation_fold
        if fold == "initial" and self._state.targets is not None:
            return
        predictions = self._heldout_now() if fold == "holdout" else self._score_fit()
        self._state.targets = processes.from_first(
            lambda: estimate_bin_targets(predictions.confidence(), predictions.correct())
        )

    def _heldout_now(self) -> Predictions:
        if self._heldout is None or self._heldout[0] != self._state.steps:
            self._heldout = (self._state.steps, self._score_heldout())
        return self._heldout[1]

    def _evaluate_where_due(self) -> None:
        """Evaluate at the marks of an epoch; once, also if a run goes on that was stopped there."""
        state = self._state
        if state.batches_done > state.evaluated_at and self._is_due(
            state.batches_done, self._config.evaluations_per_epoch
        ):
            self._evaluate()

    def _evaluate(self) -> None:
        config, state = self._config, self._state
        heldout = self._heldout_now()
        evaluation = processes.from_first(
            lambda: evaluate_heldout(
                heldout,
                step=state.steps,
                epoch=state.batches_done / self._per_epoch,
                objective=state.objective,
                train_loss=state.loss_sum / max(state.loss_count, 1),
                lambda_ece=state.weights.lambda_ece,
                label_smoothing=state.weights.label_smoothing,
                n_bins=config.n_bins,
            )
        )
        state.loss_sum, state.loss_count = 0.0, 0
        state.history.append(evaluation)
        say(
            f"epoch {evaluation.epoch:.2f}: held-out accuracy {evaluation.accuracy:.3f}, "
            f"mean confidence {evaluation.mean_confidence:.3f}, ECE {evaluation.conf_ece:.3f} "
            f"(debiased at most {evaluation.debiased_ece_high:.3f}), NLL {evaluation.nll_nats:.3f} nats, "
            f"{evaluation.tempered_nll_nats:.3f} at temperature {evaluation.temperature:.2f}"
        )
        if (
            best_evaluation(state.history, aim=config.aim, target_ece=config.target_ece)
            == len(state.history) - 1
        ):
            self._best = self._stepper.adapter()
        if config.adapt_weights:
            state.weights = rebalanced(state.weights, self._start, evaluation)
        if should_stop(state.history, aim=config.aim, patience=config.patience):
            improved = "accuracy" if config.aim == "accuracy" else "NLL"
            state.stopped = (
                f"the calibration fold's {improved} has not improved for {config.patience} evaluations"
            )
        elif (
            config.aim == "accuracy"
            and state.objective == "cft"
            and state.batches_done % self._per_epoch == 0
        ):
            self._leave_cft_when_memorising()
        state.evaluated_at = state.batches_done
        self._save()
        self._rest()

    def _leave_cft_when_memorising(self) -> None:
        config = self._config
        fit, heldout = self._score_fit(), self._heldout_now()
        result = processes.from_first(
            lambda: regime_test(
                fit,
                heldout,
                target_ece=config.target_ece,
                tolerance=config.tolerance,
                critical_accuracy=config.critical_accuracy,
                n_bins=config.n_bins,
            )
        )
        if result.regime == "non_calibratable":
            self._state.objective = "rcft"
            say(f"continuing with RCFT: {' '.join(result.reasons)}")

    def _save(self) -> str:
        """Write a checkpoint, and tell why it could not be written, or ""; the run goes on all the same."""
        self._saved_s = time.monotonic()
        checkpoint = Checkpoint(
            adapter=self._stepper.adapter(),
            best_adapter=self._best,
            optimizer=self._stepper.optimizer_tensors(),
            random_states=random_states(),
            state={**self._state.to_dict(), "schedule": self._stepper.schedule_state()},
        )
        try:
            processes.from_first(lambda: save_checkpoint(self._work, checkpoint))
        except (CalibError, OSError) as error:
            say(f"the checkpoint of step {self._state.steps} could not be written: {error}")
            return str(error)
        return ""

    def _resume(self) -> None:
        checkpoint = shared_checkpoint(self._work)
        if checkpoint is None:
            return
        self._state = RunState.from_dict(checkpoint.state)
        self._best = checkpoint.best_adapter
        self._stepper.restore(checkpoint.adapter, checkpoint.optimizer, checkpoint.state["schedule"])
        restore_random_states(checkpoint.random_states)
        say(f"resuming from step {self._state.steps} of an earlier attempt")
