"""How much memory do scoring, fine-tuning and DPO take a step, and what does `calib_core.models.budget` say?

Each measurement runs in a process of its own, on the embedded 135M model: memory of the process after the
imports is taken off its peak. Prints JSON.

    python benchmarks/step_memory.py [--tokens 1024]

About five minutes on two cores; needs 8 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from calib_core.models.budget import DTYPES, GIB, HOST_GIB, WORKS, Work, host_bytes

LENGTH_TOKENS = 128
PARAMETERS = 134_515_008
"""Of SmolLM2-135M, input and output embedding being one tensor."""


def measure(work: Work, dtype: str, tokens: int) -> int:
    """Peak memory of this process in `work`, in bytes, beyond what imports take."""
    import torch

    from calib_core.models.embedded import embedded_model
    from calib_core.models.loading import load_model
    from calib_core.training import dpo  # noqa: F401 - imported before the baseline is taken

    torch.manual_seed(0)
    baseline = _resident_bytes()
    loaded = load_model(embedded_model(), dtype=dtype)  # type: ignore[arg-type]
    rows = torch.randint(100, 40_000, (tokens // LENGTH_TOKENS, LENGTH_TOKENS)).tolist()
    {"scoring": _score, "lora": _finetune, "dpo": _align}[work](loaded, rows)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - baseline


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _score(loaded: Any, rows: list[list[int]]) -> None:
    import torch

    from calib_core.scoring.forward import answer_logits

    with torch.inference_mode():
        for _ in range(2):
            answer_logits(loaded.model, rows)


def _finetune(loaded: Any, rows: list[list[int]]) -> None:
    """Two steps with logits at every position, as RCFT has them."""
    import torch

    from calib_core.scoring.forward import logits_at, padded
    from calib_core.training.config import FinetuneConfig
    from calib_core.training.lora import attach_lora, trainable_parameters
    from calib_core.training.losses import sequence_nll_nats

    attach_lora(loaded, FinetuneConfig())
    loaded.model.train()
    optimizer = torch.optim.AdamW(trainable_parameters(loaded.model).values(), lr=1e-4)
    of_row = torch.arange(len(rows)).repeat_interleave(LENGTH_TOKENS)
    column = torch.arange(LENGTH_TOKENS).repeat(len(rows))
    lengths = torch.full((len(rows),), LENGTH_TOKENS)
    for _ in range(2):
        logits = logits_at(loaded.model, padded(rows), of_row, column, exact=lengths.cumsum(0) - 1)
        sequence_nll_nats(logits, torch.tensor(rows).flatten(), lengths).mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def _align(loaded: Any, rows: list[list[int]]) -> None:
    """Two steps of DPO; half of each row is the prompt, and every second row the answer that lost."""
    from calib_core.data.preferences import Preference
    from calib_core.training.config import AlignConfig
    from calib_core.training.dpo import align_with_dpo
    from calib_core.training.lora import attach_lora

    half = LENGTH_TOKENS // 2
    texts = [(" yes" * half, " no" * half, " so" * half) for _ in rows]
    pairs = [
        Preference(id=str(i), prompt=prompt, chosen=chosen, rejected=rejected)
        for i, (prompt, chosen, rejected) in enumerate(texts)
    ]
    config = AlignConfig(batch_size=max(1, len(rows) // 2), learning_rate=1e-3)
    attach_lora(loaded, config)
    align_with_dpo(config, loaded, pairs)


def main() -> None:
    """Measure all, or one where a process of its own was started for it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--only", nargs=2, metavar=("WORK", "DTYPE"))
    given = parser.parse_args()
    if given.only:
        print(measure(given.only[0], given.only[1], given.tokens))
        return
    points = []
    for work in WORKS:
        for dtype in DTYPES:
            command = [sys.executable, __file__, "--tokens", str(given.tokens), "--only", work, dtype]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            points.append(
                {
                    "work": work,
                    "dtype": dtype,
                    "tokens": given.tokens,
                    "measured_bytes": int(done.stdout.splitlines()[-1]),
                    "estimated_bytes": host_bytes(PARAMETERS, work, dtype, gpu=False, tokens=given.tokens)
                    - HOST_GIB["cpu"] * GIB,
                }
            )
    print(json.dumps({"machine": platform.platform(), "python": sys.version, "points": points}, indent=2))


if __name__ == "__main__":
    main()
