"""Measure: figures and a report of any predictions table, without a model; with a second table the regime."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from calib_core.decisions.bounds import regime_test
from calib_core.metrics.summary import measure
from calib_core.predictions.files import read_predictions
from calib_core.report import ReportData, write_page
from calib_core.report.cautions import cautions
from calib_core.runtime.progress import say
from calib_core.settings.groups import Measuring, RegimeTest
from calib_core.settings.parameters import values_of
from calib_core.storage.files import check_output_file
from calib_core.version import versions


@dataclass(frozen=True, kw_only=True)
class MeasureConfig(RegimeTest):
    """Parameters of a measurement."""


def measure_table(
    config: MeasureConfig, predictions: Path, out: Path, *, fit: Path | None = None
) -> dict[str, Any]:
    """Measure a predictions table and write its report.

    Args:
        config: parameters of the measurement.
        predictions: table of questions that the model never saw, whoever made it.
        out: HTML file to write, atomically.
        fit: table of the same model for the questions that it was, or is going to be, fine-tuned on; with it
            the regime is named.

    Returns:
        `cautions` about the figures, `figures` (as `calib metrics` gives them), `regime` (as `calib regime`
        gives it; None without `fit`) and `report`.

    Raises:
        ConfigError: `out` can't be written, or is an input.
        DataFormatError: a table can't be read, a label is missing, or the two were made in different ways.
        NotEnoughDataError: the tables are too small for the regime test.
    """
    check_output_file(out, inputs=(predictions, fit))
    table = read_predictions(predictions)
    figures = measure(table, **values_of(config, Measuring)).to_dict()
    regime = None
    if fit is not None:
        regime = regime_test(read_predictions(fit), table, **asdict(config)).to_dict()
    said = cautions(table)
    write_page(
        ReportData(
            title=predictions.stem,
            summary={"before": figures, "cautions": said},
            before=table,
            regime=regime or {},
            parameters={"predictions": str(predictions), "fit": fit and str(fit), **asdict(config)},
            versions=versions(),
            fingerprints={"predictions": table.protocol or {}},
        ),
        out,
    )
    if regime:
        say(f"regime: {regime['regime']}; branch: {regime['branch']}. {' '.join(regime['reasons'])}")
    return {"cautions": said, "figures": figures, "regime": regime, "report": str(out)}
