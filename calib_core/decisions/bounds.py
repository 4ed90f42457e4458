"""Bounds on the calibration error, and the regime test that chooses a model's repair.

Labels are drawn from q(.|x), the target model. With the target calibration error TCE(p) = E |q_yhat -
p_yhat|:

(U) ECE(p) <= TCE(p) <= E TV(q, p) <= E sqrt(KL(q || p) / 2) <= sqrt((CE(p) - H(q)) / 2)
(L) ECE_S(p) + TCE(p) >= ACC_S - E q_yhat >= ACC_S - ACC*, with ACC* = E max_k q_k, for any labelled set S

(U) is why fine-tuning on answers restores calibration: its loss is CE. q is not known, and its entropy
can't be estimated from labels alone, so (U) is computed for known q only, and no figure of a run rests on
it. (L) says of a model that is right on a set S more often than the target would be that its calibration
error on S and its distance from the target add up to the excess at least: it may be calibrated on S, but
then not against the target. It doesn't say that the model is miscalibrated on fresh questions; those are
asked first.

The regime test is this project's, after Xiao et al. 2025. Theirs compares a model's accuracy with the
critical accuracy of a target model, and chooses between two ways of fine-tuning. This one estimates that
accuracy on questions that the model was not trained on, states an interval for every figure, asks first
whether the model is calibrated at all, tells memorised answers from easier questions, and has a temperature
among its answers (`decisions.repair`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, rel_entr

from calib_core.decisions.reasons import regime_reasons, undecided_message
from calib_core.decisions.repair import choose_branch, measure_temperature, parse_repairs
from calib_core.decisions.result import Regime, RegimeResult
from calib_core.decisions.target import estimate_bin_targets
from calib_core.errors import ConfigError, DataFormatError, NotEnoughDataError
from calib_core.metrics.binning import check_n_bins, folded_normal_mean
from calib_core.metrics.gaps import ece_intervals, fine_ece_interval
from calib_core.metrics.interval import Interval, tail_share
from calib_core.metrics.means import Linear, independent_difference, mean_of, share_interval
from calib_core.predictions.protocols import check_same_protocol
from calib_core.predictions.table import Predictions
from calib_core.settings.groups import REPAIRS

Floats = NDArray[np.float64]

CROSS_FIT_FOLDS = 5

SMALLEST_TARGET = 1e-6
"""Below it a decision would need more questions than anyone has: a million millions."""

LEVELS = 20
"""Levels of confidence at which accuracy on `fit` is compared with accuracy held out."""


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


def regime_test(  # noqa: PLR0913
    fit: Predictions,
    heldout: Predictions,
    *,
    target_ece: float = 0.08,
    tolerance: float = 0.05,
    critical_accuracy: float | None = None,
    repairs: str = ",".join(REPAIRS),
    on_undecided: str = "branch",
    n_bins: int = 10,
    cluster_by: str = "group",
    confidence: float = 0.95,
    n_resamples: int = 1000,
    seed: int = 0,
) -> RegimeResult:
    """Decide from two sets of predictions of one model whether it needs repair, and by which branch.

    In this order: `calibrated` if the upper limit of the debiased held-out ECE is at or below `target_ece`
    and so is the ECE over many bins of equal mass, in which errors that cancel inside a bin show (memorising
    is reported all the same); else `non_calibratable` if the lower limit of `lower_bound` is above
    `tolerance`, and accuracy on `fit` is above that of held-out questions of the same confidence too (where
    it isn't, the questions of `fit` may just be easier); else `calibratable`. `decisions.repair` decides
    which branch follows.

    ACC*, the critical accuracy, is the expected accuracy of the target model q, which is not known. What
    stands in for it is the model itself, recalibrated on questions that it was not trained on: for each
    level of confidence the accuracy that it has there, and a plain guess (1 / K) where even that would be
    better. Its expected accuracy is the mean over `heldout` of: right or wrong where the accuracy at this
    confidence, estimated on the other folds of `heldout`, is at least 1 / K; and 1 / K elsewhere.
    Cross-fitting keeps a question's own label out of the choice that is made for it, so that the mean is
    unbiased for a target that is truly reachable, and never above the expected accuracy of the best one. It
    is about the held-out accuracy. It is not taken at the confidences of `fit`: training has pulled those
    towards the labels, which is the very thing to be found. Where labels come from a known q, a model that
    ranks options as q does gets E max_k q_k; one that ranks worse gets E q_yhat, with which (L) holds just
    as well.

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
        repairs: the answers that are allowed beside `none`: some of `temperature`, `cft` and `rcft`,
            separated by commas. The paper's choice is `cft,rcft`.
        on_undecided: `branch` decides as above, `stop` raises where the interval of the ECE holds the target.
        n_bins: equal-width confidence bins.
        cluster_by: what questions that depend on each other have in common, see `Predictions.clusters`.
        confidence: coverage of the intervals.
        n_resamples: bootstrap resamples behind the intervals of calibration errors.
        seed: of the resamples and of the cross-fitting folds.

    Raises:
        ConfigError: a parameter is out of range; all of them are named.
        DataFormatError: unknown labels, two protocols or adapters, or a question in both sets.
        NotEnoughDataError: fewer questions than `required_examples(target_ece)` in either set; or undecided,
            and `on_undecided` is `stop`.

    Source: after Xiao et al. 2025; the estimators and the intervals are this project's.

    Example:
        >>> probs, labels = [[0.9, 0.1], [0.2, 0.8]] * 200, [0, 1, 1, 1] * 100  # right 3 times of 4
        >>> fit = Predictions.from_probs(probs, labels, ids=[f"fit-{i}" for i in range(400)])
        >>> result = regime_test(fit, Predictions.from_probs(probs, labels), n_resamples=200)
        >>> result.regime, result.reasons[-1]
        ('calibratable', 'Fine-tuning on answers (CFT) can restore calibration without losing accuracy.')
    """
    _check_parameters(target_ece, tolerance, critical_accuracy, on_undecided)
    allowed = parse_repairs(repairs)
    n_required = required_examples(target_ece, n_bins=n_bins, confidence=confidence)
    _check_sets(fit, heldout, n_required, target_ece)
    options: dict[str, Any] = {
        "clusters": heldout.clusters(cluster_by),
        "confidence": confidence,
        "n_resamples": n_resamples,
        "seed": seed,
    }
    conf, correct = heldout.confidence(), heldout.correct()
    plain, ece = ece_intervals(conf, correct, n_bins=n_bins, **options)
    undecided = ece.low <= target_ece < ece.high
    if undecided and on_undecided == "stop":
        raise NotEnoughDataError(undecided_message(ece, target_ece, len(heldout)))
    fine = fine_ece_interval(conf, correct, **options)
    accuracies = _accuracies(
        fit,
        heldout,
        critical_accuracy,
        cluster_by=cluster_by,
        confidence=confidence,
        seed=seed,
    )
    result = RegimeResult(
        regime="calibratable",
        branch="none",
        upper_bound=plain,
        debiased_ece=ece,
        fine_ece=fine,
        **accuracies,
        temperature=measure_temperature(heldout, n_bins=n_bins, **options),
        n_fit=len(fit),
        n_heldout=len(heldout),
        n_required=n_required,
        undecided=undecided,
        target_ece=target_ece,
        tolerance=tolerance,
        confidence=confidence,
        repairs=allowed,
        reasons=(),
    )
    regime: Regime = "non_calibratable" if result.has_memorised else "calibratable"
    if ece.high <= target_ece and fine.value <= target_ece:
        regime = "calibrated"
    branch = choose_branch(regime, result.temperature, target_ece=target_ece, allowed=allowed)
    result = replace(result, regime=regime, branch=branch)
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


def too_few(sizes: Mapping[str, int], n_required: int, target_ece: float) -> str:
    """Why sets are too small for the regime test, and what to do; empty if they aren't.

    Args:
        sizes: questions of each set, by name.
        n_required: what `required_examples` says.
        target_ece: the target that it was asked about.
    """
    few = [f"{name} has {n}" for name, n in sizes.items() if n < n_required]
    if not few:
        return ""
    return (
        f"{' and '.join(few)} questions, but at target_ece {target_ece:g} the regime test needs "
        f"{n_required} in each of {' and '.join(sizes)}: with fewer, chance would decide; provide more, "
        "or raise target_ece"
    )


def check_enough(sizes: Mapping[str, int], n_required: int, target_ece: float) -> None:
    """Refuse sets that are too small for the regime test; the arguments are those of `too_few`.

    Raises:
        NotEnoughDataError: a set has fewer questions than it needs.
    """
    if fault := too_few(sizes, n_required, target_ece):
        raise NotEnoughDataError(fault)


def _accuracies(
    fit: Predictions,
    heldout: Predictions,
    critical_accuracy: float | None,
    *,
    cluster_by: str,
    confidence: float,
    seed: int,
) -> dict[str, Interval]:
    """The result's accuracies and mean confidences, what they differ by, and how sure that is, by field."""
    on_fit, on_heldout = fit.clusters(cluster_by), heldout.clusters(cluster_by)
    found = share_interval(fit.correct(), clusters=on_fit, confidence=confidence)
    reachable = _reachable_correct(heldout, seed=seed)
    critical = mean_of(reachable, on_heldout).interval("logit", confidence=confidence)
    if critical_accuracy is not None:
        critical = Interval(critical_accuracy, critical_accuracy, critical_accuracy)
    excess = independent_difference(found, critical)
    as_confident = _accuracy_at_the_same_confidence(fit, heldout, on_heldout)
    return {
        "accuracy_fit": found,
        "accuracy_heldout": share_interval(heldout.correct(), clusters=on_heldout, confidence=confidence),
        "mean_confidence_fit": mean_of(fit.confidence(), on_fit).interval("logit", confidence=confidence),
        "mean_confidence_heldout": mean_of(heldout.confidence(), on_heldout).interval(
            "logit", confidence=confidence
        ),
        "critical_accuracy": critical,
        "lower_bound": Interval(max(0.0, excess.value), max(0.0, excess.low), max(0.0, excess.high)),
        "unexplained": independent_difference(
            found, as_confident.interval(confidence=confidence).within(0, 1)
        ),
    }


def _accuracy_at_the_same_confidence(
    fit: Predictions, heldout: Predictions, clusters: NDArray[np.int64] | None
) -> Linear:
    """Accuracy of held-out questions, weighted so that they are as confident as those of `fit`."""
    conf, correct = heldout.confidence(), heldout.correct()
    edges = np.unique(np.quantile(conf, np.linspace(0, 1, LEVELS + 1)[1:-1]))
    level, level_of_fit = (np.searchsorted(edges, values, "right") for values in (conf, fit.confidence()))
    counts = np.bincount(level, minlength=len(edges) + 1)
    accuracy = np.bincount(level, correct, len(edges) + 1) / np.maximum(counts, 1)
    share = np.bincount(level_of_fit, minlength=len(edges) + 1) / len(fit)
    weight = share * len(heldout) / np.maximum(counts, 1)
    return Linear(float((share * accuracy).sum()), weight[level] * (correct - accuracy[level]), clusters)


def _reachable_correct(heldout: Predictions, *, seed: int) -> Floats:
    """How right the cross-fitted target is: as the model, or 1 / K where a guess is better, (N,)."""
    conf, correct = heldout.confidence(), heldout.correct()
    guess = 1.0 / heldout.n_options
    fold = np.random.default_rng(seed).permutation(len(conf)) % CROSS_FIT_FOLDS
    expected = np.empty_like(conf)
    for k in range(CROSS_FIT_FOLDS):
        inside = fold == k
        targets = estimate_bin_targets(conf[~inside], correct[~inside])
        expected[inside] = targets.confidence_for(conf[inside])
    return np.where(expected >= guess, correct, guess)


def _check_parameters(
    target_ece: float, tolerance: float, critical_accuracy: float | None, on_undecided: str
) -> None:
    problems = []
    if not SMALLEST_TARGET <= target_ece < 1:
        problems.append(f"target_ece must lie between {SMALLEST_TARGET} and 1, received {target_ece!r}")
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
    check_enough({name: len(predictions) for name, predictions in sets}, n_required, target_ece)
