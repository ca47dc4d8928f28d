"""Does the answer depend on who drew the outline? Each case predicted again with its mask eroded, dilated and shifted.

A network sees the mask only through the crop, so what is tested is how much a prediction moves when the crop does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import nn

from her2net.artefact import write_csv
from her2net.errors import RawDataError
from her2net.evaluate.discrimination import auc_interval
from her2net.evaluate.estimate import Estimate, undefined
from her2net.evaluate.multiclass import macro_auc
from her2net.explain.contour_record import Change, ContourRecord, Mean
from her2net.explain.measure import mean_over_cases
from her2net.explain.record import Cohort
from her2net.explain.subjects import ExplainOptions, Subject
from her2net.inference import load_network
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan, PreprocessingPlan
from her2net.preprocess.crop import lesion_box
from her2net.preprocess.prepare import prepare_arrays
from her2net.progress import progress
from her2net.raw.images import Volume, read_image, read_mask
from her2net.train.augment import center_crop
from her2net.train.loop import predict_probs

SHARE = 0.1
"""By how much an outline moves, in in-plane edges of the lesion; about what separates two readers (Dice near 0.8 to 0.9)."""

COLUMNS = ("case_id", "patient_id", "fold", "label", "change", "dice", "probability", "decision", "flipped")
UNCHANGED = "unchanged"


def change_mask(mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the mask eroded, dilated and shifted by a tenth of its in-plane size, at least a voxel.

    Args:
        mask: ([D,] H, W) bool, not empty. Of a volume each slice is eroded and dilated by itself, as outlines are drawn.

    Yields:
        Name and mask; a change that would leave nothing is left out.
    """
    start, stop = lesion_box(mask)  # type: ignore[misc]
    radius = max(1.0, SHARE * float(np.sqrt(np.prod((stop - start)[-2:]))))
    slices = mask if mask.ndim == 3 else mask[None]
    eroded = np.stack([ndimage.distance_transform_edt(np.pad(s, 1))[1:-1, 1:-1] > radius for s in slices])
    dilated = np.stack([ndimage.distance_transform_edt(~s) <= radius if s.any() else s for s in slices])
    step = round(radius)
    found = {"eroded": eroded.reshape(mask.shape), "dilated": dilated.reshape(mask.shape)}
    for axis, (back, forth) in {-2: ("up", "down"), -1: ("left", "right")}.items():
        found |= {f"shifted {back}": _shift(mask, axis, -step), f"shifted {forth}": _shift(mask, axis, step)}
    if mask.ndim == 3:
        found |= {"a slice back": _shift(mask, 0, -1), "a slice forth": _shift(mask, 0, 1)}
    yield from ((name, changed) for name, changed in found.items() if changed.any())


def _shift(mask: np.ndarray, axis: int, step: int) -> np.ndarray:
    """Move a mask; what leaves the image is gone."""
    moved = np.roll(mask, step, axis)
    gone: list[slice] = [slice(None)] * mask.ndim
    gone[axis] = slice(0, step) if step > 0 else slice(step, None)
    moved[tuple(gone)] = False
    return moved


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return the overlap of two masks, 0 to 1."""
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def move_contours(
    paths: DatasetPaths, plan: Plan, modality: str, subjects: Sequence[Subject], options: ExplainOptions,
    *, threshold: float | None, inputs: dict[str, str],
) -> ContourRecord:  # fmt: skip
    """Predict each case that has a mask once for each change of it; write `<cohort>-contours.csv` and `.json`.

    Args:
        threshold: of the positive class; `None` decides for the most probable class.
        inputs: digests of what the predictions rest on.
    """
    section = plan.modalities[modality]
    folds = sorted({fold for subject in subjects for fold in subject.folds})
    networks = {fold: load_network(paths, section, modality, fold, options.device) for fold in folds}
    rows: list[dict[str, Any]] = []
    probs: list[np.ndarray] = []
    for subject in progress(subjects, description=f"Contours {modality}", quiet=options.quiet):
        if subject.files.mask is None:
            continue
        volume = read_image(subject.files.images)
        drawn = read_mask(subject.files.mask, like=volume).array
        if not drawn.any():
            continue
        whose = [networks[fold] for fold in subject.folds]
        first = len(rows)
        for name, mask in [(UNCHANGED, drawn), *change_mask(drawn)]:
            p = _predict(whose, volume, mask, section.preprocessing, options.device)
            decision = int(p.argmax()) if threshold is None else int(p[1] >= threshold)
            before = rows[first]["decision"] if len(rows) > first else decision
            shown = p[1] if threshold is not None else p[before]
            rows.append({
                "case_id": subject.case.case_id, "patient_id": subject.case.patient_id, "label": subject.case.label,
                "fold": subject.folds[0] if len(subject.folds) == 1 else None, "change": name, "dice": dice(drawn, mask),
                "probability": float(shown), "decision": decision, "flipped": int(decision != before),
            })  # fmt: skip
            probs.append(p)
    stem = paths.explain(modality) / f"{options.cohort}-contours{'' if options.fold is None else f'-fold{options.fold}'}"
    write_csv(stem.with_suffix(".csv"), COLUMNS, rows)
    if not rows:
        raise RawDataError(f"{modality}, cohort {options.cohort}: no case has a mask that could be changed.")
    summary = _summarise(modality, options.cohort, threshold, rows, np.array(probs), inputs)
    record = summary.model_copy(update={"case_ids": [s.case.case_id for s in subjects], "folds": folds})
    record.save(stem.with_suffix(".json"))
    return record


def _predict(
    networks: Sequence[nn.Module], volume: Volume, mask: np.ndarray, preprocessing: PreprocessingPlan, device: str
) -> np.ndarray:
    """Return the mean probabilities (n_classes,) of some networks for the crop that a mask gives."""
    image = torch.from_numpy(prepare_arrays(volume, mask, preprocessing).image)[None]
    x = center_crop(image, preprocessing.input_vox).to(device)
    return np.mean([predict_probs(network, x, x.shape[2:], batch_size=1)[0] for network in networks], axis=0)


def _summarise(
    modality: str, cohort: Cohort, threshold: float | None, rows: Sequence[dict[str, Any]], probs: np.ndarray,
    inputs: dict[str, str],
) -> ContourRecord:  # fmt: skip
    changes = list(dict.fromkeys(row["change"] for row in rows))
    before = {row["case_id"]: row for row in rows if row["change"] == UNCHANGED}
    of_case: dict[str, list[int]] = {case_id: [] for case_id in before}
    for row in rows:
        if row["change"] != UNCHANGED:
            of_case[row["case_id"]].append(row["flipped"])
    owners = [row["patient_id"] for row in before.values()]
    return ContourRecord(
        made_from=inputs, modality=modality, cohort=cohort, share=SHARE, threshold=threshold, n_cases=len(before),
        n_patients=len(set(owners)), case_ids=[], folds=[],
        flip_rate=_mean(mean_over_cases([float(np.mean(f)) if f else None for f in of_case.values()], owners)),
        any_flip=_mean(mean_over_cases([float(any(f)) if f else None for f in of_case.values()], owners)),
        changes=[_change(name, rows, probs, before, threshold) for name in changes],
    )  # fmt: skip


def _change(
    name: str, rows: Sequence[dict[str, Any]], probs: np.ndarray, before: dict[str, dict[str, Any]], threshold: float | None
) -> Change:
    own = [i for i, row in enumerate(rows) if row["change"] == name]
    moved = [abs(rows[i]["probability"] - before[rows[i]["case_id"]]["probability"]) for i in own]
    owners = [rows[i]["patient_id"] for i in own]
    known = [i for i in own if rows[i]["label"] is not None]
    labels, patients = np.array([rows[i]["label"] for i in known]), np.array([rows[i]["patient_id"] for i in known])
    if not known:
        auc = undefined("no labels: those of test cases stay sealed")
    elif threshold is None:
        auc = macro_auc(labels, probs[known], patients)
    else:
        auc = auc_interval(labels, probs[known, 1], patients=patients)
    return Change(
        name=name, n=len(own), dice=float(np.mean([rows[i]["dice"] for i in own])), shift=float(np.mean(moved)),
        flipped=_mean(mean_over_cases([float(rows[i]["flipped"]) for i in own], owners)), auc=_mean(auc),
    )  # fmt: skip


def _mean(found: Estimate) -> Mean:
    value, low, high = (float(v) if np.isfinite(v) else None for v in (found.value, found.ci_low, found.ci_high))
    return Mean(value=value, ci_low=low, ci_high=high, ci_method=found.ci_method)
