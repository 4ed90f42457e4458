"""Pipeline `restore-calibration`: measure, repair by the branch that the bounds choose, measure again."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Artifact

from calib_components import data_prep, dpo_align, promote
from calib_pipelines.definitions.platforms import Platform, build
from calib_pipelines.definitions.repair import end_branch, repair


class Outputs(NamedTuple):
    """What a run of the pipeline leaves."""

    summary: Artifact
    report: HTML
    promoted: bool
    winner: str


def define(  # noqa: D417 - outsiders don't see `place`
    place: Platform,
    model: str,
    questions: str = "",
    fit: str = "",
    calibration: str = "",
    test: str = "",
    out_of_domain: str = "",
    preferences: str = "",
    data_snapshot: str = "",
    preset: str = "auto",
    on_bad_row: str = "refuse",
    max_fit: int = 0,
    max_calibration: int = 0,
    max_test: int = 0,
    align: bool = False,
    dpo_epochs: int = 1,
    dpo_learning_rate: float = 5e-05,
    dpo_batch_size: int = 8,
    base_model: str = "",
    dtype: str = "auto",
    prompt_form: str = "plain",
    shots: int = 0,
    aim: str = "calibration",
    repairs: str = "temperature,cft,rcft",
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    epochs: int = 5,
    learning_rate: float = 0.0005,
    batch_size: int = 8,
    pass_tokens: int = 2048,
    evaluations_per_epoch: int = 2,
    option_orders: str = "cyclic",
    lambda_ece: float = 1.0,
    label_smoothing: float = 0.0,
    adapt_weights: bool = True,
    e_steps_per_epoch: int = 4,
    lora_r: int = 128,
    lora_alpha: int = 64,
    lora_dropout: float = 0.05,
    placement: str = "whole",
    processes: int = 1,
    nodes: int = 1,
    cluster: str = "",
    accuracy_margin: float = 0.03,
    brier_margin: float = 0.02,
    win_rate_margin: float = 0.05,
    cluster_by: str = "group",
    seed: int = 0,
) -> Outputs:
    """Measure a model's calibration, restore it by the branch that its bounds choose, and gate the result.

    Args:
        model: Model or adapter to measure and repair: a hub id (`name` or `name@revision`), a bucket's URI,
            or a path on a mounted volume.
        questions: File, bucket URI or hub id of questions that are to be split into the three folds.
        fit: File, bucket URI or hub id of questions to train on; in place of `questions`, with `calibration`
            and `test`.
        calibration: File, bucket URI or hub id of questions that steer training and are never trained on.
        test: File, bucket URI or hub id of questions for the gate and the report.
        out_of_domain: File, bucket URI or hub id of questions from another field, for the report only.
        preferences: File, bucket URI or hub id of preference pairs.
        data_snapshot: Label for the state of the files, such as a date or a version; with a new one KFP reads
            them again instead of reusing a cached result.
        preset: Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.
        on_bad_row: `refuse` a file with bad rows, or `drop` and count them.
        max_fit: Maximum number of questions in the fit fold; 0 for no limit.
        max_calibration: Maximum number of questions in the calibration fold; 0 for no limit.
        max_test: Maximum number of questions in the test fold; 0 for no limit.
        align: Align the model by DPO on the preference pairs first; leave it off for a model that is
            aligned already.
        dpo_epochs: In DPO: number of epochs over the preference pairs.
        dpo_learning_rate: In DPO: peak learning rate of AdamW.
        dpo_batch_size: In DPO: preference pairs in one optimiser step.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        prompt_form: `plain` (Question, options, "Answer:"), `chat` (the tokenizer's chat template) or `auto`
            (the form that the adapter was made in, else the one in which the model puts most probability on
            letters).
        shots: Number of worked examples, taken from the fit fold, that stand before each question.
        aim: `calibration` (stop when the calibration fold no longer improves) or `accuracy` (train as long as
            held-out accuracy rises).
        repairs: Repairs that are allowed: some of `temperature`, `cft` and `rcft`, separated by commas.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        tolerance: Lower bound on the ECE above which a model counts as non-calibratable.
        epochs: Maximum number of epochs; training stops earlier if the calibration fold no longer improves.
        learning_rate: Peak learning rate of AdamW.
        batch_size: Questions whose mean loss gives one gradient, over all processes.
        pass_tokens: Padded tokens in one forward and backward pass of a process; a longer batch is computed
            in several, which changes its memory and not its gradient.
        evaluations_per_epoch: How often the calibration fold is scored to choose where to stop.
        option_orders: Order of a question's options while training: `cyclic` (shifted by one place every
            epoch, so that the answer comes under every letter) or `given`.
        lambda_ece: Weight of the EM-ECE loss in RCFT; the initial one if `adapt_weights` is on.
        label_smoothing: Share of the answer's probability that CFT spreads over the options; the initial one
            if `adapt_weights` is on.
        adapt_weights: Raise and lower these two while training, as the calibration fold shows too much or too
            little confidence.
        e_steps_per_epoch: How often RCFT estimates its target confidences again.
        lora_r: Rank of the LoRA update (an input adapter keeps its own).
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        lora_dropout: Dropout on the LoRA input.
        placement: How the base model lies in memory while it is trained: `whole` (a copy in each process),
            `fsdp` (spread over the processes) or `qlora` (a copy in each process, in 4 bits).
        processes: Training processes on each machine, one for each of its GPUs.
        nodes: Number of machines; several are started as a job on the cluster that `cluster` describes.
        cluster: JSON object that describes the job on several machines; see docs/distributed.md.
        accuracy_margin: Largest drop in accuracy, as a share of all questions, that the gate accepts.
        brier_margin: Largest rise of the Brier score, above the input model's after one temperature, that it
            accepts.
        win_rate_margin: Largest drop in the preference win rate, as a share of the held-out pairs, that it
            accepts.
        cluster_by: What questions that depend on each other have in common, for intervals: `group` (the
            column of that name), `subject` or `none`.
        seed: Seed of everything that is drawn at random.

    Returns:
        summary: Folder with summary.json and report.html.
        report: The report, one self-contained page.
        promoted: Whether the output model passed the gate.
        winner: URI of the model to use: the output model if it was promoted, else the input model.
    """
    given = locals()
    data = place(data_prep, given)().outputs["data"]
    with dsl.If(align == True, "align"):  # noqa: E712 - this builds the condition, it doesn't compare
        aligned = place(dpo_align, given)(
            model=model,
            data=data,
            epochs=dpo_epochs,
            learning_rate=dpo_learning_rate,
            batch_size=dpo_batch_size,
        )
        made = place(end_branch)(model=aligned.outputs["uri"])
    with dsl.Else("is-aligned"):
        as_given = place(end_branch)(model=model)
    start = dsl.OneOf(made.outputs["model"], as_given.outputs["model"])
    repaired = repair(place, start, data, given)
    gate = place(promote, given)(
        before=repaired.before,
        after=repaired.after,
        model_before=start,
        model_after=repaired.model,
        branch=repaired.branch,
    )
    return Outputs(
        summary=gate.outputs["summary"],
        report=gate.outputs["report"],
        promoted=gate.outputs["promoted"],
        winner=gate.outputs["winner"],
    )


NAME = "restore-calibration"

restore_calibration = build(define, Platform(), name=NAME)
"""The pipeline on no platform in particular: for a run on this machine, and as a part of other pipelines."""
