"""Tiny random models of many families, and tokenizers trained on the spot: real code, no downloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from calib_core.data.questions import Question

BOS, EOS, TURN, END = "<s>", "</s>", "<|im_start|>", "<|im_end|>"
CONTEXT_TOKENS = 1024

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

TEXT = "what which city country is the capital of river largest smallest north south east west one two"
WORDS = TEXT.split()


def corpus(*, letters: bool = True) -> list[str]:
    """Text whose merges hold the answer letters with a leading space, or don't."""
    random = np.random.default_rng(0)
    words = ["Question: " + " ".join(random.choice(WORDS, 8)) + "?\nAnswer:" for _ in range(200)]
    return words + [" " + " ".join(ascii_uppercase)] * 50 * letters


def byte_tokenizer(
    *, bos: bool = True, chat_template: str | None = CHATML, letters: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as in Llama 3, Qwen, OLMo-2 and GPT-2; with `bos` it begins every text with `<s>`."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=[BOS, EOS, TURN, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(corpus(letters=letters), trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return _wrapped(backend, chat_template)


def word_tokenizer(*, prepend: str = "first", chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """BPE over words that carry their space as "▁", as in Llama 2 and Mistral; adds `<s>` and `</s>`."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))  # noqa: S106
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[BOS, EOS, TURN, END, "<unk>", *(f"<0x{byte:02X}>" for byte in range(256))],
        show_progress=False,
    )
    backend.train_from_iterator(corpus(), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 0), (EOS, 1)]
    )
    return _wrapped(backend, chat_template)


def _wrapped(backend: Tokenizer, chat_template: str | None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=EOS,
        extra_special_tokens=[TURN, END],
        padding_side="left",  # what generation wants; scoring must not care
    )
    tokenizer.chat_template = chat_template
    return tokenizer


SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT_TOKENS,
    "initializer_range": 0.3,  # so that logits differ by units, as in a trained model
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
NO_HEADS = {key: value for key, value in SIZES.items() if key != "head_dim"}

FAMILIES: dict[str, Callable[[int], PretrainedConfig]] = {
    "llama": lambda vocab: LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, **SIZES),
    "llama-tied": lambda vocab: LlamaConfig(vocab_size=vocab, tie_word_embeddings=True, **SIZES),
    "mistral": lambda vocab: MistralConfig(vocab_size=vocab, sliding_window=None, **SIZES),
    "mistral-sliding": lambda vocab: MistralConfig(vocab_size=vocab, sliding_window=8, **SIZES),
    "olmo2": lambda vocab: Olmo2Config(vocab_size=vocab, **NO_HEADS),
    "qwen2": lambda vocab: Qwen2Config(vocab_size=vocab, tie_word_embeddings=True, **NO_HEADS),
    "qwen3": lambda vocab: Qwen3Config(vocab_size=vocab, **SIZES),
    "gemma": lambda vocab: GemmaConfig(vocab_size=vocab, **SIZES),
    "gemma2": lambda vocab: Gemma2Config(
        vocab_size=vocab, final_logit_softcapping=4.0, attn_logit_softcapping=5.0, sliding_window=16, **SIZES
    ),
    "gpt2": lambda vocab: GPT2Config(
        vocab_size=vocab, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT_TOKENS, initializer_range=0.3
    ),
    "phi": lambda vocab: PhiConfig(vocab_size=vocab, **NO_HEADS),  # its head has a bias
    "granite": lambda vocab: GraniteConfig(vocab_size=vocab, logits_scaling=3.0, **NO_HEADS),
}


def save_tiny_model(folder: Path, family: str = "llama", *, seed: int = 0, **changes: Any) -> Path:
    """Write a random model of a family and its tokenizer into `folder`; `changes` go into its config."""
    tokenizer = byte_tokenizer(bos=family != "gpt2")
    config = FAMILIES[family](len(tokenizer))
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):  # which start at zero, where leaving one out would go unseen
                parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_questions(n: int, *, seed: int = 0, options: Sequence[int] = (4,)) -> list[Question]:
    """Questions of different lengths, with numbers of options drawn from `options`."""
    random = np.random.default_rng(seed)
    questions = []
    for index in range(n):
        k = int(random.choice(options))
        questions.append(
            Question(
                id=f"q{index}",
                question=" ".join(random.choice(WORDS, random.integers(3, 20))) + "?",
                choices=tuple(f"{random.choice(WORDS)} {j}" for j in range(k)),
                answer=int(random.integers(k)),
                subject=str(random.choice(["rivers", "cities"])),
            )
        )
    return questions
