"""Parameters and their checks: declared once, all errors together, each with the value received."""

from dataclasses import MISSING, dataclass
from typing import Literal

import pytest

from calib_core.errors import ConfigError
from calib_core.settings.checks import Config, ConfigCheck
from calib_core.settings.parameters import Limits, parameter, parameters_of


@dataclass(frozen=True, kw_only=True)
class Shared(Config):
    GROUP = "shared"

    limit: float | None = parameter(None, "Largest value.", above=0)
    form: Literal["plain", "chat"] = parameter("plain", "What it looks like.")


@dataclass(frozen=True, kw_only=True)
class Example(Shared):
    GROUP = ""

    rate: float = parameter(0.5, "Share of it.", at_least=0, at_most=1)
    count: int = parameter(1, "How many.")

    def rules(self, check: ConfigCheck) -> None:
        super().rules(check)
        check.that(lambda c: c.count > 0 or c.rate == 0, f"count {self.count} needs rate 0, not {self.rate}")


def message(**values):
    with pytest.raises(ConfigError) as caught:
        Example(**values)
    return str(caught.value)


def test_good_values_pass():
    Example()
    Example(rate=1, limit=2, form="chat")  # an int is a float's equal


def test_all_errors_come_together():
    assert message(rate=1.5, form="x", limit=-1.0, count=0) == (
        "`rate` is 1.5; give 0 to 1; `limit` is -1.0; give more than 0; "
        "`form` is 'x'; give one of 'plain', 'chat'; count 0 needs rate 0, not 1.5"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": "0.5"}, "`rate` is '0.5'; give a finite float"),
        ({"rate": float("nan")}, "`rate` is nan; give a finite float"),
        ({"rate": None}, "`rate` is None; give a finite float"),
        ({"count": 1.0}, "`count` is 1.0; give int"),
        ({"count": True}, "`count` is True; give int"),
        ({"limit": float("inf")}, "`limit` is inf; give a finite float or None"),
        ({"form": 3}, "`form` is 3; give str"),
    ],
)
def test_values_of_the_wrong_type_reach_no_rule(values, expected):
    assert message(**values) == expected


def test_parameters_are_read_from_their_declarations_own_ones_first():
    rate, count, limit, form = parameters_of(Example)
    assert [one.name for one in (rate, count, limit, form)] == ["rate", "count", "limit", "form"]
    assert (rate.type, rate.default, rate.description, rate.group) == (float, 0.5, "Share of it.", "")
    assert rate.limits == Limits(at_least=0, at_most=1)
    assert (limit.type, limit.default, limit.group) == (float, None, "shared")
    assert (form.type, form.choices) == (str, ("plain", "chat"))


def test_a_subclass_changes_a_default_and_keeps_the_rest():
    @dataclass(frozen=True, kw_only=True)
    class Half(Example):
        rate: float = 0.25
        name: str = parameter(description="Must be given.")

    name, rate, *_ = parameters_of(Half)
    assert (name.default, rate.default, rate.description) == (MISSING, 0.25, "Share of it.")
    with pytest.raises(ConfigError, match="`rate` is 2; give 0 to 1"):
        Half(name="x", rate=2)


def test_what_is_no_parameter_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Plain(Config):
        bare: int = 1

    @dataclass(frozen=True, kw_only=True)
    class Listed(Config):
        many: list = parameter(None, "Some.")  # noqa: RUF009

    with pytest.raises(TypeError, match=r"Plain: not declared by parameter\(\): \['bare'\]"):
        parameters_of(Plain)
    with pytest.raises(TypeError, match=r"Listed\.many: components don't know the type"):
        parameters_of(Listed)


@pytest.mark.parametrize(
    ("limits", "text", "inside", "outside"),
    [
        (Limits(), "", [-1e9, 1e9], []),
        (Limits(at_least=1), "1 or more", [1, 2], [0.5]),
        (Limits(above=0), "more than 0", [0.1], [0]),
        (Limits(above=0, below=1), "more than 0 and below 1", [0.5], [0, 1]),
        (Limits(at_least=0, below=1), "0 or more and below 1", [0, 0.5], [-1, 1]),
        (Limits(at_least=0, at_most=10), "0 to 10", [0, 10], [-1, 11]),
    ],
)
def test_limits(limits, text, inside, outside):
    assert str(limits) == text
    assert all(limits.allow(value) for value in inside)
    assert not any(limits.allow(value) for value in outside)
