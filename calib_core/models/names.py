"""Names of models on a hub."""

from __future__ import annotations

import re

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*(?:/[A-Za-z0-9][\w.-]*)?)(?:@([\w.-][\w./-]*))?")
"""`name` or `owner/name`, with `@revision` where a certain one is meant."""


def split_revision(model: str) -> tuple[str, str]:
    """A hub id without its revision, and the revision; of other names the name itself, and "".

    >>> split_revision("owner/name@v1.0")
    ('owner/name', 'v1.0')
    """
    found = HUB_ID.fullmatch(model)
    return (found[1], found[2] or "") if found else (model, "")
