"""Match the files of a raw dataset to the rows of its table.

Each folder is listed once and no file is opened, so 100,000 cases cost one listing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from her2net.raw.images import is_3d
from her2net.raw.names import normalise
from her2net.raw.problems import Problem, enumerate_names, problem
from her2net.raw.spec import DatasetSpec, ModalitySpec

PARTS = {"train": "Tr", "test": "Ts"}
JUNK = {".ds_store", "thumbs.db", "desktop.ini", ".gitkeep", ".directory", "._.ds_store"}
MASK_ENDINGS_3D = (".nii.gz", ".nii")
MASK_ENDINGS_2D = (".png", ".nii.gz", ".nii")
SUFFIX = re.compile(r"^(.+)_(\d{4})$")


@dataclass
class Found:
    """The files of one part and modality.

    Attributes:
        images: case id -> channel -> file.
        masks: case id -> file.
    """

    images: dict[str, dict[int, Path]] = field(default_factory=dict)
    masks: dict[str, Path] = field(default_factory=dict)


def find_files(
    folder: Path, spec: DatasetSpec, case_ids: Mapping[str, str]
) -> tuple[dict[tuple[str, str], Found], list[Problem]]:
    """List images and masks of every part and modality.

    Args:
        folder: of the dataset.
        spec: its `dataset.json`.
        case_ids: normalised form -> id, of every id that a row names.

    Returns:
        (part, modality) -> files, and every problem with the layout.
    """
    found: dict[tuple[str, str], Found] = {}
    problems = _check_folders(folder)
    for part, ending in PARTS.items():
        for kind in ("images", "masks"):
            problems += _check_top(folder / f"{kind}{ending}", spec, required=kind == "images" and part == "train")
        for name, modality in spec.modalities.items():
            files, image_problems = _match_images(folder, f"images{ending}/{name}", modality, case_ids)
            masks, mask_problems = _match_masks(folder, f"masks{ending}/{name}", modality, case_ids, files)
            found[part, name] = Found(files, masks)
            problems += image_problems + mask_problems
    return found, problems


def _check_folders(folder: Path) -> list[Problem]:
    """Find folders beside imagesTr that are not read: misspelled in case, or of another name."""
    known = {f"{kind}{ending}".casefold(): f"{kind}{ending}" for ending in PARTS.values() for kind in ("images", "masks")}
    problems = []
    for name in (name for name, _ in _list(folder, folder.name)[0] if (folder / name).is_dir() and not name.startswith(".")):
        meant = known.get(name.casefold())
        if meant is not None and not os.path.lexists(folder / meant):  # else it is there, or the disk does not tell them apart
            what = f"differs from {meant!r} in upper and lower case, so it is not read"
            problems.append(problem("error", "folder-unknown", name, what, remedy="Rename the folder."))
        elif meant is None:
            remedy = f"If it holds images or masks of the study, name it one of {', '.join(known.values())}."
            problems.append(problem("note", "folder-unknown", name, "a folder that is not read", remedy=remedy))
    return problems


def _check_top(folder: Path, spec: DatasetSpec, *, required: bool) -> list[Problem]:
    if not os.path.lexists(folder):
        remedy = "Create it, with one folder per modality, and put the images of the training cases there."
        return [problem("error", "folder-missing", folder.name, "no such folder", remedy=remedy)] if required else []
    declared = {name.casefold(): name for name in spec.modalities}
    entries, problems = _list(folder, folder.name)
    for name, is_file in entries:
        if name in spec.modalities and not is_file:
            continue
        where = f"{folder.name}/{name}"
        if is_file:
            problems.append(
                problem(
                    "warning", "extra-file", where, "a file beside the modalities' folders", remedy="It is not read."
                )
            )
        elif name.casefold() in declared:
            what = f"differs from the modality {declared[name.casefold()]!r} in upper and lower case"
            problems.append(problem("error", "folder-unknown", where, what, remedy="Rename the folder."))
        else:
            remedy = f"Declare it in dataset.json (modalities) or remove it; declared: {', '.join(spec.modalities)}."
            problems.append(
                problem("warning", "folder-unknown", where, "not a modality of dataset.json; not read", remedy=remedy)
            )
    return problems


def _list(folder: Path, where: str) -> tuple[list[tuple[str, bool]], list[Problem]]:
    """Return (name, is a file) of a folder's entries, sorted, without those that systems leave behind."""
    entries = []
    try:
        with os.scandir(folder) as listing:
            for entry in listing:
                if entry.name.lower() not in JUNK and not entry.name.startswith("._"):
                    entries.append((entry.name, _is_file(entry)))
    except FileNotFoundError:
        return [], []
    except OSError as error:
        remedy = "Check that it is a folder you may read."
        return [], [problem("error", "folder-unreadable", where, f"cannot be listed ({error.strerror})", remedy=remedy)]
    return sorted(entries), []


def _is_file(entry: os.DirEntry) -> bool:
    try:
        return entry.is_file()
    except OSError:  # a loop of links
        return False


def list_candidates(
    folder: Path, where: str, endings: tuple[str, ...]
) -> Iterator[tuple[str, Path | None, Problem | None]]:
    """Yield (stem, path, problem) per entry: a path where the ending is declared, else a problem.

    The stem is in composed Unicode form, and upper and lower case of the ending are not told apart.

    Args:
        where: name of the folder in the problems.
        endings: in lower case.
    """
    entries, problems = _list(folder, where)
    for item in problems:
        yield "", None, item
    for name, is_file in entries:
        lower = name.lower()
        ending = next((e for e in endings if lower.endswith(e)), None)
        if ending is not None and is_file:
            yield normalise(name[: -len(ending)]), folder / name, None
        elif ending is not None:
            what = "has the name of an image but is not a file (a folder, or a link that leads nowhere)"
            yield "", None, problem("error", "not-a-file", f"{where}/{name}", what, remedy="Put the image there.")
        else:
            what = f"extra file: its ending is not {' or '.join(endings)}" if is_file else "extra folder"
            yield (
                "",
                None,
                problem("warning", "extra-file", f"{where}/{name}", what, remedy="It is not read; move it away."),
            )


def _match_images(
    folder: Path, where: str, modality: ModalitySpec, case_ids: Mapping[str, str]
) -> tuple[dict[str, dict[int, Path]], list[Problem]]:
    images: dict[str, dict[int, Path]] = {}
    problems: list[Problem] = []
    orphans: list[str] = []
    sidecars = () if is_3d(modality.file_ending) else (".json",)
    for stem, path, trouble in list_candidates(folder / where, where, (modality.file_ending, *sidecars)):
        if path is None:
            problems.append(trouble)  # type: ignore[arg-type]
            continue
        if sidecars and path.name.lower().endswith(sidecars):
            if stem not in case_ids:
                what = "a sidecar without a row in cases.csv"
                remedy = "It is named <case>.json, without a channel number; rename or remove it."
                problems.append(problem("warning", "sidecar-without-row", f"{where}/{path.name}", what, remedy=remedy))
            continue
        case_id, channel = _identify(stem, modality, case_ids)
        if case_id is None:
            orphans.append(path.name)
            problems.append(_orphan(stem, f"{where}/{path.name}", modality))
        elif channel is None:
            problems.append(_wrong_channel(f"{where}/{path.name}", modality))
        elif channel in images.setdefault(case_id, {}):
            what = f"the same channel of {case_id!r} as {images[case_id][channel].name}"
            problems.append(problem("error", "channel-twice", f"{where}/{path.name}", what, remedy="Keep one of them."))
        else:
            images[case_id][channel] = path
    return images, problems + _check_channels(images, where, modality)


def _identify(stem: str, modality: ModalitySpec, case_ids: Mapping[str, str]) -> tuple[str | None, int | None]:
    """Return (case, channel): (None, None) for an unknown case, (case, None) for an undeclared channel."""
    if modality.n_channels == 1 and stem in case_ids:
        return case_ids[stem], 0
    split = SUFFIX.match(stem)
    if split and split.group(1) in case_ids:
        channel = int(split.group(2))
        return case_ids[split.group(1)], channel if channel < modality.n_channels else None
    return (case_ids[stem], None) if stem in case_ids else (None, None)


def _orphan(stem: str, where: str, modality: ModalitySpec) -> Problem:
    split = SUFFIX.match(stem)
    case_id = split.group(1) if split else stem
    what = "an image without a row in cases.csv"
    remedy = f"Add a row with the case_id {case_id!r}, or remove the file."
    if not split and modality.n_channels > 1:
        remedy += f" Files of this modality are named <case>_0000 to <case>_{modality.n_channels - 1:04d}."
    return problem("error", "image-without-row", where, what, remedy=remedy)


def _wrong_channel(where: str, modality: ModalitySpec) -> Problem:
    last = modality.n_channels - 1
    expected = "_0000" + (f" to _{last:04d}" if last else ", or no suffix,") + " before the ending"
    what = "the file name does not end in a channel that dataset.json declares"
    return problem(
        "error", "channel-unknown", where, what, expected=expected, remedy="Rename it, or declare the channel."
    )


def _check_channels(images: dict[str, dict[int, Path]], where: str, modality: ModalitySpec) -> list[Problem]:
    problems = []
    for case_id, channels in images.items():
        missing = [i for i in range(modality.n_channels) if i not in channels]
        if missing:
            names = enumerate_names(f"{case_id}_{i:04d}{modality.file_ending}" for i in missing)
            what = f"of {modality.n_channels} channels, {len(missing)} missing: {names}"
            remedy = "Add the file, or remove the case's other channels."
            problems.append(problem("error", "channel-missing", f"{where}/{case_id}", what, remedy=remedy))
    for case_id in [c for c, channels in images.items() if len(channels) < modality.n_channels]:
        del images[case_id]
    return problems


def mask_endings(modality: ModalitySpec) -> tuple[str, ...]:
    """Return the endings that a mask of this modality may have."""
    standard = MASK_ENDINGS_3D if is_3d(modality.file_ending) else MASK_ENDINGS_2D
    return tuple(dict.fromkeys((*standard, modality.file_ending)))


def _match_masks(
    folder: Path,
    where: str,
    modality: ModalitySpec,
    case_ids: Mapping[str, str],
    images: Mapping[str, dict[int, Path]],
) -> tuple[dict[str, Path], list[Problem]]:
    masks: dict[str, Path] = {}
    problems: list[Problem] = []
    for stem, path, trouble in list_candidates(folder / where, where, mask_endings(modality)):
        if path is None:
            problems.append(trouble)  # type: ignore[arg-type]
            continue
        case_id = case_ids.get(stem)
        if case_id is None or case_id not in images:
            what = "a mask without a complete image" if case_id else "a mask without a row in cases.csv"
            remedy = "Masks are named <case> plus the ending, without a channel number; rename or remove it."
            problems.append(problem("warning", "mask-without-image", f"{where}/{path.name}", what, remedy=remedy))
        elif case_id in masks:
            what = f"a second mask of {case_id!r} beside {masks[case_id].name}"
            problems.append(problem("error", "mask-twice", f"{where}/{path.name}", what, remedy="Keep one of them."))
        else:
            masks[case_id] = path
    return masks, problems
