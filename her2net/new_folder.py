"""A folder of new images: which files and which row of its table make a case, and a warning for whatever is not used.

Files are matched as those of a dataset are (`raw/layout.py`): each folder is listed once, upper and lower case of an
ending are not told apart, and names are compared in composed Unicode form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import chain
from pathlib import Path

from her2net.artefact import digest_file
from her2net.errors import MissingArtefactError, RawDataError, describe, join_problems
from her2net.input_check import Finding
from her2net.plan.schema import ModalityPlan, Plan
from her2net.plan.table_schema import CLINICAL, TablePlan
from her2net.preprocess.cache import CaseFiles
from her2net.raw.images import find_sidecar, is_3d
from her2net.raw.layout import SUFFIX, list_candidates
from her2net.raw.names import explain_bad_name, word_key
from her2net.raw.problems import enumerate_names
from her2net.raw.rows import CASES, read_covariates

MASK_ENDINGS = (".png", ".nii.gz", ".nii", ".mha", ".nrrd")
SIDECAR_ENDINGS = (".json",)
KNOWN_FOLDERS = ("images", "imagesTr", "imagesTs", "masks", "masksTr", "masksTs")
LISTED = 8  # rows without an image that are named: the table of a whole cohort may lie beside a few images


def find_cases(folder: Path, plan: Plan) -> tuple[dict[str, list[CaseFiles]], list[Finding]]:
    """List the images of every modality of the plan, with their masks.

    Returns:
        Modality -> cases, and a warning for each file that is not read.

    Raises:
        MissingArtefactError: no such folder.
        RawDataError: no image of any modality, a channel is missing or there twice, or a case has two masks; lists every
            problem.
    """
    if not folder.is_dir():
        raise MissingArtefactError(f"{folder}: no such folder of images.")
    problems: list[str] = []
    ignored: list[Finding] = []
    _look_for_other_folders(folder, plan, problems, ignored)
    found = {name: _find_modality(folder, name, section, problems, ignored) for name, section in plan.modalities.items()}
    if not any(found.values()) and not problems:
        wanted = " or ".join(f"{name}/<case>{section.file_ending}" for name, section in plan.modalities.items())
        remedy = "Put the images into a folder that is named after their modality, in the format of the training images."
        problems.append(describe("no image of any modality", where=folder, found=_name_files(folder), expected=wanted, remedy=remedy))
    if problems:
        raise RawDataError(join_problems(f"{folder}: cannot be predicted.", problems))
    return found, ignored


def _name_files(folder: Path) -> str:
    """Name the first files in a folder and in the folders in it."""
    names = sorted(path.relative_to(folder).as_posix() for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    return enumerate_names(names, limit=5) or "no file"


def _image_places(folder: Path) -> tuple[Path, ...]:
    """Return the folders that may hold those of the modalities: this one, or `images` or `imagesTs` in it."""
    return folder, folder / "images", folder / "imagesTs"


def _look_for_other_folders(folder: Path, plan: Plan, problems: list[str], ignored: list[Finding]) -> None:
    """Refuse a folder whose name is that of a modality but for upper and lower case, and warn of others with images in them."""
    spelled = {word_key(name): name for name in plan.modalities}
    endings = tuple({section.file_ending.lower() for section in plan.modalities.values()})
    masks = (folder / "masks", folder / "masksTs")
    for place in (p for p in (*_image_places(folder), *masks) if p.is_dir()):
        for found in sorted(p for p in place.iterdir() if p.is_dir() and p.name not in (*plan.modalities, *KNOWN_FOLDERS)):
            name = spelled.get(word_key(found.name))
            if name is not None and (place / name).is_dir() and found.samefile(place / name):
                continue  # a file system that does not tell upper from lower case: it is read
            if name is not None:
                problems.append(describe("the folder is spelled otherwise than the modality", where=found, expected=name,
                                         remedy="Rename it, or its images are not read."))
            elif place not in masks and any(path.name.lower().endswith(endings) for path in found.iterdir()):
                what, expected = "the folder is not read, for no modality has its name", " or ".join(plan.modalities)
                ignored.append(Finding("warning", "folder-ignored", what, "", expected, found.name, ""))


def find_covariates(
    folder: Path, table: TablePlan, used: Collection[str], cases: Mapping[str, Sequence[CaseFiles]]
) -> tuple[dict[str, dict[str, str]], list[Finding]]:
    """Read the clinical covariates of the cases from `cases.csv` in the folder, if there is one.

    Args:
        table: plan of the covariates.
        used: columns that the model reads.
        cases: modality -> cases.

    Returns:
        Case id -> column -> cell, and a warning for each image without a row, for rows without an image where there are such
        images, and for each column that is absent.

    Raises:
        RawDataError: the table cannot be read; lists every problem.
    """
    path = folder / CASES
    if not path.is_file():
        return {}, []
    rows = read_covariates(path, table.columns)
    there = {case.case_id for found in cases.values() for case in found}
    held = {column for row in rows.values() for column in row}
    absent = [name for name in table.columns if name in used and rows and name not in held]
    without_row = sorted(there - set(rows))
    without_image = [case_id for case_id in rows if case_id not in there] if without_row else []  # else it is the table of more cases
    return rows, [
        *(_unmatched("column-missing", "the table lacks a covariate that the model reads", f"a column {name!r}", CASES)
          for name in absent),
        *(_unmatched("row-missing", "the table has no row of this case, so its covariates are missing", "", case_id)
          for case_id in without_row),
        *(_unmatched("row-without-image", "the row is not used, for no image has this case_id",
                     "the name of its images without channel and ending, leading zeros included", case_id)
          for case_id in without_image[:LISTED]),
        *[_unmatched("row-without-image", f"{len(without_image) - LISTED} more rows have no image", "", CASES)
          ] * (len(without_image) > LISTED),
    ]  # fmt: skip


def _unmatched(check: str, what: str, expected: str, case_id: str) -> Finding:
    return Finding("warning", check, what, "", expected, case_id, CLINICAL)


def _find_modality(
    folder: Path, name: str, section: ModalityPlan, problems: list[str], ignored: list[Finding]
) -> list[CaseFiles]:
    places = [place / name for place in _image_places(folder) if (place / name).is_dir()]
    images = _match_images(places, name, section, problems, ignored)
    masks = _match_masks(folder, name, section, images, problems, ignored)
    cases = []
    for case_id, paths in images.items():
        mask = masks.get(case_id)
        digests = [digest_file(path) for path in (*paths, *([mask] if mask else []))]
        cases.append(CaseFiles(case_id, paths, mask, "+".join(digests)))
    return cases


def _match_images(
    places: Sequence[Path], name: str, section: ModalityPlan, problems: list[str], ignored: list[Finding]
) -> dict[str, tuple[Path, ...]]:
    """Return case id -> file of each channel, of the cases that have all of them."""
    n_channels, endings = len(section.channels), (section.file_ending.lower(),)
    sidecar_endings = () if is_3d(section.file_ending) else SIDECAR_ENDINGS
    channels: dict[str, dict[int, Path]] = {}
    sidecars: list[Path] = []
    listed = (_list_files(place, name, endings, problems, ignored, beside=sidecar_endings) for place in places)
    for stem, path in chain.from_iterable(listed):
        if path.name.lower().endswith(sidecar_endings):
            sidecars.append(path)
            continue
        if bad := explain_bad_name(stem):
            problems.append(describe(f"the name of the case {bad}", where=path, remedy="Rename the file, and its mask with it."))
            continue
        case_id, channel = _identify(stem, n_channels)
        twice = channels.setdefault(case_id, {}).get(channel)
        if twice is not None:
            problems.append(describe(f"the same channel of {case_id!r} as {twice}", where=path, remedy="Keep one."))
        channels[case_id][channel] = path
    complete = {}
    for case_id, files in sorted(channels.items()):
        if sorted(files) == list(range(n_channels)):
            complete[case_id] = tuple(files[c] for c in range(n_channels))
        else:
            where = f"{next(iter(files.values())).parent}/{case_id}"
            expected = list(range(n_channels))
            problems.append(describe("channels do not match the plan", where=where, found=sorted(files), expected=expected))
    read = {find_sidecar(paths[0]) for paths in complete.values()}
    for path in (p for p in sidecars if p not in read):
        what = "the sidecar is not read, for no complete image has its name"
        ignored.append(Finding("warning", "sidecar-without-image", what, "", "<case>.json", path.name, name))
    return complete


def _match_masks(
    folder: Path, name: str, section: ModalityPlan, images: Mapping[str, tuple[Path, ...]], problems: list[str],
    ignored: list[Finding],
) -> dict[str, Path]:  # fmt: skip
    """Return case id -> mask; two masks of one case are a problem, and a mask without an image is ignored."""
    endings = tuple(dict.fromkeys((*MASK_ENDINGS, section.file_ending.lower())))
    masks: dict[str, Path] = {}
    for place in (folder / "masks" / name, folder / "masksTs" / name):
        for case_id, path in _list_files(place, name, endings, problems, ignored):
            if case_id not in images:
                what = "the mask is not read, for no complete image has its name"
                expected = "<case> plus the ending, without a channel number"
                ignored.append(Finding("warning", "mask-without-image", what, "", expected, path.name, name))
            elif case_id in masks:
                what = f"a second mask of {case_id!r} beside {masks[case_id]}"
                problems.append(describe(what, where=path, remedy="Keep one."))
            else:
                masks[case_id] = path
    return masks


def _list_files(
    folder: Path, name: str, endings: tuple[str, ...], problems: list[str], ignored: list[Finding],
    *, beside: tuple[str, ...] = (),
) -> list[tuple[str, Path]]:  # fmt: skip
    """Return (stem, path) of the files that end in one of the endings; the others are ignored, and said to be.

    Args:
        beside: further endings, which no warning recommends.
    """
    found = []
    for stem, path, trouble in list_candidates(folder, str(folder), (*endings, *beside)):
        if path is not None:
            found.append((stem, path))
        elif trouble is not None and trouble.severity == "error":
            problems.append(str(trouble))
        elif trouble is not None:
            what, expected = "the file is not read, for its ending is another", " or ".join(endings)
            name_of = Path(trouble.where).name
            if (folder / name_of).is_dir():
                what, expected = "the folder is not read, only files beside it", f"a file that ends in {expected}"
            ignored.append(Finding("warning", "file-ignored", what, "", expected, name_of, name))
    return found


def _identify(stem: str, n_channels: int) -> tuple[str, int]:
    """Split `<case>_0001` into case and channel; of a single-channel image only `_0000` is a channel's number."""
    match = SUFFIX.match(stem)
    if match is None or (n_channels == 1 and int(match[2]) > 0):
        return stem, 0
    return match[1], int(match[2])
