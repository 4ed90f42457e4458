"""What a benchmark says of the sources that it measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str | None:
    """Commit of the checkout; None outside of one."""
    found = subprocess.run(
        ["git", "rev-parse", "HEAD"],  # noqa: S607 (git is found where the user has it)
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    return found.stdout.strip() or None
