"""Cron expressions: the usual five fields, checked, and written as each platform wants them."""

from __future__ import annotations

import dataclasses
import re
import zoneinfo

from calib_core.errors import ConfigError

EXAMPLE = '"30 3 * * 1" is every Monday at 03:30'
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
LONGEST_MONTHS = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)  # days, in any year


@dataclasses.dataclass(frozen=True)
class _Field:
    name: str
    low: int
    high: int
    names: tuple[str, ...] = ()


_FIELDS = (
    _Field("minute", 0, 59),
    _Field("hour", 0, 23),
    _Field("day of month", 1, 31),
    _Field("month", 1, 12, MONTHS),
    _Field("day of week", 0, 7, WEEKDAYS),
)


@dataclasses.dataclass(frozen=True)
class Cron:
    """A checked cron expression.

    Attributes:
        fields: Minute, hour, day of month, month and day of week, in numbers; Sunday is 0.
        timezone: Name in the IANA database, "" for the platform's own (UTC unless set up otherwise).
    """

    fields: tuple[str, str, str, str, str]
    timezone: str = ""

    @property
    def for_kubeflow(self) -> str:
        """Six fields, seconds first.

        Raises:
            ConfigError: a time zone is given, which a recurring run can't have.
        """
        if self.timezone:
            raise ConfigError(
                f"TZ={self.timezone}: Kubeflow uses one time zone for all schedules, UTC unless its "
                "administrator set CRON_SCHEDULE_TIMEZONE; leave TZ= out and give the hours in that zone"
            )
        return " ".join(("0", *self.fields))

    @property
    def for_vertex(self) -> str:
        """Five fields, after the time zone where one is given."""
        return " ".join((*([f"TZ={self.timezone}"] if self.timezone else []), *self.fields))


def parse_cron(text: str) -> Cron:
    """Read five cron fields with an optional `TZ=Area/City ` before them.

    Fields hold `*`, numbers, names of months and weekdays, ranges `a-b`, steps `/n` and lists of these.

    Raises:
        ConfigError: the expression is invalid or names a day that never comes; with an example.
    """
    words = text.split()
    timezone = ""
    if words and (zone := re.fullmatch(r"(?:CRON_)?TZ=(.*)", words[0])):
        timezone = _checked_zone(zone.group(1), text)
        words = words[1:]
    if len(words) != len(_FIELDS):
        raise _invalid(
            text, f"has {len(words)} fields; needs 5: {', '.join(field.name for field in _FIELDS)}"
        )
    written, meant = [], []
    for field, word in zip(_FIELDS, words, strict=True):
        numbers, values = _parse_field(field, word, text)
        written.append(numbers)
        meant.append(values)
    _, _, days, months, weekdays = meant
    if words[4] == "*" and not any(min(days) <= LONGEST_MONTHS[month - 1] for month in months):
        raise _invalid(text, f"never occurs: no chosen month has a day {min(days)}")
    if 7 in weekdays:  # both platforms' parsers know Sunday as 0 only
        written[4] = ",".join(str(day) for day in sorted({day % 7 for day in weekdays}))
    return Cron((written[0], written[1], written[2], written[3], written[4]), timezone)


def _parse_field(field: _Field, word: str, text: str) -> tuple[str, set[int]]:
    """A field in numbers, and the values that it stands for."""
    parts, values = [], set()
    for part in word.split(","):
        match = re.fullmatch(r"(\*|\w+)(?:-(\w+))?(?:/([0-9]{1,4}))?", part)
        if match is None or (match.group(1) == "*" and match.group(2)):
            raise _invalid(
                text, f"{field.name}: {part!r} is not a number, a range a-b, * or a step such as */5"
            )
        first, last, step = match.groups()
        if first == "*":
            low, high, numbers = field.low, min(field.high, 6) if field.names == WEEKDAYS else field.high, "*"
        else:
            low = high = _number(field, first, text)
            numbers = str(low)
            if last is not None:
                high = _number(field, last, text)
                numbers += f"-{high}"
            elif step is not None:
                raise _invalid(
                    text, f"{field.name}: {part!r} steps from one value; write a range or */{step}"
                )
        if low > high:
            raise _invalid(text, f"{field.name}: the range {part!r} runs backwards")
        if step is not None:
            if not 1 <= int(step) <= field.high:
                raise _invalid(text, f"{field.name}: a step of {step} is not between 1 and {field.high}")
            numbers += f"/{int(step)}"
        parts.append(numbers)
        values |= set(range(low, high + 1, int(step or 1)))
    return ",".join(parts), values


def _number(field: _Field, word: str, text: str) -> int:
    if word.lower() in field.names:
        return field.names.index(word.lower()) + field.low
    if not re.fullmatch("[0-9]{1,4}", word) or not field.low <= int(word) <= field.high:
        names = f" or {field.names[0]} to {field.names[-1]}" if field.names else ""
        raise _invalid(text, f"{field.name}: {word!r} is not {field.low} to {field.high}{names}")
    return int(word)


def _checked_zone(name: str, text: str) -> str:
    try:
        zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        raise _invalid(text, f"time zone {name!r} is unknown; such as TZ=Europe/Berlin") from None
    return name


def _invalid(text: str, reason: str) -> ConfigError:
    return ConfigError(f"cron expression {text!r}: {reason}; for example {EXAMPLE}")
