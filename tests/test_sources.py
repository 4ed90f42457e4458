"""Parameters are written into the sources of components and pipelines from the configs that declare them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass

import pytest

from calib_core.settings.checks import Config
from calib_core.settings.parameters import parameter, parameters_of
from calib_pipelines.sources import with_parameters

SOURCE = '''"""A component."""


@component
def score(
    data: Input[Dataset],
    old: int = 3,
    shots: int = 7,
    champion: str = "",  # of the pipeline
) -> str:
    """Score it.

    Args:
        data: A folder
            of data.
        old: No longer there.
        shots: Stale.
        champion: Its folder.

    Returns:
        out: What came.
    """
    return data
'''


@dataclass(frozen=True, kw_only=True)
class Declared(Config):
    shots: int = parameter(0, "Worked examples.")
    form: str = parameter("plain", "How it looks, which is a matter of taste, and of the tokenizer, " * 2)
    limit: float | None = parameter(None, "Largest value.")
    name: str = parameter(MISSING, "Must be given.")


PARAMETERS = {one.name: one for one in parameters_of(Declared)}


def test_a_component_gets_all_of_them_and_keeps_its_own():
    made = with_parameters(SOURCE, PARAMETERS, add=True)
    signature, _, rest = made.partition(") -> str:\n")
    assert signature.splitlines()[5:] == [
        "    data: Input[Dataset],",
        "    name: str,",
        "    shots: int = 0,",
        '    form: str = "plain",',
        "    limit: Optional[float] = None,  # noqa: UP045 (KFP reads no `| None`)",
        "    old: int = 3,",
        '    champion: str = "",  # of the pipeline',
    ]
    described = rest.partition("    Args:\n")[2].partition("\n    Returns:")[0].splitlines()
    assert described[:4] == [
        "        data: A folder",
        "            of data.",
        "        name: Must be given.",
        "        shots: Worked examples.",
    ]
    assert described[4].startswith("        form: How it looks, which")
    assert described[5].startswith("            of taste, and")
    assert rest.endswith("    return data\n")
    assert with_parameters(made, PARAMETERS, add=True) == made


def test_a_pipeline_keeps_what_it_offers_where_it_stands():
    made = with_parameters(SOURCE, PARAMETERS, add=False)
    assert made == SOURCE.replace("shots: int = 7", "shots: int = 0").replace("Stale.", "Worked examples.")


def test_a_source_without_such_a_function_is_refused():
    with pytest.raises(ValueError, match="0 functions with an Args section"):
        with_parameters("x = 1\n", PARAMETERS, add=True)
