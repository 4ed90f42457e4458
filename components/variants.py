"""Components that differ from another in a few words.

KFP takes a component's code from the source of its function, so that two components can't share one function;
they can share its source.
"""

from __future__ import annotations

import inspect
import linecache
import textwrap
from collections.abc import Mapping
from typing import Any

from kfp.dsl.base_component import BaseComponent


def variant(component: Any, name: str, words: Mapping[str, str]) -> BaseComponent:
    """The component whose source is that of another with some words replaced.

    Args:
        component: a component made by `dsl.component`.
        name: name that the function has after the replacements.
        words: texts in the source and what stands in their place; each has to occur.

    Raises:
        ValueError: a text doesn't occur.
    """
    function = component.python_func
    source = textwrap.dedent(inspect.getsource(function))
    for old, new in words.items():
        if old not in source:
            raise ValueError(f"{function.__name__} has no {old!r} in its source, which {name} replaces")
        source = source.replace(old, new)
    file = f"<{name}, a variant of {function.__name__}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for inspect and KFP
    scope = dict(function.__globals__)
    exec(compile(source, file, "exec", dont_inherit=True), scope)  # noqa: S102 - our own source
    made: BaseComponent = scope[name]
    return made
