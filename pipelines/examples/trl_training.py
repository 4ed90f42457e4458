"""A TRL training pipeline, with calibration measured before and after, and a gate at its end.

The training component is somebody's own: supervised fine-tuning with TRL's `SFTTrainer` on prompts that it
makes itself. From this project come the folds, the two evaluations and the gate.
"""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import HTML, Dataset, Input, Model, Output

from calib_components import data_prep, evaluate, promote
from calib_components.image import IMAGE


class Outputs(NamedTuple):
    """What a run of the pipeline leaves."""

    report: HTML
    promoted: bool
    winner: str


# Any image with trl, peft and pyarrow will do.
@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_with_trl(
    model: str,
    data: Input[Dataset],
    adapter: Output[Model],
    max_steps: int = -1,
    learning_rate: float = 5e-4,
    seed: int = 0,
) -> str:
    """Fine-tune a LoRA adapter on the fit fold with TRL, the loss on the answers only.

    Args:
        model: Hub id, or path of a model folder.
        data: Data folder of `data_prep`; its `fit.parquet` is a plain Parquet file.
        adapter: Adapter folder in PEFT's own format.
        max_steps: Most optimiser steps; -1 for three passes over the data.
        learning_rate: Peak learning rate.
        seed: Seed of everything random.

    Returns:
        The adapter's URI.
    """
    import json
    from pathlib import Path
    from string import ascii_uppercase

    import pyarrow.parquet as pq
    import torch
    from datasets import Dataset as Rows
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    examples = []
    for row in pq.read_table(f"{data.path}/fit.parquet").to_pylist():
        options = "".join(f"{ascii_uppercase[i]}. {text}\n" for i, text in enumerate(row["choices"]))
        examples.append(
            {
                "prompt": f"Question: {row['question']}\n{options}Answer:",
                "completion": f" {ascii_uppercase[row['answer']]}",
            }
        )
    trainer = SFTTrainer(
        model=model,
        train_dataset=Rows.from_list(examples),
        peft_config=LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
        args=SFTConfig(
            output_dir=f"{adapter.path}-checkpoints",
            max_steps=max_steps,
            num_train_epochs=3,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            seed=seed,
            bf16=torch.cuda.is_available(),
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to="none",
        ),
    )
    trainer.train()
    trainer.save_model(adapter.path)
    # The gate promotes no adapter that doesn't say which folds it was trained with.
    folds = json.loads(Path(data.path, "data.json").read_text())["folds"]
    trained = {"method": "sft", "data": {name: fold["fingerprint"] for name, fold in folds.items()}}
    Path(adapter.path, "calibration.json").write_text(json.dumps(trained))
    return str(adapter.uri)


@dsl.pipeline(name="trl-training")
def trl_training(
    model: str,
    questions: str,
    max_steps: int = -1,
    learning_rate: float = 5e-4,
    target_ece: float = 0.08,
    dtype: str = "auto",
) -> Outputs:
    """Train with TRL; use the result only if it is better calibrated and no less accurate.

    Args:
        model: Hub id of the model to train, or its folder on a mounted volume.
        questions: File, gs:// URI or hub id of labelled questions.
        max_steps: Most optimiser steps; -1 for three passes over the data.
        learning_rate: Peak learning rate.
        target_ece: Expected calibration error at or below which a model counts as calibrated.
        dtype: `auto`, `float32` or `bfloat16`.
    """
    data = data_prep(questions=questions).outputs["data"]
    before = evaluate(model=model, data=data, target_ece=target_ece, dtype=dtype)
    trained = train_with_trl(model=model, data=data, max_steps=max_steps, learning_rate=learning_rate)
    after = evaluate(model=trained.outputs["Output"], data=data, target_ece=target_ece, dtype=dtype)
    gate = promote(
        before=before.outputs["uri"],
        after=after.outputs["uri"],
        model_before=model,
        model_after=trained.outputs["Output"],
        branch="cft",  # fine-tuned on answers, by whatever program
    )
    return Outputs(
        report=gate.outputs["report"], promoted=gate.outputs["promoted"], winner=gate.outputs["winner"]
    )
