"""Is a new image like those that a model was trained on? Rules against the fingerprint, each a pure function.

An error says that a prediction makes no sense (another number of axes or channels, an image that shows nothing);
a warning, that the model has not learned from such images. The thresholds are the constants below: training images
themselves lie within their own range, so for a new image of the same source a warning is rare.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from her2net.fingerprint import ModalityFingerprint, Spread
from her2net.raw.headers import name_orientation
from her2net.raw.images import Volume
from her2net.raw.intensity import ChannelStatistics, measure_channel

SPACING_FACTOR = 1.25
"""Spacing may lie this factor beyond the smallest and the largest of the training images."""
SIZE_FACTOR = 1.25
"""Likewise the number of voxels per axis."""
LESION_FACTOR = 2.0
"""Likewise the share of the image that the lesion fills."""
INTENSITY_MARGIN = 0.25
"""Mean, SD and 99.5th percentile may lie outside the training range by this share of its width ..."""
INTENSITY_SLACK = 0.05
"""... or by this share of its larger end, where the training images hardly differ."""
FINDING_COLUMNS = ("case_id", "modality", "check", "what", "found", "expected")


class UnlikeTrainingWarning(UserWarning):
    """Some images are unlike those that the model was trained on; `Predictor.findings` lists them."""


@dataclass(frozen=True)
class Finding:
    """One way in which an image is unlike the training images; the fields of `warnings.csv`."""

    severity: Literal["error", "warning"]
    check: str
    what: str
    found: str = ""
    expected: str = ""
    case_id: str = ""
    modality: str = ""

    def __str__(self) -> str:
        text = f"{self.modality} {self.case_id}: {self.what}"
        text += f"; found {self.found}" if self.found else ""
        return text + (f", expected {self.expected}." if self.expected else ".")


@dataclass(frozen=True)
class MeasuredImage:
    """What the rules look at.

    Attributes:
        shape: (H, W) or (D, H, W).
        spacing_mm: in the same order; `None` where the file does not say.
        channels: statistics of the whole image per channel; `None` where a channel holds nothing finite.
        finite: whether every voxel is a number.
        lesion_share: lesion voxels / image voxels; `None` without a mask.
        orientation: where the axes of a volume run to, such as `LPS`; empty for pictures.
    """

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    channels: tuple[ChannelStatistics | None, ...]
    finite: bool
    lesion_share: float | None
    orientation: str = ""


def measure_image(image: Volume, mask: np.ndarray | None) -> MeasuredImage:
    """Measure an image (C, [D,] H, W) and its mask ([D,] H, W)."""
    return MeasuredImage(
        shape=image.array.shape[1:],
        spacing_mm=image.spacing_mm,
        channels=tuple(measure_channel(channel) for channel in image.array),
        finite=image.array.dtype.kind != "f" or bool(np.isfinite(image.array).all()),
        lesion_share=None if mask is None else float(mask.mean()),
        orientation=name_orientation(image.direction),
    )


def inspect_case(
    case_id: str, image: Volume, mask: np.ndarray | None, *, modality: str, trained: ModalityFingerprint
) -> list[Finding]:
    """Measure and check one image; at module level so that worker processes find it."""
    return check_image(measure_image(image, mask), trained, case_id=case_id, modality=modality)


def check_image(
    image: MeasuredImage, trained: ModalityFingerprint, *, case_id: str = "", modality: str = ""
) -> list[Finding]:
    """Apply every rule; of an image that makes no sense only the errors are returned."""
    found = check_dimensions(image, trained) or check_content(image)
    if not found:
        found = [
            *check_orientation(image, trained), *check_spacing(image, trained), *check_size(image, trained),
            *check_intensity(image, trained), *check_mask(image, trained),
        ]  # fmt: skip
    return [replace(finding, case_id=case_id, modality=modality) for finding in found]


def check_dimensions(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Errors: another number of axes, another number of channels."""
    found = []
    if len(image.shape) != trained.ndim:
        found.append(Finding("error", "dimensions", "another number of axes than the training images",
                             f"{len(image.shape)}D", f"{trained.ndim}D"))
    if len(image.channels) != trained.n_channels:
        found.append(Finding("error", "channels", "another number of channels than the training images",
                             str(len(image.channels)), str(trained.n_channels)))
    return found


def check_content(image: MeasuredImage) -> list[Finding]:
    """Errors: NaN or infinity, a channel of a single value."""
    if not image.finite or None in image.channels:
        return [Finding("error", "not-finite", "the image holds NaN or infinite values")]
    flat = [str(i) for i, c in enumerate(image.channels) if c is not None and c.minimum == c.maximum]
    return [Finding("error", "constant", f"every pixel of channel {', '.join(flat)} has the same value")] if flat else []


def check_orientation(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Warning: a volume whose axes run otherwise than those of every training image; it is shown as it lies in its file."""
    if not image.orientation or not trained.orientations or image.orientation in trained.orientations:
        return []
    what = "the axes run otherwise than in the training images, and volumes are not turned"
    return [Finding("warning", "orientation", what, image.orientation, " or ".join(trained.orientations))]


def check_spacing(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Warnings: spacing outside the training range, or unknown where it was always known."""
    if trained.spacing_mm is None:
        return []
    ranges = [_widen(axis, SPACING_FACTOR) for axis in trained.spacing_mm]
    if image.spacing_mm is None:
        if trained.n_spacing_unknown:
            return []
        return [Finding("warning", "spacing", "the file does not say its spacing", "", f"{_ranges(ranges)} mm")]
    return _outside("spacing", "spacing unlike the training images", image.spacing_mm, ranges, " mm")


def check_size(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Warning: size in voxels outside the training range."""
    ranges = [_widen(axis, SIZE_FACTOR) for axis in trained.size_vox]
    return _outside("size", "size unlike the training images", image.shape, ranges, "")


def check_intensity(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Warning per channel: mean, SD or 99.5th percentile of the whole image outside the training range."""
    found = []
    for index, (channel, spread) in enumerate(zip(image.channels, trained.intensity_spread, strict=False)):
        words = {"mean": "mean", "std": "SD", "p99_5": "99.5th percentile"}
        ranges = {name: _stretch(getattr(spread, name)) for name in words}
        values = {name: getattr(channel, name) for name in words}
        odd = [name for name in words if not ranges[name][0] <= values[name] <= ranges[name][1]]
        if odd:
            what = f"intensities of channel {index} unlike the training images"
            found.append(Finding("warning", "intensity", what, ", ".join(f"{words[n]} {values[n]:.4g}" for n in odd),
                                 ", ".join(f"{words[n]} {_range(*ranges[n])}" for n in odd)))
    return found


def check_mask(image: MeasuredImage, trained: ModalityFingerprint) -> list[Finding]:
    """Warnings: no mask (or an empty one) where the crop expects one, a mask where it expects none, an odd share."""
    n_with = trained.n_cases - trained.n_without_mask
    if not image.lesion_share:
        if n_with <= trained.n_cases / 2:
            return []
        what = "no lesion mask" if image.lesion_share is None else "the lesion mask marks nothing"
        return [Finding("warning", "mask-missing", f"{what}, so the whole image is shown instead of the lesion", "",
                        f"a mask, as {n_with} of {trained.n_cases} training images had")]  # fmt: skip
    if n_with == 0 or trained.lesion_fraction is None:
        return [Finding("warning", "mask-unexpected", "a lesion mask, while the training images had none")]
    ranges = [_widen(trained.lesion_fraction, LESION_FACTOR)]
    return _outside("lesion-share", "the lesion fills another share of the image than in training",
                    [image.lesion_share], ranges, "")  # fmt: skip


def _widen(spread: Spread, factor: float) -> tuple[float, float]:
    return spread.minimum / factor, spread.maximum * factor


def _stretch(spread: Spread) -> tuple[float, float]:
    larger = max(abs(spread.minimum), abs(spread.maximum))
    margin = max(INTENSITY_MARGIN * (spread.maximum - spread.minimum), INTENSITY_SLACK * larger)
    return spread.minimum - margin, spread.maximum + margin


def _outside(
    check: str, what: str, values: Sequence[float], ranges: Sequence[tuple[float, float]], unit: str
) -> list[Finding]:
    if all(low <= value <= high for value, (low, high) in zip(values, ranges, strict=True)):
        return []
    return [Finding("warning", check, what, " x ".join(f"{v:.4g}" for v in values) + unit, _ranges(ranges) + unit)]


def _ranges(ranges: Sequence[tuple[float, float]]) -> str:
    return " x ".join(f"({_range(*pair)})" if len(ranges) > 1 else _range(*pair) for pair in ranges)


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}"
