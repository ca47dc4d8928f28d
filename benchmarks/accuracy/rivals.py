"""What a careful person would write in an afternoon: texture features with scikit-learn, and a plain network script.

Neither looks at the outline's shape: the mask says where to measure, as it says to her2net where to crop.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from her2net.artefact import digest_file, digest_json
from her2net.paths import DatasetPaths
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.prepare import prepare_arrays, read_case
from her2net.raw.dataset import Case, read_dataset

if TYPE_CHECKING:
    import torch

LEVELS = 16
FIRST_ORDER = (5, 25, 50, 75, 95)
ANGLES = (0.0, math.pi / 4, math.pi / 2, 3 * math.pi / 4)
TEXTURE = ("contrast", "dissimilarity", "homogeneity", "energy", "correlation")
CROP = {2: (128, 128), 3: (16, 48, 48)}
BATCH, LEARNING_RATE, WEIGHT_DECAY = 16, 1e-3, 1e-2
CONTRASTED, TEMPERATURE = 32, 0.2


_described: dict[str, list[float]] = {}


@dataclass(frozen=True)
class Fold:
    """A fold in memory; held-out cases come without labels, and there is no place for any."""

    training: tuple[Case, ...]
    labels: np.ndarray
    held_out: tuple[Case, ...]
    modality: str
    joint: bool


def read_fold(paths: DatasetPaths) -> Fold:
    """Read what `folds.lay_out` wrote."""
    dataset = read_dataset(paths.raw)
    (modality,) = dataset.spec.modalities
    names = dataset.spec.modalities[modality].channels.values()
    labels = np.array([case.label for case in dataset.train])
    return Fold(dataset.train, labels, dataset.test, modality, all(name.startswith("DCE") for name in names))


def forest(paths: DatasetPaths, seconds: float, seed: int) -> dict[str, float]:
    """First-order and texture features inside the mask, random forest."""
    from sklearn.ensemble import RandomForestClassifier

    return _fit_table(paths, RandomForestClassifier(500, min_samples_leaf=2, class_weight="balanced", random_state=seed))


def elastic_net(paths: DatasetPaths, seconds: float, seed: int) -> dict[str, float]:
    """The same features, elastic net with its penalty from an inner loop."""
    from sklearn.linear_model import LogisticRegressionCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    net = LogisticRegressionCV(Cs=8, cv=5, l1_ratios=(0.5,), solver="saga", scoring="neg_log_loss", max_iter=300, tol=1e-3,
                               class_weight="balanced", random_state=seed)  # fmt: skip
    return _fit_table(paths, make_pipeline(StandardScaler(), net))


def _fit_table(paths: DatasetPaths, model: object) -> dict[str, float]:
    fold = read_fold(paths)
    x, held = (np.array([describe(case, fold.modality) for case in cases]) for cases in (fold.training, fold.held_out))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        probs = model.fit(x, fold.labels).predict_proba(held)[:, 1]  # type: ignore[attr-defined]
    return dict(zip((case.case_id for case in fold.held_out), probs.tolist(), strict=True))


def describe(case: Case, modality: str) -> list[float]:
    """Return 41 features of each channel inside the mask; of volumes, texture in the slice with most lesion.

    What an image was described by is kept, for other folds and the other learner.
    """
    key = digest_json([digest_file(path) for path in (*case.images[modality], *filter(None, [case.masks.get(modality)]))])
    if key not in _described:
        _described[key] = _describe(case, modality)
    return _described[key]


def _describe(case: Case, modality: str) -> list[float]:
    image, mask = read_case(case.images[modality], case.masks.get(modality))
    found: list[float] = []
    for channel in image.array.astype(np.float64):
        inside = np.ones(channel.shape, bool) if mask is None or not mask.any() else mask
        grey = channel if image.array.dtype == np.uint8 else _to_grey(channel)
        found += _first_order(channel[inside]) + _texture(*_largest_slice(grey, inside))
    return found


def _to_grey(channel: np.ndarray) -> np.ndarray:
    """Bring intensities without a unit to 0 to 255, by the image's own percentiles."""
    low, high = np.percentile(channel, (0.5, 99.5))
    return np.clip((channel - low) / max(high - low, 1e-6) * 255, 0, 255)


def _first_order(values: np.ndarray) -> list[float]:
    z = (values - values.mean()) / max(values.std(), 1e-6)
    counts = np.histogram(values, 2 * LEVELS)[0]
    shares = counts[counts > 0] / len(values)
    return [values.mean(), values.std(), *np.percentile(values, FIRST_ORDER), (z**3).mean(), (z**4).mean(),
            -(shares * np.log2(shares)).sum()]  # fmt: skip


def _largest_slice(channel: np.ndarray, inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if channel.ndim == 2:
        return channel, inside
    k = int(inside.sum(axis=(1, 2)).argmax())
    return channel[k], inside[k]


def _texture(plane: np.ndarray, inside: np.ndarray) -> list[float]:
    """GLCM of neighbours that both lie inside, at two distances, local binary patterns of two radii, and mean slope."""
    from scipy.ndimage import gaussian_gradient_magnitude
    from skimage.feature import graycomatrix, graycoprops, local_binary_pattern

    levels = np.where(inside, plane // (256 // LEVELS) + 1, 0).astype(np.uint8)
    found = [float(gaussian_gradient_magnitude(plane, 1.0)[inside].mean())]
    for distance in (1, 3):
        matrix = graycomatrix(levels, [distance], ANGLES, LEVELS + 1, symmetric=True)[1:, 1:]
        matrix = matrix / np.maximum(matrix.sum(axis=(0, 1), keepdims=True), 1)
        found += [float(graycoprops(matrix, name).mean()) for name in TEXTURE]
    for radius in (1, 2):
        patterns = local_binary_pattern(plane.astype(np.uint8), 8, radius, "uniform")[inside].astype(int)
        found += (np.bincount(patterns, minlength=10) / len(patterns)).tolist()
    return found


def plain(paths: DatasetPaths, seconds: float, seed: int) -> dict[str, float]:
    """timm's ResNet-18 (2D) or MONAI's (3D), library defaults, AdamW, flips, cosine over the time given."""
    return _fit_network(paths, seconds, seed, contrastive_share=0.0)


def contrastive(paths: DatasetPaths, seconds: float, seed: int) -> dict[str, float]:
    """The same, but half of the time goes into learning from the fold's training images without their labels.

    Source:
        Chen et al. 2020, arXiv:2002.05709 (SimCLR).
    """
    return _fit_network(paths, seconds, seed, contrastive_share=0.5)


def _fit_network(paths: DatasetPaths, seconds: float, seed: int, *, contrastive_share: float) -> dict[str, float]:
    import torch

    fold = read_fold(paths)
    ndim = len(read_case(fold.training[0].images[fold.modality], None)[0].array.shape) - 1
    x, held = (torch.from_numpy(_crops(cases, fold, ndim)) for cases in (fold.training, fold.held_out))
    torch.manual_seed(seed)
    model = _network(ndim, x.shape[1])
    if contrastive_share > 0:
        classifier = model.fc
        model.fc = torch.nn.Sequential(torch.nn.Linear(classifier.in_features, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
        _step_for(seconds * contrastive_share, model, lambda: _contrast(model, x))
        model.fc = classifier
    _step_for(seconds * (1 - contrastive_share), model, lambda: _classify(model, x, torch.from_numpy(fold.labels)))
    model.eval()
    with torch.inference_mode():
        probs = torch.cat([model(part).softmax(1)[:, 1] for part in held.split(BATCH)])
    return dict(zip((case.case_id for case in fold.held_out), probs.tolist(), strict=True))


def _step_for(seconds: float, model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> None:
    """Take steps of AdamW for so long, with a learning rate that falls along a cosine of the time."""
    import torch

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    start = time.monotonic()
    while (spent := (time.monotonic() - start) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = LEARNING_RATE * 0.5 * (1 + math.cos(math.pi * spent))
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()


def _classify(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    import torch
    from torch.nn import functional as F

    rows = torch.randint(len(x), (min(BATCH, len(x)),))
    batch = torch.stack([x[i].flip(-1) if torch.rand(()) < 0.5 else x[i] for i in rows])
    return F.cross_entropy(model(batch), y[rows])


def _contrast(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Loss of telling which two of the crops come from one image: normalised cross-entropy of cosines."""
    import torch
    from torch.nn import functional as F

    rows = torch.randperm(len(x))[:CONTRASTED]
    z = F.normalize(model(torch.cat([_view(x[rows]), _view(x[rows])])), dim=1)
    likeness = (z @ z.T / TEMPERATURE).masked_fill(torch.eye(len(z), dtype=torch.bool), -math.inf)
    return F.cross_entropy(likeness, torch.arange(len(z)).roll(len(rows)))


def _view(images: torch.Tensor) -> torch.Tensor:
    """Cut a random part out of each image, at its full size, perhaps mirrored, in another brightness and contrast, with noise."""
    import torch
    from torch.nn import functional as F

    n, ndim = len(images), images.ndim - 2
    edge = 0.5 + 0.5 * torch.rand(n)
    place = torch.diag_embed(torch.stack([edge * (1 - 2 * (torch.rand(n) < 0.5).float()), *[edge] * (ndim - 1)], dim=1))
    shift = (1 - edge)[:, None] * (2 * torch.rand(n, ndim) - 1)
    grid = F.affine_grid(torch.cat([place, shift[:, :, None]], dim=2), list(images.shape), align_corners=False)
    whole = (n, *[1] * (ndim + 1))
    cut = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return cut * (0.7 + 0.6 * torch.rand(whole)) + 0.5 * torch.randn(whole) + 0.1 * torch.randn_like(cut)


def _network(ndim: int, n_channels: int):  # type: ignore[no-untyped-def]
    if ndim == 2:
        import timm

        return timm.create_model("resnet18", in_chans=n_channels, num_classes=2)
    from monai.networks.nets import resnet18

    return resnet18(spatial_dims=3, n_input_channels=n_channels, num_classes=2)


def _crops(cases: Sequence[Case], fold: Fold, ndim: int) -> np.ndarray:
    plan = PreprocessingPlan(margin=0.3, margin_unit="lesion", aspect="keep" if ndim == 2 else "keep_in_plane", statistics="crop",
                             joint_channels=fold.joint, input_vox=list(CROP[ndim]), stored_vox=list(CROP[ndim]))  # fmt: skip
    read = (read_case(case.images[fold.modality], case.masks.get(fold.modality)) for case in cases)
    return np.stack([prepare_arrays(image, mask, plan).image.astype(np.float32) for image, mask in read])
