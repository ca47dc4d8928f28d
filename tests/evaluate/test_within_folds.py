"""Out-of-fold AUCs within folds: by definition, exact p, and the warning where the pooled AUC is another."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from her2net.evaluate.delong import auc
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.evaluation import fit_thresholds
from her2net.evaluate.record import _warned, warn_of_folds
from her2net.evaluate.tables import evaluate_tables
from her2net.evaluate.within_folds import folds_p, within_folds_auc
from her2net.predictions import make_predictions

LABELS = np.arange(120) % 2
FOLDS = [str(i // 2 % 4) for i in range(120)]


def warn(scores: np.ndarray, folds: list[str], labels: np.ndarray = LABELS) -> str:
    """Return what the evaluation of one out-of-fold table warns of."""
    names, p = [f"c{i:03d}" for i in range(len(labels))], 1 / (1 + np.exp(-scores))
    tables = {("US", "oof"): make_predictions(names, names, np.column_stack([1 - p, p]), labels=labels.tolist(), folds=folds)}
    evaluation = evaluate_tables(tables, fit_thresholds(tables), {}, ["0", "1"])
    assert _warned(evaluation) == [f"warning: {text}" for text in warn_of_folds(evaluation).values()]
    return "".join(_warned(evaluation))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_it_is_the_mean_over_folds_weighted_by_their_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, scores, folds = rng.integers(0, 2, 40), rng.integers(0, 6, 40) / 6, rng.integers(0, 4, 40)
    areas, pairs = [], []
    for own in (folds == k for k in range(4)):
        pairs.append(int((labels[own] == 1).sum() * (labels[own] == 0).sum()))
        areas.append(roc_auc_score(labels[own], scores[own]) if pairs[-1] else 0.0)
    found = within_folds_auc(labels, scores, folds.astype(str).tolist())
    assert found.value == pytest.approx(np.average(areas, weights=pairs))
    assert found.ci_low < found.value < found.ci_high or found.value in (0, 1)


def test_in_one_fold_it_is_the_auc() -> None:
    scores = np.random.default_rng(0).normal(size=120) + LABELS
    for patients in (None, np.arange(120) // 3):
        one, plain = within_folds_auc(LABELS, scores, ["0"] * 120, patients), auc_interval(LABELS, scores, patients=patients)
        assert (one.value, one.ci_low, one.ci_high) == pytest.approx((plain.value, plain.ci_low, plain.ci_high))
        assert one.ci_method == plain.ci_method


@pytest.mark.parametrize("per_patient", [1, 2])
def test_p_is_uniform_where_folds_make_no_difference(per_patient: int) -> None:
    p = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        patients = np.arange(40) // per_patient
        labels, folds = rng.integers(0, 2, 40), rng.permutation(40 // per_patient)[patients] % 4
        scores = rng.normal(size=40) + labels + rng.normal(size=40 // per_patient)[patients]
        p.append(folds_p(labels, scores, folds.astype(str).tolist(), patients, rng))
    assert np.mean(np.array(p) <= 0.05) <= 0.11
    assert np.mean(np.array(p) <= 0.5) == pytest.approx(0.5, abs=0.15)


def test_few_shuffles_of_many_agree_with_many_of_few() -> None:
    rng = np.random.default_rng(2)
    for shift, expected in ((0.0, 0.33), (0.45, 0.045)):
        scores = np.random.default_rng(2).normal(size=120) + LABELS + shift * (np.array(FOLDS) == "3")
        for many in (False, True):
            assert folds_p(LABELS, scores, FOLDS, None, rng, many=many) == pytest.approx(expected, rel=0.6)


def test_folds_that_are_calibrated_differently_are_warned_of() -> None:
    rng = np.random.default_rng(3)
    even = rng.normal(size=120) + 3 * LABELS
    shifted = even + np.array([-3, -1, 1, 3])[np.array(FOLDS, dtype=int)]
    assert warn(even, FOLDS) == ""
    within = within_folds_auc(LABELS, shifted, FOLDS).value
    assert warn(shifted, FOLDS) == (
        f"warning: US, out-of-fold: AUC {auc(LABELS, shifted):.3f} over all cases, {within:.3f} between cases of the same fold "
        "(p = 0.002): cases of a class get other probabilities in other folds, so what is decided at one threshold does not "
        "compare either."
    )


def test_a_model_that_tells_sites_instead_of_classes_is_warned_of() -> None:
    rng = np.random.default_rng(3)
    site = np.where(rng.random(120) < 0.85, LABELS, 1 - LABELS)
    text = warn(rng.normal(size=120) + 2 * site, site.astype(str).tolist())
    assert text.endswith(": part of the former comes from telling the folds apart.")
    alone = warn(rng.normal(size=120) + 2 * LABELS, LABELS.astype(str).tolist())  # each site has one class
    assert "no fold holds cases of both classes; AUC 0.9" in alone
    assert math.isnan(folds_p(LABELS, LABELS * 1.0, LABELS.astype(str).tolist(), None, rng))


def test_a_small_gap_is_not_warned_of_however_sure_it_is() -> None:
    rng = np.random.default_rng(0)
    labels, folds = np.arange(1000) % 2, np.arange(1000) // 2 % 2
    scores = rng.normal(size=1000) + labels + 0.7 * folds
    names = folds.astype(str).tolist()
    assert folds_p(labels, scores, names, None, rng) == 0.002
    assert 0 < within_folds_auc(labels, scores, names).value - auc(labels, scores) < 0.05
    assert warn(scores, names, labels) == ""
