"""Cron expressions: what is taken, what is refused, and how each platform gets them."""

from __future__ import annotations

import pytest

from calib_core.errors import ConfigError
from calib_pipelines.clusters.cron import parse_cron


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("30 3 * * 1", "30 3 * * 1"),
        ("*/15 * * * *", "*/15 * * * *"),
        ("0 0-23/2 1,15 * *", "0 0-23/2 1,15 * *"),
        ("0 6 * JAN-mar,dec Mon-Fri", "0 6 * 1-3,12 1-5"),
        ("05 09 * * sun", "5 9 * * 0"),
        ("0 0 29 2 *", "0 0 29 2 *"),
        ("0 0 31 2 1", "0 0 31 2 1"),  # Mondays in February: with both days given, either will do
        ("0 0 31 1,2 *", "0 0 31 1,2 *"),
    ],
)
def test_five_fields_are_taken(text, fields):
    cron = parse_cron(text)
    assert cron.for_vertex == fields
    assert cron.for_kubeflow == f"0 {fields}"


@pytest.mark.parametrize(
    ("weekdays", "numbers"), [("7", "0"), ("5-7", "0,5,6"), ("1,7", "0,1"), ("1-7/2", "0,1,3,5")]
)
def test_sunday_as_seven_becomes_zero(weekdays, numbers):
    assert parse_cron(f"0 0 * * {weekdays}").for_vertex == f"0 0 * * {numbers}"


@pytest.mark.parametrize("prefix", ["TZ=", "CRON_TZ="])
def test_time_zones_are_for_vertex_only(prefix):
    cron = parse_cron(f"{prefix}Europe/Berlin 0 6 * * *")
    assert cron.for_vertex == "TZ=Europe/Berlin 0 6 * * *"
    with pytest.raises(ConfigError, match="one time zone for all schedules, UTC"):
        _ = cron.for_kubeflow


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "has 0 fields"),
        ("* * * *", "has 4 fields"),
        ("0 0 3 * * 1", "has 6 fields"),
        ("@daily", "has 1 fields"),
        ("60 * * * *", "minute: '60' is not 0 to 59"),
        ("9" * 5000 + " * * * *", "9' is not 0 to 59"),
        ("*/" + "9" * 5000 + " * * * *", "9' is not a number, a range"),
        ("-1 * * * *", "minute: '-1'"),
        ("0 24 * * *", "hour: '24'"),
        ("0 0 0 * *", "day of month: '0'"),
        ("0 0 * 13 *", "month: '13' is not 1 to 12 or jan to dec"),
        ("0 0 * * 8", "day of week: '8'"),
        ("0 0 * * fri-mon", "runs backwards"),
        ("30-10 * * * *", "runs backwards"),
        ("*/0 * * * *", "a step of 0"),
        ("*/60 * * * *", "a step of 60"),
        ("5/10 * * * *", "steps from one value"),
        ("*-5 * * * *", "is not a number"),
        ("1,,2 * * * *", "is not a number"),
        ("0 0 ? * 1", "is not a number"),
        ("0 0 L * *", "day of month: 'L'"),
        ("mon 0 * * *", "minute: 'mon'"),
        ("٣ 0 * * *", "minute"),
        ("0 0 30 2 *", "never occurs"),
        ("0 0 31 4,6,9,11 *", "never occurs"),
        ("TZ=Europe/Atlantis 0 0 * * *", "time zone 'Europe/Atlantis' is unknown"),
        ("TZ= 0 0 * * *", "time zone '' is unknown"),
        ("TZ=../etc/passwd 0 0 * * *", "is unknown"),
    ],
)
def test_what_is_wrong_is_said_with_an_example(text, reason):
    with pytest.raises(ConfigError) as caught:
        parse_cron(text)
    assert reason in str(caught.value)
    assert '"30 3 * * 1" is every Monday at 03:30' in str(caught.value)
