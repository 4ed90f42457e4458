"""How much of a file is read: bounds that hold off files made to exhaust memory or time.

Each has a default far above what questions and predictions need, and an environment variable that raises it
(or lowers it, where a service reads what strangers upload).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import ClassVar

from calib_core.errors import ConfigError, DataFormatError


@dataclass(frozen=True, kw_only=True)
class Limit:
    """One bound on what is read.

    Attributes:
        name: Name of the limit.
        default: Its value where the environment says nothing.
        counts: What it counts, as "bytes of one file, unpacked".
    """

    PREFIX: ClassVar[str] = "CALIB_MAX_"

    name: str
    default: int
    counts: str

    @property
    def variable(self) -> str:
        """The environment variable that sets it."""
        return f"{self.PREFIX}{self.name.upper()}"

    def value(self) -> int:
        """The limit in force.

        Raises:
            ConfigError: the environment variable holds no whole number above 0.
        """
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.default
        if not (text.isascii() and text.isdigit() and len(text) <= 18 and int(text) > 0):
            raise ConfigError(f"{self.variable} is {text[:40]!r}; give a whole number above 0")
        return int(text)

    def check(self, found: int, where: str) -> None:
        """Refuse what is beyond the limit.

        Args:
            found: How much there is, as far as it was counted.
            where: The file, and the place in it.

        Raises:
            DataFormatError: it is more than the limit.
        """
        if found > self.value():
            raise DataFormatError(f"{where}: {self.exceeded()}")

    def exceeded(self) -> str:
        """What a message says of something beyond the limit."""
        return (
            f"more than {self.value():,} {self.counts} (limit {self.name}); if that is intended, raise the "
            f"limit with the environment variable {self.variable}"
        )


FILE_BYTES = Limit(name="file_bytes", default=4 * 1024**3, counts="bytes in one file, unpacked")
LINE_BYTES = Limit(name="line_bytes", default=64 * 1024**2, counts="bytes in one line or field")
ROWS = Limit(name="rows", default=10_000_000, counts="rows in one file")
COLUMNS = Limit(name="columns", default=1_000, counts="columns")
JSON_DEPTH = Limit(name="json_depth", default=64, counts="levels of nesting in a JSON value")
JSON_BYTES = Limit(
    name="json_bytes", default=256 * 1024**2, counts="bytes in a JSON file of settings or results"
)
MARKS = Limit(name="marks", default=64, counts="combining marks in a row")

LIMITS = (FILE_BYTES, LINE_BYTES, ROWS, COLUMNS, JSON_DEPTH, JSON_BYTES, MARKS)
"""Every limit, in the order of the documentation."""
