"""Checking configs: all errors together, each with the value received."""

from dataclasses import dataclass

import pytest

from calib_core.errors import ConfigError
from calib_core.settings.checks import ConfigCheck


@dataclass(frozen=True, kw_only=True)
class Example:
    rate: float = 0.5
    count: int = 1
    form: str = "plain"
    limit: float | None = None

    def __post_init__(self) -> None:
        check = ConfigCheck(self)
        check.value("rate", lambda rate: 0 <= rate <= 1, "a share from 0 to 1")
        check.value("limit", lambda limit: limit > 0, "more than 0")
        check.one_of("form", ("plain", "chat"))
        check.that(lambda c: c.count > 0 or c.rate == 0, f"count {self.count} needs rate 0, not {self.rate}")
        check.finish()


def message(**values):
    with pytest.raises(ConfigError) as caught:
        Example(**values)
    return str(caught.value)


def test_good_values_pass():
    Example()
    Example(rate=1, limit=2, form="chat")  # an int is a float's equal


def test_all_errors_come_together():
    assert message(rate=1.5, form="x", limit=-1.0, count=0) == (
        "Example: rate is 1.5; give a share from 0 to 1; limit is -1.0; give more than 0; "
        "form is 'x'; give one of 'plain', 'chat'; count 0 needs rate 0, not 1.5"
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"rate": "0.5"}, "rate is '0.5'; give a finite float"),
        ({"rate": float("nan")}, "rate is nan; give a finite float"),
        ({"rate": None}, "rate is None; give a finite float"),
        ({"count": 1.0}, "count is 1.0; give int"),
        ({"count": True}, "count is True; give int"),
        ({"limit": float("inf")}, "limit is inf; give a finite float or None"),
        ({"form": 3}, "form is 3; give str"),
    ],
)
def test_values_of_the_wrong_type_reach_no_rule(values, expected):
    assert message(**values) == f"Example: {expected}"
