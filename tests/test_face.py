"""The public face: every name of it, loaded only when used, with the ways in for arrays and for tables."""

from __future__ import annotations

import ast
import json
import re
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

import calib_core
from calib_core import Figures, Predictions, compare, measure, metrics
from calib_core.errors import ConfigError, DataFormatError

ROOT = Path(__file__).parents[1]
PROMISED = {
    *("Predictions", "Interval", "Figures", "read_predictions", "write_predictions", "measure", "compare"),
    *("regime_test", "decide", "fit_temperature", "apply_temperature", "conf_ece", "classwise_ece"),
    *("adaptive_ece", "debiased_ece", "smooth_ece", "brier", "nll_nats", "auroc", "risk_coverage"),
    *("write_report", "CalibError"),
}
PROBS = [[0.7, 0.2, 0.1], [0.5, 0.5], [0.1, 0.8, 0.1]]


def draw(n: int = 300, seed: int = 0, sharpness: float = 2.0) -> Predictions:
    """A model that is right as often as its probabilities say, made too sure of itself by `sharpness`."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, 4))
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = [rng.choice(4, p=row) for row in probs]
    return Predictions.from_logits(sharpness * logits, labels)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_face_has_every_promised_name() -> None:
    assert {*PROMISED, "__version__"} == set(calib_core.__all__)
    assert set(calib_core.__all__) <= set(dir(calib_core))
    for name in PROMISED:
        assert getattr(calib_core, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'mesure'"):
        _ = calib_core.mesure


def test_names_are_loaded_from_where_type_checkers_look() -> None:
    tree = ast.parse((ROOT / "calib_core" / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    imports = [node for node in checked.body if isinstance(node, ast.ImportFrom)]
    found = {node.module: sorted(alias.name for alias in node.names) for node in imports}
    assert found == {f"calib_core.{home}": sorted(names) for home, names in calib_core._HOMES.items()}


def test_importing_the_face_loads_nothing() -> None:
    loaded = run("import sys; before = set(sys.modules); import calib_core; print(set(sys.modules) - before)")
    packages = {name.partition(".")[0] for name in ast.literal_eval(loaded)} - set(sys.stdlib_module_names)
    assert packages == {"calib_core"}


def test_using_the_face_needs_no_torch() -> None:
    code = f"import sys; from calib_core import {', '.join(sorted(PROMISED))}; print('torch' in sys.modules)"
    assert run(code) == "False"


def test_importing_leaves_other_libraries_loggers_and_warnings_alone() -> None:
    modules = "calib_core, calib_core.metrics, calib_core.commands.library, calib_core.steps.finetune"
    code = f"""
import json, logging, sys, warnings
import {modules}
own = {{name: logger.level for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and logger.level}}
hidden = [entry for entry in warnings.filters if entry[:3] == ("ignore", None, FutureWarning)]
print(json.dumps([own, len(hidden)]))
"""
    assert json.loads(run(code)) == [{}, 0]


def test_tables_from_probabilities_and_logits() -> None:
    table = Predictions.from_probs(PROBS, [0, 1, -1], ids=["a", "b", "c"], subjects=["x", None, "y"])
    assert repr(table) == "Predictions(n=3, options=2 to 3, labelled=2, model=None)"
    assert table.ids == ("a", "b", "c")
    assert table.subjects == ("x", None, "y")
    assert table.n_options.tolist() == [3, 2, 3]
    assert_allclose(table.probs()[0], PROBS[0], atol=1e-6)
    assert Predictions.from_probs(PROBS).labels.tolist() == [-1, -1, -1]
    logits = np.log(np.array([[0.25, 0.75], [0.5, 0.5]]))
    for given in (logits, logits.astype(np.float32), logits.tolist(), list(logits)):
        assert_allclose(Predictions.from_logits(given).probs(), np.exp(logits), atol=1e-6)
    assert repr(Predictions.from_probs([])) == "Predictions(n=0, options=0, labelled=0, model=None)"


@pytest.mark.parametrize(
    ("probs", "labels", "told"),
    [
        ([[2.0, -1.0]], [0], "row 1, field 'probs'.*are these logits"),
        ([[0.5, 0.4]], [0], "sum to 0.9"),
        ([[0.5, 0.5], [1.0]], [0, 0], "row 2.*1 options where 2 to 26"),
        ([0.5, 0.5], [0, 0], "list of numbers"),
        ([[float("nan"), 1.0]], [0], "NaN"),
        ([[0.5, 0.5]], [0, 1], r"labels \(2,\)"),
        ([[0.5, 0.5]], [2], "not one of the row's options"),
    ],
)
def test_what_is_no_table_is_refused(probs: list, labels: list, told: str) -> None:
    with pytest.raises(DataFormatError, match=told):
        Predictions.from_probs(probs, labels)


def test_measure_gives_every_figure() -> None:
    table = draw()
    figures = measure(table, n_resamples=300)
    conf, correct, probs = table.confidence(), table.correct(), table.probs()
    expected = {
        "accuracy": correct.mean(),
        "mean_confidence": conf.mean(),
        "conf_ece": metrics.conf_ece(conf, correct),
        "cw_ece": metrics.classwise_ece(probs, table.labels),
        "debiased_ece": metrics.debiased_ece(conf, correct),
        "brier": metrics.brier(probs, table.labels),
        "nll_nats": metrics.nll_nats(probs, table.labels),
        "auroc": metrics.auroc(conf, correct),
        "aurc": metrics.risk_coverage(conf, correct).aurc,
    }
    for name, value in expected.items():
        found = getattr(figures, name)
        assert found.value == pytest.approx(value, abs=1e-12), name
        assert found.low < found.high, name
        assert found.low <= found.value <= found.high, name
    for name in ("adaptive_ece", "smooth_ece", "mce"):
        assert getattr(figures, name) == getattr(metrics, name)(conf, correct)
    assert (figures.n, figures.n_bins, figures.letter_mass) == (300, 10, None)
    assert measure(probs, table.labels, n_resamples=300).accuracy == figures.accuracy
    assert json.loads(json.dumps(figures.to_dict(), allow_nan=False)) == figures.to_dict()
    assert str(figures).splitlines()[2] == f"accuracy        {figures.accuracy}"
    assert "letter_mass     -" in str(figures)


def test_questions_of_one_group_are_taken_together() -> None:
    """Every question twice: as many rows as there are twice the questions, and no more evidence."""
    once = draw(300)
    twice = replace(
        once,
        ids=tuple(f"{key}-{copy}" for copy in "ab" for key in once.ids),
        labels=np.tile(once.labels, 2),
        logits=np.tile(once.logits, (2, 1)),
        n_options=np.tile(once.n_options, 2),
        subjects=("one subject",) * 600,
        groups=once.ids * 2,
    )
    alone, together, ignored = measure(once), measure(twice), measure(twice, cluster_by="none")
    assert (together.n, together.n_clusters, ignored.n_clusters) == (600, 300, 600)
    for name in ("accuracy", "mean_confidence", "conf_ece", "cw_ece", "brier", "nll_nats", "auroc", "aurc"):
        width, as_once, as_600 = (
            getattr(figures, name).high - getattr(figures, name).low for figures in (together, alone, ignored)
        )
        assert width == pytest.approx(as_once, rel=0.1), name
        assert as_600 < 0.85 * width, name
    everything = measure(twice, cluster_by="subject")  # one subject says nothing about others
    assert (everything.accuracy.low, everything.accuracy.high) == (0, 1)
    assert (everything.conf_ece.low, everything.conf_ece.high) == (0, 1)
    with pytest.raises(ConfigError, match="cluster_by must be one of group, subject, none, received 'id'"):
        measure(twice, cluster_by="id")


def test_measure_where_a_figure_is_undefined_and_where_labels_are_missing_or_twice() -> None:
    assert measure([[0.9, 0.1], [0.8, 0.2]], [0, 0], n_resamples=20).auroc is None
    with pytest.raises(ConfigError, match="labels are missing"):
        measure(PROBS)
    with pytest.raises(ConfigError, match="given beside a table"):
        measure(draw(), [0])
    with pytest.raises(DataFormatError, match="no label"):
        measure(Predictions.from_probs(PROBS))


def test_compare_is_paired_and_signed() -> None:
    before, after = draw(sharpness=3.0), draw(sharpness=1.0)
    found = compare(before, after, n_resamples=300)
    a, b = measure(before, n_resamples=10), measure(after, n_resamples=10)
    for name in ("accuracy", "mean_confidence", "conf_ece", "cw_ece", "brier", "nll_nats", "auroc", "aurc"):
        difference = getattr(b, name).value - getattr(a, name).value
        assert getattr(found, name).value == pytest.approx(difference, abs=1e-12), name
    assert found.conf_ece.high < 0
    assert (found.accuracy.low, found.accuracy.high) == (0, 0)  # the ranking is the same
    assert found.brier.high - found.brier.low < a.brier.high - a.brier.low
    assert found.to_dict()["n"] == 300
    with pytest.raises(DataFormatError, match="different questions"):
        compare(before, after.subset(range(200)))


def test_figures_are_frozen() -> None:
    with pytest.raises(AttributeError):
        measure(draw(50), n_resamples=10).n = 3  # type: ignore[misc]
    assert Figures.__dataclass_params__.frozen  # type: ignore[attr-defined]


def test_figure_regime_temperature_and_report_take_ten_lines(tmp_path: Path, monkeypatch, capsys) -> None:
    example = (ROOT / "README.md").read_text().partition("```python\nimport calib_core as calib\n")[2]
    code = "import calib_core as calib\n" + example.partition("```")[0]
    assert len(code.splitlines()) <= 10
    for name in ("measure", "regime_test", "fit_temperature", "apply_temperature", "write_report"):
        assert re.search(rf"\b{name}\(", code), name
    for seed, name in enumerate(("fit", "calibration", "test")):
        table = draw(900, seed=seed)
        named = Predictions.from_logits(table.logits, table.labels, ids=[f"{name}-{i}" for i in range(900)])
        calib_core.write_predictions(named, tmp_path / f"{name}.parquet")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "example.py").write_text(code)
    runpy.run_path("example.py")
    shown = capsys.readouterr().out
    assert "conf_ece" in shown
    assert "calibratable" in shown
    assert "passes the gate" in (tmp_path / "report.html").read_text()


def test_the_api_page_is_fresh() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "api_page.py"))
    assert (ROOT / "docs" / "api.md").read_text() == script["page"](), "stale: run `make docs`"
