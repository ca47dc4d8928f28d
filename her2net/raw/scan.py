"""Read every image and mask of a dataset once and keep what later stages need to know of them.

`verify` looks for problems in a scan, `fingerprint` draws its statistics from it; neither opens
an image again. A scan is an artefact: with the last one at hand, only files that have changed are read.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from her2net.artefact import Artefact, Strict, digest_bytes, digest_file
from her2net.memory import largest_case
from her2net.progress import choose_workers, map_in_processes
from her2net.raw.burned_in import BurnedIn
from her2net.raw.dataset import Case, RawDataset
from her2net.raw.images import find_sidecar
from her2net.raw.intensity import ChannelStatistics, Lesion
from her2net.raw.problems import Problem
from her2net.version import __version__

__all__ = ["CaseScan", "ChannelStatistics", "ImageScan", "Lesion", "Problem", "Scan", "scan_cases"]

SCAN_VERSION = 6  # raise when the same files give another scan


class ImageScan(Strict):
    """What one image (all channels) and its mask hold. An unreadable image has its problems and no shape.

    Attributes:
        files: image files in channel order, then sidecar and mask if there are any; relative to the dataset.
        shape: (H, W) or (D, H, W), without the channels.
        spacing_mm: in the same order; `None` if the files do not say.
        orientation: of a volume, where its axes x, y, z in the file run to, as SimpleITK names it: `LPS` to the left, the back
            and the head of the patient; empty for pictures.
        dtype: of the pixels.
        source_digest: of the content of all files.
        pixel_digest: of the decoded pixels and their shape, whatever the file format.
        perceptual_hash: 64 bits as hex, of the middle slice of the first channel.
        thumbnail: 16 x 16 uint8 of the same, base64.
        has_mask: whether a mask file is there.
        image: statistics per channel.
        crop: the same within the lesion box grown by half its size; empty without a lesion.
        mask: the same within the lesion; empty without a lesion.
        lesion: `None` without a readable mask that marks something.
        burned_in: calipers, text, rulers and colour, per channel; empty where nothing is looked for (volumes, 16 bits).
        problems: found in these files.
    """

    files: list[str]
    shape: list[int] = Field(default_factory=list)
    spacing_mm: list[float] | None = None
    orientation: str = ""
    dtype: str = ""
    source_digest: str = ""
    pixel_digest: str = ""
    perceptual_hash: str = ""
    thumbnail: str = ""
    has_mask: bool = False
    image: list[ChannelStatistics] = Field(default_factory=list)
    crop: list[ChannelStatistics] = Field(default_factory=list)
    mask: list[ChannelStatistics] = Field(default_factory=list)
    lesion: Lesion | None = None
    burned_in: list[BurnedIn] = Field(default_factory=list)
    problems: list[Problem] = Field(default_factory=list)

    @property
    def readable(self) -> bool:
        return bool(self.shape)


class CaseScan(Strict):
    """The images of one case: modality -> scan."""

    case_id: str
    images: dict[str, ImageScan]


class Scan(Artefact):
    """All cases of a dataset, training and test, sorted by case id.

    Attributes:
        scan_version: of what is looked for; a scan of another version is made anew.
        signatures: file (relative to the dataset) -> "size:mtime_ns" when it was read.
    """

    MADE_BY: ClassVar[str] = "her2net_plan"

    scan_version: int = 1
    signatures: dict[str, str]
    cases: list[CaseScan]

    def find(self) -> dict[str, CaseScan]:
        """Return case id -> scan."""
        return {case.case_id: case for case in self.cases}

    @property
    def problems(self) -> list[Problem]:
        """Every problem of every image, in the order of the cases."""
        return [item for case in self.cases for image in case.images.values() for item in image.problems]


@dataclass(frozen=True)
class ScanJob:
    """One image to be read in a worker process."""

    folder: Path
    case_id: str
    modality: str
    images: tuple[Path, ...]
    sidecar: Path | None
    mask: Path | None

    @property
    def files(self) -> list[str]:
        """Image files, then the sidecar, then the mask, relative to the dataset."""
        return [relative_name(path, self.folder) for path in self.paths]

    @property
    def paths(self) -> list[Path]:
        return [*self.images, *(path for path in (self.sidecar, self.mask) if path is not None)]


def relative_name(path: Path, folder: Path) -> str:
    """Return the path below the dataset's folder, with forward slashes."""
    return path.relative_to(folder).as_posix()


def scan_cases(dataset: RawDataset, *, n_workers: int | None, quiet: bool = False, known: Scan | None = None) -> Scan:
    """Read every image and mask in parallel; memory does not grow with their number or size.

    Args:
        dataset: training and test cases are scanned; labels play no part.
        n_workers: processes; `None` chooses by processors and free memory.
        quiet: no progress bar.
        known: an earlier scan; an image whose files have its size and time is taken from it unread.

    Returns:
        The scan, not written to disk.
    """
    jobs = [_make_job(dataset, case, modality) for case in dataset.cases for modality in case.images]
    signatures = {name: _sign(path) for job in jobs for name, path in zip(job.files, job.paths, strict=True)}
    results: dict[int, ImageScan] = {}
    current = known is not None and (known.her2net_version, known.scan_version) == (__version__, SCAN_VERSION)
    earlier = _index(known) if known is not None and current else {}
    for index, job in enumerate(jobs):
        image = earlier.get((job.case_id, job.modality))
        if image is not None and known is not None and _unchanged(job, image, signatures, known.signatures):
            results[index] = image
    todo = [index for index in range(len(jobs)) if index not in results]
    fresh = map_in_processes(
        scan_image,
        [jobs[index] for index in todo],
        n_workers=choose_workers(n_workers, largest_case(jobs[index].paths for index in todo)),
        description="reading images",
        quiet=quiet,
        name_of=_name_job,
    )
    for position, image in fresh:
        results[todo[position]] = image
    return Scan(scan_version=SCAN_VERSION, signatures=signatures, cases=_collect(dataset.cases, jobs, results))


def changed_files(dataset: RawDataset, scan: Scan) -> list[str]:
    """Return the files, below the dataset's folder, that came, went or changed in size or time since the scan."""
    jobs = [_make_job(dataset, case, modality) for case in dataset.cases for modality in case.images]
    now = {name: _sign(path) for job in jobs for name, path in zip(job.files, job.paths, strict=True)}
    return sorted(name for name in {*now, *scan.signatures} if now.get(name) != scan.signatures.get(name))


def rehash_changed(dataset: RawDataset, scan: Scan) -> Scan:
    """Return the scan with the content digests of new and changed files; quick, as no image is decoded.

    For looking at what a change means. What else the scan says of those files is empty.
    """
    jobs = [_make_job(dataset, case, modality) for case in dataset.cases for modality in case.images]
    signatures = {name: _sign(path) for job in jobs for name, path in zip(job.files, job.paths, strict=True)}
    known = _index(scan)
    results: dict[int, ImageScan] = {}
    for index, job in enumerate(jobs):
        image = known.get((job.case_id, job.modality))
        if image is None or not _unchanged(job, image, signatures, scan.signatures):
            image = ImageScan(files=job.files, source_digest=digest_source(job.paths), has_mask=job.mask is not None)
        results[index] = image
    return Scan(signatures=signatures, cases=_collect(dataset.cases, jobs, results))


def digest_source(paths: Sequence[Path]) -> str:
    """Digest of the content of all files of an image; empty if one cannot be read."""
    try:
        return digest_bytes("".join(digest_file(path) for path in paths).encode())
    except OSError:
        return ""


def scan_image(job: ScanJob) -> ImageScan:
    """Read one image and its mask; what is wrong with them becomes a problem of the result."""
    from her2net.raw.inspect import inspect_image  # keeps SimpleITK out of processes that only load a scan

    return inspect_image(job)


def _make_job(dataset: RawDataset, case: Case, modality: str) -> ScanJob:
    images = case.images[modality]
    return ScanJob(dataset.folder, case.case_id, modality, images, find_sidecar(images[0]), case.masks.get(modality))


def _name_job(job: ScanJob) -> str:
    return job.files[0]


def _sign(path: Path) -> str:
    try:
        status = os.stat(path)
    except OSError:
        return "unreadable"
    return f"{status.st_size}:{status.st_mtime_ns}"


def _unchanged(job: ScanJob, image: ImageScan, now: dict[str, str], then: dict[str, str]) -> bool:
    return image.files == job.files and all(now[name] == then.get(name) != "unreadable" for name in job.files)


def _index(known: Scan) -> dict[tuple[str, str], ImageScan]:
    return {(case.case_id, name): image for case in known.cases for name, image in case.images.items()}


def _collect(cases: Sequence[Case], jobs: Sequence[ScanJob], results: dict[int, ImageScan]) -> list[CaseScan]:
    images: dict[str, dict[str, ImageScan]] = {case.case_id: {} for case in cases}
    for index, job in enumerate(jobs):
        images[job.case_id][job.modality] = results[index]
    return [CaseScan(case_id=case_id, images=found) for case_id, found in images.items()]
