"""Messages as they are shown: quoted data to a limit, or not at all, and no secrets."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator

from calib_core.runtime.secrets import without_secrets

QUIET_VARIABLE = "CALIB_QUIET_DATA"
"""Set to 1 in the environment, or by a command's `--quiet-data`: messages quote no data."""

VALUE_CHARACTERS, MESSAGE_CHARACTERS = 80, 2048

_QUOTED = re.compile(
    r"(?P<before>(?:\b(?:field|column|parameter)s?\s+|\b[a-z]+(?:_[a-z]+)+=)?)"
    r"(?<!\w)(?P<quoted>'(?:[^'\\\n]|\\.)*'|\"(?:[^\"\\\n]|\\.)*\")(?!\w)"
)
"""What a message quotes, with the word before it where that says that it is a name and no data."""


@contextlib.contextmanager
def quiet_data(on: bool) -> Iterator[None]:
    """Within the block messages quote no data, in the processes and tasks that it starts neither."""
    before = os.environ.get(QUIET_VARIABLE)
    if on:
        os.environ[QUIET_VARIABLE] = "1"
    try:
        yield
    finally:
        if on:
            os.environ.pop(QUIET_VARIABLE, None)
            os.environ.update({} if before is None else {QUIET_VARIABLE: before})


def shown_message(message: object) -> str:
    """A message without secrets, each value that it quotes cut to 80 characters, all of it to 2,048.

    With `$CALIB_QUIET_DATA` set nothing is quoted but names of fields, columns and parameters.

    >>> shown_message("row 3, field 'answer': '" + "x" * 300 + "' is no option")[:60]
    "row 3, field 'answer': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"
    """
    quiet = os.environ.get(QUIET_VARIABLE, "") not in ("", "0")

    def quoted(found: re.Match[str]) -> str:
        value = found["quoted"]
        if quiet and not found["before"]:
            return f"<{len(value) - 2} characters>"
        if len(value) - 2 > VALUE_CHARACTERS:
            value = f"{value[: VALUE_CHARACTERS - 2]}...{value[-1]}"
        return found["before"] + value

    text = _QUOTED.sub(quoted, without_secrets(str(message)))
    if len(text) <= MESSAGE_CHARACTERS:
        return text
    rest = f" ... ({len(text) - MESSAGE_CHARACTERS:,} characters more)"
    return text[: MESSAGE_CHARACTERS - len(rest)] + rest
