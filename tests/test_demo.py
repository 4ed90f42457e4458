"""The compiled pipeline on the real model: what the demonstration does, on fewer questions."""

import math

import pytest
import real

from calib_pipelines.run.local import run_local

pytestmark = [pytest.mark.slow, pytest.mark.real, real.needs_weights]

FIGURES = ("accuracy", "mean_confidence", "conf_ece", "cw_ece")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("real")
    return run_local(real.small_run(folder), folder / "out"), folder / "out"


def test_an_overconfident_model_is_found_repaired_and_promoted(run):
    real.assert_repaired(*run)


def test_every_figure_has_its_interval(run):
    summary, _ = run
    for side in ("before", "after"):
        for name in FIGURES:
            figure = summary[side][name]
            assert figure["low"] <= figure["value"] <= figure["high"], (side, name)
            assert all(map(math.isfinite, figure.values()))
    assert {"unaligned", "temperature_scaling"} <= summary["baselines"].keys()
    assert set(summary["win_rate"]) == {"before", "after"}


def test_the_promoted_model_is_an_adapter_with_its_record(run):
    summary, out = run
    real.assert_adapter_with_record(summary, out)
    assert "<script" not in (out / "report.html").read_text()
