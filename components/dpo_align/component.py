"""Component `dpo_align`: direct preference optimisation, the step that breaks calibration."""

from typing import NamedTuple

from kfp import dsl
from kfp.dsl import Dataset, Input, Model, Output

from calib_components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def dpo_align(  # noqa: D417 - outputs stand under Returns
    model: str,
    data: Input[Dataset],
    adapter: Output[Model],
    beta: float = 0.1,
    epochs: int = 1,
    batch_size: int = 8,
    lora_dropout: float = 0.05,
    learning_rate: float = 5e-05,
    warmup_fraction: float = 0.1,
    max_grad_norm: float = 1.0,
    lora_r: int = 128,
    lora_alpha: int = 64,
    shots: int = 0,
    prompt_form: str = "plain",
    dtype: str = "auto",
    base_model: str = "",
    seed: int = 0,
) -> NamedTuple("Outputs", uri=str):  # type: ignore[valid-type]
    """Align a model with preference pairs by DPO; an adapter comes out.

    Args:
        model: Model or adapter: a hub id (`name` or `name@revision`), a bucket's URI, or a path on a mounted
            volume.
        data: Data folder of `data_prep`.
        beta: Strength of the pull towards the reference model.
        epochs: Number of epochs over the preference pairs.
        batch_size: Preference pairs in one optimiser step.
        lora_dropout: Dropout on the LoRA input in later fine-tuning of the adapter; DPO itself uses none.
        learning_rate: Peak learning rate of AdamW.
        warmup_fraction: Share of the steps in which the learning rate rises; a cosine follows.
        max_grad_norm: Gradient norm above which gradients are scaled down.
        lora_r: Rank of the LoRA update (an input adapter keeps its own).
        lora_alpha: LoRA scale: the update is multiplied by lora_alpha / lora_r.
        shots: Number of worked examples, taken from the fit fold, that stand before each question.
        prompt_form: `plain` (Question, options, "Answer:"), `chat` (the tokenizer's chat template) or `auto`
            (the form that the adapter was made in, else the one in which the model puts most probability on
            letters).
        dtype: `auto` (bfloat16 if the hardware supports it), `float32` or `bfloat16`.
        base_model: Folder, bucket URI or hub id of the base model, if the one that an adapter names has
            moved.
        seed: Seed of everything that is drawn at random.

    Returns:
        adapter: Adapter folder in PEFT's format, with calibration.json.
        uri: The adapter's URI, so that branches of a pipeline can be merged on a string.
    """
    arguments = locals()
    from pathlib import Path

    from calib_core.settings.parameters import config_from
    from calib_core.steps import align as step
    from calib_core.steps.task import reported_errors
    from calib_core.training.config import AlignConfig

    with reported_errors():
        config = config_from(AlignConfig, arguments)
        step.align(config, model, Path(data.path), Path(adapter.path))
    adapter.metadata["model"] = model
    return (adapter.uri,)
