"""Look at one image and its mask: statistics, digests, and everything that is wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from her2net.errors import RawDataError
from her2net.raw.burned_in import find_burned_in
from her2net.raw.headers import name_orientation, refuse
from her2net.raw.images import LOSSY_ENDINGS, Volume, compare_grids, mask_remedy, read_image, read_mask_values
from her2net.raw.intensity import ChannelStatistics, find_lesion, grow_box, measure_channel
from her2net.raw.lookalike import hash_plane
from her2net.raw.pictures import read_colours
from her2net.raw.problems import Problem, Severity, printable, problem
from her2net.raw.scan import ImageScan, ScanJob, digest_source

TINY_LESION_VOX = 8
LARGE_LESION_SHARE = 0.9
TINY_IMAGE_VOX = 16


def inspect_image(job: ScanJob) -> ImageScan:
    """Read an image and its mask once and describe them; never raises for what is wrong with the files."""
    inspection = _Inspection(job)
    try:
        inspection.run()
    except RawDataError as error:
        inspection.refuse(error, "image-unreadable")
    except OSError as error:  # while the file is read once more for its digest
        path = Path(error.filename or job.paths[0])
        inspection.refuse(refuse(path, "cannot be read", found=error.strerror or str(error)), "image-unreadable")
    except MemoryError:
        inspection.add("error", "image-unreadable", 0, "does not fit into memory", remedy="Use fewer workers.")
    except Exception as error:  # a reader may fail in any way on a damaged file, and one file must not end the scan
        what = f"cannot be read ({type(error).__name__}: {str(error)[:120]})"
        inspection.add("error", "image-unreadable", 0, what, remedy="Export the file again from its source.")
    return ImageScan(files=job.files, has_mask=job.mask is not None, problems=inspection.problems, **inspection.fields)


class _Inspection:
    """Collects the fields of one `ImageScan` and its problems."""

    def __init__(self, job: ScanJob) -> None:
        self.job = job
        self.fields: dict[str, Any] = {}
        self.problems: list[Problem] = []

    def add(self, severity: Severity, check: str, file: int, what: str, **wording: Any) -> None:
        """Add a problem with the file of this index in `job.files`."""
        self.problems.append(problem(severity, check, self.job.files[file], what, **wording))

    def refuse(self, error: RawDataError, check: str) -> None:
        """Turn a reader's error into a problem, under the file it names."""
        text = str(error)
        for path, name in zip(self.job.paths, self.job.files, strict=True):
            if text.startswith(f"{path}: "):
                message = printable(text.removeprefix(f"{path}: "))
                self.problems.append(Problem(severity="error", check=check, where=printable(name), message=message))
                return
        message = printable(text)
        self.problems.append(Problem(severity="error", check=check, where=printable(self.job.files[0]), message=message))

    def run(self) -> None:
        image = read_image(self.job.images)
        self._describe(image)
        self._check_values(image)
        self.fields["image"] = _measure(image.array)
        if self.job.mask is not None:
            self._inspect_mask(self.job.mask, image)
        if image.array.ndim == 3 and image.array.dtype == np.uint8:
            self._look_for_marks(image)

    def _describe(self, image: Volume) -> None:
        plane = image.array[0] if image.array.ndim == 3 else image.array[0, image.array.shape[1] // 2]
        code, thumbnail = hash_plane(plane)
        self.fields.update(
            source_digest=digest_source(self.job.paths),
            pixel_digest=digest_pixels(image.array),
            perceptual_hash=code,
            thumbnail=thumbnail,
            dtype=str(image.array.dtype),
            spacing_mm=None if image.spacing_mm is None else list(image.spacing_mm),
            orientation=name_orientation(image.direction),
            shape=list(image.array.shape[1:]),
        )

    def _look_for_marks(self, image: Volume) -> None:
        """Note what a scanner or a reader drew into a picture; the picture is left as it is."""
        self.fields["burned_in"] = [
            find_burned_in(grey, read_colours(path) if image.origin is None else None)  # a volume file has no colours
            for path, grey in zip(self.job.images, image.array, strict=True)
        ]

    def _check_values(self, image: Volume) -> None:
        if min(image.array.shape[-2:]) < TINY_IMAGE_VOX:
            size = " x ".join(map(str, image.array.shape[1:]))
            self.add("warning", "image-tiny", 0, "the image is tiny", found=size, remedy="Check the export.")
        for index, channel in enumerate(image.array):
            if channel.dtype.kind == "f" and not np.isfinite(channel).all():
                n_bad = int(channel.size - np.count_nonzero(np.isfinite(channel)))
                remedy = "Replace these values in the source and export again."
                what = "the image holds NaN or infinite values"
                self.add("error", "image-not-finite", index, what, found=f"{n_bad} of {channel.size}", remedy=remedy)
            elif channel.min() == channel.max():
                remedy = "It shows nothing: export it again, or remove the case's modality."
                what = "every pixel has the same value"
                self.add("error", "image-constant", index, what, found=f"{channel.flat[0]:g}", remedy=remedy)

    def _inspect_mask(self, path: Path, image: Volume) -> None:
        try:
            raw = read_mask_values(path, image)
        except RawDataError as error:
            self.refuse(error, "mask-unreadable")
            return
        differences = compare_grids(raw, image)
        for item in differences:
            what = f"the mask has another {item.quantity} than its image"
            remedy = mask_remedy(raw, image)
            self.add(
                "error", f"mask-{item.quantity}", -1, what, found=item.found, expected=item.expected, remedy=remedy
            )
        if raw.array.dtype.kind == "f" and not np.isfinite(raw.array).all():
            self.add("error", "mask-not-finite", -1, "the mask holds NaN or infinite values", remedy="Save it anew.")
        elif not differences or raw.array.shape == image.array.shape[1:]:
            self._measure_lesion(path, raw.array, image)

    def _measure_lesion(self, path: Path, values: np.ndarray, image: Volume) -> None:
        mask = values > 0
        lesion = find_lesion(mask)
        if lesion is None:
            remedy = "Draw the lesion, or remove the file if there is no mask."
            self.add("error", "mask-empty", -1, "the mask marks nothing", expected="values above 0", remedy=remedy)
            return
        self.fields["lesion"] = lesion
        self._check_mask_values(path, values, mask)
        share = lesion.volume_vox / mask.size
        corners = mask[np.ix_(*[(0, -1)] * mask.ndim)]
        if share > LARGE_LESION_SHARE or corners.all():
            remedy = "Is it inverted? Lesion is above 0, everything else 0."
            what = f"the mask covers {share:.0%} of the image" + (", every corner included" if corners.all() else "")
            self.add("warning", "mask-covers-image", -1, what, remedy=remedy)
        if lesion.volume_vox < TINY_LESION_VOX:
            what = f"the mask marks only {lesion.volume_vox} voxel(s)"
            self.add("warning", "mask-tiny", -1, what, remedy="Check that the lesion is drawn.")
        crop = grow_box(lesion, mask.shape)
        inside = tuple(slice(a, b) for a, b in zip(lesion.start, lesion.stop, strict=True))
        self.fields["crop"] = _measure(image.array[(slice(None), *crop)])
        for index, channel in enumerate(image.array):
            if (part := channel[crop]).min() == part.max() and channel.min() < channel.max():
                remedy = "It shows nothing there: look at the image, and export it again or remove the case's modality."
                what = "the lesion and what surrounds it have one value"
                self.add("warning", "crop-constant", index, what, found=f"{part.flat[0]:g}", remedy=remedy)
        self.fields["mask"] = _measure([channel[inside][mask[inside]] for channel in image.array])

    def _check_mask_values(self, path: Path, values: np.ndarray, mask: np.ndarray) -> None:
        low, high = float(values[mask].min()), float(values.max())
        if low == high and float(values.min()) >= 0:
            return
        if path.name.lower().endswith(LOSSY_ENDINGS):
            remedy = "JPEG changes values near edges, so background would count as lesion: save the mask as PNG."
            self.add("error", "mask-lossy", -1, "the mask is a JPEG and not binary", remedy=remedy)
            return
        found = f"values from {float(values.min()):g} to {high:g}"
        remedy = "Every value above 0 counts as lesion; if that is not meant, save 0 and 1 only."
        self.add("note", "mask-not-binary", -1, "the mask is not binary", found=found, remedy=remedy)


def _measure(channels: np.ndarray | Sequence[np.ndarray]) -> list[ChannelStatistics]:
    """Describe each channel; empty if one of them holds nothing finite."""
    found = [measure_channel(channel) for channel in channels]
    return [item for item in found if item is not None] if None not in found else []


def digest_pixels(array: np.ndarray) -> str:
    """Return the digest of pixel values and shape, the same for 8-bit, 16-bit and float files of equal values."""
    hasher = hashlib.blake2b(str(array.shape).encode(), digest_size=8)
    for plane in array.reshape(-1, *array.shape[-2:]):
        hasher.update(np.ascontiguousarray(plane, dtype="<f4").tobytes())
    return hasher.hexdigest()
