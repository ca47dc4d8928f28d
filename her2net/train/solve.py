"""Solving the classifier of a network whose other layers are fixed: a support-vector machine for each kernel, calibrated.

Training cases are shown as they are and mirrored along each axis that the plan flips. Everything is fitted on the
fold's training cases alone: the mean and SD of what each kernel reads, the width of each kernel and the cost of errors
(chosen by log loss in an inner loop over patients), the machines, and the slopes and intercepts that turn their margins,
and the mean of these, into probabilities (fitted on the margins of that inner loop).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from her2net.networks.scattering import GaussianFeatures, ScatteringNetwork
from her2net.plan.schema import TrainingPlan
from her2net.train.augment import center_crop

COSTS = (0.1, 0.3, 1.0, 3.0, 10.0)
INNER_FOLDS = 5
SLOPES = (0.2, 20.0)
"""Range of the calibration's slope; a negative one would turn a model that learned nothing into its opposite."""
LEAST_GAIN = 0.002  # of the log loss, below which the simpler of two settings, tried first, is kept
LEAST_SD = 0.01
BATCH_SIZE = 16


@dataclass(frozen=True)
class Setting:
    """Kernel width and cost of errors, with what the inner loop gave them.

    Attributes:
        slope, intercepts: of the calibration.
        log_loss: of the held-out cases.
        logits: (n, n_classes) of the held-out cases, in the order of the inner loop; empty without one.
    """

    width: float
    cost: float
    slope: float
    intercepts: np.ndarray
    log_loss: float
    logits: np.ndarray


@torch.inference_mode()
def describe_views(model: ScatteringNetwork, images: Tensor, plan: TrainingPlan, input_vox: Sequence[int]) -> Tensor:
    """Return the coefficients (N, n_views, n_windows * C, n_maps, *grid) of each case as it is and mirrored.

    Args:
        images: (N, C, *stored_vox).
    """
    ndim, device = images.ndim - 2, model.classifier.weight.device
    mirrored = [(), *((axis - ndim,) for axis in plan.augmentation.mirrored_axes)]

    def describe(batch: Tensor) -> Tensor:
        x = center_crop(batch, input_vox).to(device).float()
        return torch.stack([model.coefficients(x.flip(axes)) for axes in mirrored], dim=1)

    return torch.cat([describe(batch) for batch in images.split(BATCH_SIZE)])


def solve_classifier(
    model: ScatteringNetwork, views: Tensor, labels: np.ndarray, patients: Sequence[str], plan: TrainingPlan
) -> float:
    """Solve the classifier on all views of the training cases, in place.

    Args:
        views: see `describe_views`.
        labels: (N,) int64.
        patients: (N,) who must not stand on both sides of the inner loop.

    Returns:
        The log loss of the inner loop, an honest one: no case is predicted by a machine that saw its patient.

    Source:
        Platt 1999 (probabilities from margins; here one slope for all classes, kept positive); Bruna & Mallat 2013.
    """
    n_views, inputs = views.shape[1], model.inputs(views.flatten(0, 1))  # the views of a case stand side by side
    for kernel, numbers in zip(model.kernels, inputs, strict=True):
        kernel.mean.copy_(numbers.mean(0))
        kernel.sd.copy_(numbers.std(0).clamp_min(LEAST_SD))
    weights = dict(enumerate(plan.loss_weights))
    inner = _inner_folds(labels, patients)
    machines = [_solve_kernel(kernel, numbers, labels, n_views, inner, weights)
                for kernel, numbers in zip(model.kernels, inputs, strict=True)]  # fmt: skip
    logits = np.mean([setting.logits for setting, _, _ in machines], axis=0)
    slope, intercepts, loss = _calibrate(logits, np.concatenate([labels[held] for _, held in inner])) if inner else (
        1.0, np.zeros(len(weights)), float("inf"))  # fmt: skip
    with torch.no_grad():
        model.classifier.weight.copy_(torch.cat([weight for _, weight, _ in machines], dim=1) * (slope / len(machines)))
        model.classifier.bias.copy_(torch.from_numpy(slope * np.mean([bias for _, _, bias in machines], axis=0) + intercepts))
    return loss


def _solve_kernel(
    kernel: GaussianFeatures, inputs: Tensor, labels: np.ndarray, n_views: int, inner: list[tuple[np.ndarray, np.ndarray]],
    weights: dict[int, float],
) -> tuple[Setting, Tensor, np.ndarray]:  # fmt: skip
    """Choose the width of one kernel, in place, and fit its machine. The features of one width at a time are in memory.

    Args:
        inputs: (n_views * N, n_inputs) what the kernel reads.

    Returns:
        What was chosen, and the calibrated machine as a linear layer on the features: weights (n_classes, n_features) and biases.
    """
    best: Setting | None = None
    for width in kernel.widths:
        products = _products(_features(kernel, inputs, width))
        for cost in COSTS:
            setting = _try(products, labels, n_views, inner, width, cost, weights)
            if best is None or setting.log_loss < best.log_loss - LEAST_GAIN:
                best, of_best = setting, products
    assert best is not None
    duals, offsets = _machine(of_best, np.repeat(labels, n_views), best.cost, weights)
    chosen = _features(kernel, inputs, best.width)
    return best, torch.from_numpy(best.slope * duals).T.float().to(chosen.device) @ chosen, best.slope * offsets + best.intercepts


@torch.inference_mode()
def _features(kernel: GaussianFeatures, inputs: Tensor, width: float) -> Tensor:
    """Set the width, and return the features (n_views * N, n_features)."""
    kernel.width.fill_(width)
    features = inputs.new_empty((len(inputs), kernel.n_features))
    for part, batch in zip(features.split(BATCH_SIZE), inputs.split(BATCH_SIZE), strict=True):
        part.copy_(kernel(kernel.standardise(batch)))
    return features


def _products(features: Tensor) -> np.ndarray:
    return (features @ features.T).double().cpu().numpy()


def _inner_folds(labels: np.ndarray, patients: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Part the cases by patient, stratified by class.

    A class of a single patient is never held out, for nothing could be learned of it from the others; empty where fewer than
    two classes can be.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    n_patients = [len({p for p, y in zip(patients, labels, strict=True) if y == c}) for c in np.unique(labels)]
    several = [n for n in n_patients if n > 1]
    if len(several) < 2:
        return []
    splitter = StratifiedGroupKFold(min(INNER_FOLDS, *several), shuffle=True, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer members than there are folds
        folds = list(splitter.split(labels, labels, np.asarray(patients)))
    return [(rest, held) for rest, held in folds if len(held) and set(labels[rest]) == set(labels)]


def _try(
    kernel: np.ndarray, labels: np.ndarray, n_views: int, inner: list[tuple[np.ndarray, np.ndarray]], width: float,
    cost: float, weights: dict[int, float],
) -> Setting:  # fmt: skip
    """Estimate one setting in the inner loop; a held-out case is judged by its first view, as it is."""
    margins, truth = [], []
    for rest, held in inner:
        rows, columns = held * n_views, (rest[:, None] * n_views + np.arange(n_views)).ravel()
        duals, offsets = _machine(kernel[np.ix_(columns, columns)], np.repeat(labels[rest], n_views), cost, weights)
        margins.append(kernel[np.ix_(rows, columns)] @ duals + offsets)
        truth.append(labels[held])
    if not inner:
        return Setting(width, cost, 1.0, np.zeros(len(weights)), float("inf"), np.zeros((0, len(weights))))
    judged = np.concatenate(margins)
    slope, intercepts, loss = _calibrate(judged, np.concatenate(truth))
    return Setting(width, cost, slope, intercepts, loss, slope * judged + intercepts)


def _machine(kernel: np.ndarray, labels: np.ndarray, cost: float, weights: dict[int, float]) -> tuple[np.ndarray, np.ndarray]:
    """Fit one machine per class against the rest; of two classes, one machine and zeros for class 0.

    Returns:
        Dual coefficients (n, n_classes) and offsets (n_classes,): margins are `kernel @ duals + offsets`.
    """
    from sklearn.svm import SVC

    n_classes = len(weights)
    duals, offsets = np.zeros((len(labels), n_classes)), np.zeros(n_classes)
    for c in range(1 if n_classes == 2 else 0, n_classes):
        target = (labels == c).astype(int)
        of_case = np.array([weights[int(y)] for y in labels])
        fit = SVC(C=cost, kernel="precomputed").fit(kernel, target, sample_weight=of_case)
        duals[fit.support_, c], offsets[c] = fit.dual_coef_[0], fit.intercept_[0]
    return duals, offsets


def _calibrate(margins: np.ndarray, labels: np.ndarray) -> tuple[float, np.ndarray, float]:
    """Fit one slope and an intercept per class by log loss; return them and the loss.

    Targets are drawn in from 0 and 1 by one imagined case, so that classes that happen to separate do not make certain.

    Source:
        Platt 1999, section 2.2, for more than two classes.
    """
    from scipy.optimize import minimize
    from scipy.special import log_softmax

    n_classes = margins.shape[1]
    counts = np.bincount(labels, minlength=n_classes)
    missed = 1 / (counts + 2)
    targets = np.repeat((missed / (n_classes - 1))[labels][:, None], n_classes, axis=1)
    targets[np.arange(len(labels)), labels] = 1 - missed[labels]

    def loss(parameters: np.ndarray) -> float:
        scores = parameters[0] * margins + np.concatenate([[0.0], parameters[1:]])
        return float(-(targets * log_softmax(scores, axis=1)).sum(axis=1).mean())

    start = np.concatenate([[1.0], np.zeros(n_classes - 1)])
    found = minimize(loss, start, method="L-BFGS-B", bounds=[SLOPES, *[(-20.0, 20.0)] * (n_classes - 1)])
    return float(found.x[0]), np.concatenate([[0.0], found.x[1:]]), float(found.fun)
