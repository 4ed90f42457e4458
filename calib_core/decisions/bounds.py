"""Bounds on the ECE, and the regime test that chooses between doing nothing, CFT and RCFT.

Labels are drawn from q(.|x), the target model. With the target calibration error TCE(p) = E |q_yhat -
p_yhat|:

(U) ECE(p) <= TCE(p) <= E TV(q, p) <= E sqrt(KL(q || p) / 2) <= sqrt((CE(p) - H(q)) / 2)
(L) ECE_S(p) + TCE(p) >= ACC_S - E q_yhat >= ACC_S - ACC*, with ACC* = E max_k q_k, for any labelled set S

(U) is why fine-tuning on answers restores calibration (its loss is CE); (L) is why a model that is right on
its training questions more often than the target model would be can't be calibrated there and against the
target at once.

Source: Xiao et al. 2025, sections 3 and 4; (L) for a labelled set, the estimators and the intervals are this
project's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, ndtri, rel_entr

from calib_core.decisions.reasons import regime_reasons, undecided_message
from calib_core.decisions.target import estimate_bin_targets
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.binning import check_n_bins, folded_normal_mean
from calib_core.metrics.bootstrap import resample_weights
from calib_core.metrics.gaps import conf_ece_interval, debiased_ece_interval
from calib_core.metrics.interval import Interval, tail_share
from calib_core.predictions.table import Predictions, check_same_protocol

Floats = NDArray[np.float64]
Regime = Literal["calibrated", "calibratable", "non_calibratable"]

CROSS_FIT_FOLDS = 5
LOG_TEMPERATURE = 5.0  # temperatures from 0.007 to 148 are tried


@dataclass(frozen=True, kw_only=True)
class UpperBounds:
    """The chain (U) for known p and q: each figure is at most the next.

    Attributes:
        target_calibration_error: E |q_yhat - p_yhat|.
        total_variation: E TV(q, p).
        pinsker: E sqrt(KL(q || p) / 2), KL in nats.
        information: sqrt((CE(p) - H(q)) / 2) = sqrt(E KL(q || p) / 2).
    """

    target_calibration_error: float
    total_variation: float
    pinsker: float
    information: float


def target_calibration_error(p: ArrayLike, q: ArrayLike) -> float:
    """TCE: how far the probability of p's top option is, on average, from what q gives that option.

    Args:
        p: the model's option probabilities, (N, K).
        q: the target's, (N, K).
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    rows, top = np.arange(len(p)), p.argmax(axis=1)
    return float(np.abs(q[rows, top] - p[rows, top]).mean())


def upper_bounds(p: ArrayLike, q: ArrayLike) -> UpperBounds:
    """The upper bounds (U) on the ECE of p where labels are drawn from q.

    Args:
        p: the model's option probabilities, (N, K).
        q: the target's, (N, K). KL is infinite where q gives an option that p gives 0.
    """
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    # KL is not negative; rounding may leave it an ulp below 0 where p is q.
    kl_nats = np.maximum(rel_entr(q, p).sum(axis=1), 0.0)
    return UpperBounds(
        target_calibration_error=target_calibration_error(p, q),
        total_variation=float(np.abs(q - p).sum(axis=1).mean() / 2),
        pinsker=float(np.sqrt(kl_nats / 2).mean()),
        information=math.sqrt(kl_nats.mean() / 2),
    )


@dataclass(frozen=True, kw_only=True)
class RegimeResult:
    """What the regime test found. Intervals have the coverage `confidence`; probabilities lie in [0, 1].

    Attributes:
        regime: `calibrated`, `calibratable` or `non_calibratable`.
        lower_bound: max(0, accuracy_fit - critical_accuracy): what memorising leaves of calibration error at
            least.
        upper_bound: held-out binned ECE as measured; its upper limit is the bound.
        information_bound: sqrt((cross_entropy_nats - entropy_nats) / 2), which bounds the ECE from above by
            (U).
        critical_accuracy: the target model's expected accuracy; low = value = high where it was given.
        debiased_ece: held-out ECE less what sampling noise adds to it; the decision rests on its limits.
        accuracy_fit: share of right answers among the questions trained on.
        accuracy_heldout: share of right answers among questions never trained on.
        mean_confidence_fit: mean probability of the top option there.
        mean_confidence_heldout: the same, held out.
        cross_entropy_nats: held-out negative log-likelihood over the options, CE(p).
        entropy_nats: the estimate of H(q): entropy of the temperature-scaled model.
        n_fit: questions in `fit`.
        n_heldout: questions in `heldout`.
        n_required: questions that each of the two needed.
        undecided: whether the interval of `debiased_ece` holds the target, so that neither side was shown.
        target_ece: the target that was asked for.
        tolerance: lower bound that was tolerated.
        confidence: coverage of the intervals.
        reasons: the decision in sentences.
    """

    regime: Regime
    lower_bound: Interval
    upper_bound: Interval
    information_bound: Interval
    critical_accuracy: Interval
    debiased_ece: Interval
    accuracy_fit: Interval
    accuracy_heldout: Interval
    mean_confidence_fit: Interval
    mean_confidence_heldout: Interval
    cross_entropy_nats: float
    entropy_nats: float
    n_fit: int
    n_heldout: int
    n_required: int
    undecided: bool
    target_ece: float
    tolerance: float
    confidence: float
    reasons: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON values, intervals as `{value, low, high}`."""
        return {**asdict(self), "reasons": list(self.reasons)}


def regime_test(  # noqa: PLR0913
    fit: Predictions,
    heldout: Predictions,
    *,
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: float | None = None,
    on_undecided: str = "branch",
    n_bins: int = 10,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> RegimeResult:
    """Decide from two sets of predictions of one model whether it needs mending, and by which branch.

    In this order: `calibrated` if the upper limit of the debiased held-out ECE is at or below `target_ece`
    (memorising is reported all the same); else `non_calibratable` if the lower limit of `lower_bound` is
    above `tolerance`; else `calibratable`.

    ACC*, the critical accuracy, is the expected accuracy of the target model q. Nobody has q. What stands for
    it is the model itself, recalibrated on questions that it was not trained on: for each level of confidence
    the accuracy that it has there, and a plain guess (1 / K) where even that would be better. Its expected
    accuracy is the mean over `heldout` of: right or wrong where the accuracy at this confidence, estimated on
    the other folds of `heldout`, is at least 1 / K; and 1 / K elsewhere. Cross-fitting keeps a question's own
    label out of the choice that is made for it, so that the mean is unbiased for a target that is truly
    reachable, and never above the expected accuracy of the best one. It is about the held-out accuracy. It is
    not taken at the confidences of `fit`: training has pulled those towards the labels, which is the very
    thing to be found. Where labels come from a known q, a model that ranks options as q does gets E max_k
    q_k; one that ranks worse gets E q_yhat, with which (L) holds just as well.

    H(q), for the information bound, is the mean entropy of the temperature-scaled model on `heldout`: the
    best calibrated target along the one direction that overconfidence takes. At the fitted temperature it
    equals that model's cross-entropy, so that CE - H is exactly E KL(q || p) (the temperature family is
    exponential in the logits) and can't be negative. The bin targets won't do here: their shares for the
    other options are a convention.

    How often it is right, in 200 worlds each (`python benchmarks/regime_rates.py --trials 200`), 1,000
    questions in both sets: q itself is found calibrated in 99.5 %, q sharpened by a temperature of 0.5
    calibratable in 100 %, a memoriser of all or half the labels non-calibratable in 100 %. At the default
    target, 800 questions and a mean confidence of 0.8, a model is found calibrated in 100, 96.5, 55, 2.5 and
    0 % where its true ECE is 0, 0.03, 0.05, 0.08 and 0.12.

    Args:
        fit: predictions for the questions that the model was, or is going to be, fine-tuned on; labels known.
        heldout: predictions of the same model for questions that it never saw; labels known.
        target_ece: ECE at or below which a model counts as calibrated, in (0, 1).
        tolerance: lower bound that doesn't count yet, in [0, 1).
        critical_accuracy: ACC* where it is known (human agreement, say), in [0, 1]; estimated if left out.
        on_undecided: `branch` decides as above, `stop` raises where the interval of the ECE holds the target.
        n_bins: equal-width confidence bins.
        confidence: coverage of the intervals.
        n_resamples: bootstrap resamples; the two sets are resampled independently.
        seed: of the resamples and of the cross-fitting folds.

    Raises:
        ConfigError: a parameter is out of range; all of them are named.
        DataFormatError: unknown labels, two protocols or adapters, or a question in both sets.
        NotEnoughDataError: fewer questions than `required_examples(target_ece)` in either set; or undecided,
            and `on_undecided` is `stop`.

    Source: Xiao et al. 2025, sections 3 and 4.
    """
    _check_parameters(target_ece, tolerance, critical_accuracy, on_undecided)
    n_required = required_examples(target_ece, n_bins=n_bins, confidence=confidence)
    _check_sets(fit, heldout, n_required, target_ece)
    options: dict[str, Any] = {"confidence": confidence, "n_resamples": n_resamples, "seed": seed}
    conf, correct = heldout.confidence(), heldout.correct()
    ece = debiased_ece_interval(conf, correct, n_bins=n_bins, **options)
    undecided = ece.low <= target_ece < ece.high
    if undecided and on_undecided == "stop":
        raise NotEnoughDataError(undecided_message(ece, target_ece, len(heldout)))
    means = _measure_means(fit, heldout, critical_accuracy, n_bins=n_bins, **options)
    regime: Regime = "calibratable"
    if ece.high <= target_ece:
        regime = "calibrated"
    elif means["lower_bound"].low > tolerance:
        regime = "non_calibratable"
    cross_entropy_nats, entropy_nats = (float(nll.mean()) for nll in _nll_before_and_after_scaling(heldout))
    result = RegimeResult(
        regime=regime,
        upper_bound=conf_ece_interval(conf, correct, n_bins=n_bins, **options),
        debiased_ece=ece,
        **means,
        cross_entropy_nats=cross_entropy_nats,
        entropy_nats=entropy_nats,
        n_fit=len(fit),
        n_heldout=len(heldout),
        n_required=n_required,
        undecided=undecided,
        target_ece=target_ece,
        tolerance=tolerance,
        confidence=confidence,
        reasons=(),
    )
    return replace(result, reasons=regime_reasons(result, given=critical_accuracy is not None))


@lru_cache
def required_examples(target_ece: float, *, n_bins: int = 10, confidence: float = 0.95) -> int:
    """Questions that each set needs before the regime test can decide anything at this target.

    The smallest n at which a perfectly calibrated model is as likely as not to pass (upper limit of its ECE
    at or below the target), in the world where chance disturbs most; elsewhere it passes more often. Below it
    the test would send most models to be mended whatever they are like.

    The noise model repeats how the interval is made. In bin b with a share w_b of the questions the gap
    between accuracy and confidence is normal with variance m_b (1 - m_b) / (n w_b), m_b the bin's middle, and
    shares w_b in proportion to m_b (1 - m_b) make the sum of the noise largest. The upper limit is the sum of
    true gaps, those seen moved outwards by a common number of standard errors, under which an ECE as small as
    the one seen is rare (see `bootstrap.GapModel`; here with the mean and variance of folded normals in place
    of resamples). All of it falls as 1 / sqrt(n), so that n is a square.

    With that many questions in both sets the difference of their accuracies is known within the target either
    way (an accuracy's variance is at most 1/4 / n); where that needs more, it counts.

    Args:
        target_ece: in (0, 1).
        n_bins: equal-width confidence bins.
        confidence: coverage of the interval.

    Raises:
        ConfigError: a parameter is out of range.

    >>> [required_examples(target) for target in (0.05, 0.08, 0.15)]
    [908, 355, 101]
    """
    _check_parameters(target_ece, 0.0, None, "branch")
    check_n_bins(n_bins)
    z = float(ndtri(1 - tail_share(confidence)))
    middle = (np.arange(n_bins) + 0.5) / n_bins
    variance = middle * (1 - middle)
    sd = variance / math.sqrt(variance.sum())  # of a bin's share of the ECE, times sqrt(n)
    seen = np.abs(np.random.default_rng(0).standard_normal((2000, n_bins))) * sd
    low, high = -(seen / sd).max(axis=1), np.full(len(seen), z)
    for _ in range(20):
        shift = (low + high) / 2
        truth = np.maximum(seen + shift[:, None] * sd, 0.0)
        mean = folded_normal_mean(truth, np.broadcast_to(sd, truth.shape))
        spread = np.sqrt((truth**2 + sd**2 - mean**2).sum(axis=1))
        explains = mean.sum(axis=1) - z * spread >= seen.sum(axis=1)
        low, high = np.where(explains, low, shift), np.where(explains, shift, high)
    upper = np.median(np.maximum(seen + high[:, None] * sd, 0.0).sum(axis=1))
    return math.ceil(max(upper**2, z**2 / 2) / target_ece**2)


def _measure_means(
    fit: Predictions,
    heldout: Predictions,
    critical_accuracy: float | None,
    *,
    n_bins: int,
    confidence: float,
    n_resamples: int,
    seed: int,
) -> dict[str, Interval]:
    """The result's figures that are made of means over questions, with intervals, by field."""
    tail = tail_share(confidence)
    nll, scaled_nll = _nll_before_and_after_scaling(heldout)
    reachable = _reachable_correct(heldout, n_bins=n_bins, seed=seed)
    # The sets are independent, so their seeds differ: with one seed, equal sizes would be resampled in step.
    on_fit = _means((fit.correct(), fit.confidence()), n_resamples, seed + 1)
    on_heldout = _means(
        (heldout.correct(), heldout.confidence(), nll - scaled_nll, reachable), n_resamples, seed
    )
    accuracy_fit, confidence_fit = on_fit.T
    accuracy_heldout, confidence_heldout, gain, critical = on_heldout.T
    if critical_accuracy is not None:
        critical = np.full(1 + n_resamples, critical_accuracy)
    figures = {
        "accuracy_fit": accuracy_fit,
        "accuracy_heldout": accuracy_heldout,
        "mean_confidence_fit": confidence_fit,
        "mean_confidence_heldout": confidence_heldout,
        "critical_accuracy": critical,
        "lower_bound": np.maximum(accuracy_fit - critical, 0.0),
        "information_bound": np.sqrt(np.maximum(gain, 0.0) / 2),
    }
    return {name: _interval(values, tail) for name, values in figures.items()}


def _means(columns: tuple[Floats, ...], n_resamples: int, seed: int) -> Floats:
    """Means of columns (N,) on the data (first row) and on each resample, (1 + n_resamples, C)."""
    table = np.column_stack(columns)
    resampled = [
        weights @ table / weights.sum(axis=1, keepdims=True)
        for weights in resample_weights(len(table), n_resamples=n_resamples, seed=seed)
    ]
    return np.vstack([table.mean(axis=0), *resampled])


def _interval(values: Floats, tail: float) -> Interval:
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high))


def _reachable_correct(heldout: Predictions, *, n_bins: int, seed: int) -> Floats:
    """How right the cross-fitted target is: as the model, or 1 / K where a guess is better, (N,)."""
    conf, correct = heldout.confidence(), heldout.correct()
    guess = 1.0 / heldout.n_options
    fold = np.random.default_rng(seed).permutation(len(conf)) % CROSS_FIT_FOLDS
    expected = np.empty_like(conf)
    for k in range(CROSS_FIT_FOLDS):
        inside = fold == k
        targets = estimate_bin_targets(conf[~inside], correct[~inside], n_bins=n_bins)
        expected[inside] = targets.confidence_for(conf[inside])
    return np.where(expected >= guess, correct, guess)


def _nll_before_and_after_scaling(heldout: Predictions) -> tuple[Floats, Floats]:
    """Negative log-likelihood of each label, as predicted and after temperature scaling, (N,) each."""
    log_probs, rows = heldout.log_probs(), np.arange(len(heldout))

    def nll_nats(log_temperature: float) -> Floats:
        logits = log_probs / math.exp(log_temperature)
        return logsumexp(logits, axis=1) - logits[rows, heldout.labels]

    best = minimize_scalar(lambda t: nll_nats(t).mean(), bounds=(-LOG_TEMPERATURE, LOG_TEMPERATURE)).x
    return nll_nats(0.0), nll_nats(best)


def _check_parameters(
    target_ece: float, tolerance: float, critical_accuracy: float | None, on_undecided: str
) -> None:
    problems = []
    if not 0 < target_ece < 1:
        problems.append(f"target_ece must lie between 0 and 1, received {target_ece!r}")
    if not 0 <= tolerance < 1:
        problems.append(f"tolerance must be in [0, 1), received {tolerance!r}")
    if critical_accuracy is not None and not 0 <= critical_accuracy <= 1:
        problems.append(f"critical_accuracy must be in [0, 1] or left out, received {critical_accuracy!r}")
    if on_undecided not in ("branch", "stop"):
        problems.append(f"on_undecided must be 'branch' or 'stop', received {on_undecided!r}")
    if problems:
        raise ConfigError("regime test: " + "; ".join(problems))


def _check_sets(fit: Predictions, heldout: Predictions, n_required: int, target_ece: float) -> None:
    sets = (("fit", fit), ("heldout", heldout))
    for name, predictions in sets:
        try:
            predictions.correct()
        except DataFormatError as error:
            raise DataFormatError(f"{name}: {error}") from None
    check_same_protocol(fit, heldout)
    adapters = [(predictions.protocol or {}).get("adapter") for _, predictions in sets]
    if adapters[0] != adapters[1]:
        raise DataFormatError(
            "fit and heldout come from two models (protocol field 'adapter': "
            f"{adapters[0]} and {adapters[1]}); score both sets with the same adapter"
        )
    if shared := sorted(set(fit.ids) & set(heldout.ids)):
        raise DataFormatError(
            f"fit and heldout share {len(shared)} question ids (first: {shared[0]!r}): a question that is "
            "trained on isn't held out; leave these out of one table, or give each question an id of its own"
        )
    if few := [
        f"{name} has {len(predictions)}" for name, predictions in sets if len(predictions) < n_required
    ]:
        raise NotEnoughDataError(
            f"{' and '.join(few)} questions, but at target_ece {target_ece:g} the regime test needs "
            f"{n_required} in each set: with fewer, chance would decide; bring more, or raise target_ece"
        )
