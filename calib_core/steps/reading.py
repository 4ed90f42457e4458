"""Groups of parameters about files of questions, which several steps share."""

from __future__ import annotations

from dataclasses import dataclass

from calib_core.data.layouts import preset_names
from calib_core.settings.checks import Config
from calib_core.settings.groups import Rows
from calib_core.settings.parameters import parameter


@dataclass(frozen=True, kw_only=True)
class Preset(Config):
    """In what layout questions are published."""

    GROUP = "reading"

    preset: str = parameter(
        "auto",
        "Column layout of the question files: `auto`, or a published set such as `mmlu` or `medmcqa`.",
        choices=preset_names(),
    )


@dataclass(frozen=True, kw_only=True)
class Reading(Preset, Rows):
    """How files of questions are read."""
