"""What a model says of preference pairs, pair by pair: a record, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from calib_core.errors import DataFormatError
from calib_core.storage.files import whole_file

PREFERENCES_FILE = "preferences.parquet"
"""Its name in an evaluation folder."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PreferenceLogprobs:
    """Log-probabilities of N preference pairs' continuations given their prompts.

    Attributes:
        ids: the pairs' ids.
        chosen_nats: float64 (N,), sum over the tokens of log p(token | what stands before), natural log.
        rejected_nats: the same of the rejected continuations.
        chosen_tokens: int64 (N,), how many tokens each sum is over.
        rejected_tokens: the same of the rejected continuations.
    """

    ids: tuple[str, ...]
    chosen_nats: NDArray[np.float64]
    rejected_nats: NDArray[np.float64]
    chosen_tokens: NDArray[np.int64]
    rejected_tokens: NDArray[np.int64]

    def wins(self) -> NDArray[np.float64]:
        """1 where the chosen continuation is the more probable one, 0.5 for a tie, else 0, (N,)."""
        return np.heaviside(self.chosen_nats - self.rejected_nats, 0.5)

    def wins_per_token(self) -> NDArray[np.float64]:
        """The same of the means over tokens, (N,)."""
        return np.heaviside(
            self.chosen_nats / self.chosen_tokens - self.rejected_nats / self.rejected_tokens, 0.5
        )


def write_preference_logprobs(logprobs: PreferenceLogprobs, path: Path) -> None:
    """Write the table as Parquet, atomically."""
    table = pa.table(
        {
            "id": pa.array(logprobs.ids, pa.string()),
            "chosen_nats": logprobs.chosen_nats,
            "rejected_nats": logprobs.rejected_nats,
            "chosen_tokens": logprobs.chosen_tokens,
            "rejected_tokens": logprobs.rejected_tokens,
        }
    )
    with whole_file(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def read_preference_logprobs(path: Path) -> PreferenceLogprobs:
    """Read what `write_preference_logprobs` wrote.

    Raises:
        DataFormatError: the file can't be read, or is of another kind.
    """
    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        columns = {name: table[name].to_numpy() for name in table.column_names if name != "id"}
        return PreferenceLogprobs(
            ids=tuple(table["id"].to_pylist()),
            chosen_nats=columns["chosen_nats"].astype(np.float64),
            rejected_nats=columns["rejected_nats"].astype(np.float64),
            chosen_tokens=columns["chosen_tokens"].astype(np.int64),
            rejected_tokens=columns["rejected_tokens"].astype(np.int64),
        )
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataFormatError(
            f"{path}: not a table of preference pairs ({error}); make the folder with `evaluate`"
        ) from None
