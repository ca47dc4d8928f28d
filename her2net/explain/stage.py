"""The explanation stage: trained folds and images → maps, pictures and figures; or the deep features of each case."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from her2net.artefact import write_bytes, write_csv
from her2net.explain.draw import Caption, Tile, draw_contact_sheet, draw_overlay, make_tile
from her2net.explain.geometry import Window, rectify, to_original, window_slices
from her2net.explain.maps import Layer, ZScore, attribute, choose_layer, combine
from her2net.explain.measure import METRICS, compare_with_random, localise, mean_over_cases, perturb, random_networks
from her2net.explain.record import RECORD, CaseRecord, ExplainRecord, MeanFigure, SliceRecord, explain_inputs, set_name
from her2net.explain.slices import draw_slices
from her2net.explain.subjects import ExplainOptions, Subject
from her2net.inference import load_network
from her2net.networks.build import network_spec
from her2net.paths import DatasetPaths
from her2net.plan.schema import ModalityPlan, Plan, PreprocessingPlan
from her2net.preprocess.cache import CaseFiles
from her2net.preprocess.crop import crop_window, lesion_box
from her2net.preprocess.prepare import prepare_arrays
from her2net.progress import progress
from her2net.raw.images import Volume, read_image, read_mask, write_nifti
from her2net.train.augment import center_crop
from her2net.train.checkpoint import FINAL, read_checkpoint
from her2net.train.loop import predict_probs

N_TILES = 40
METHOD_NAMES = {"gradcam": "Grad-CAM", "gradcam++": "Grad-CAM++", "occlusion": "occlusion"}
PER_PLACE = "Grad-CAM per place (HiResCAM)"
METRIC_COLUMNS = ("case_id", "patient_id", "fold", "label", "target", "probability", *METRICS)


@dataclass(frozen=True)
class _Loaded:
    """One case as it lies on disk and as a network sees it."""

    volume: Volume
    mask: np.ndarray | None
    window: Window
    x: Tensor
    zscore: ZScore


def explain_modality(
    paths: DatasetPaths, plan: Plan, modality: str, subjects: Sequence[Subject], options: ExplainOptions
) -> ExplainRecord:
    """Explain the cases one after the other; the folder of the set is made anew.

    Raises:
        MissingArtefactError: a fold is not trained.
        RawDataError: an image cannot be read.
    """
    section = plan.modalities[modality]
    explainer = _Explainer(paths, section, plan, modality, options, subjects)
    folder = paths.explain(modality) / set_name(options.cohort, options.method, options.target, options.fold)
    shutil.rmtree(folder, ignore_errors=True)
    shown = set(np.linspace(0, len(subjects) - 1, min(N_TILES, len(subjects))).round().astype(int).tolist())
    records, tiles, grid = [], [], [0]
    for number, subject in enumerate(progress(subjects, description=f"Explain {modality}", quiet=options.quiet)):
        explained = explainer.explain(subject)
        grid = list(explained.signed.shape)
        record, tile = _write_case(folder, plan, modality, subject, explained, explainer, draw_tile=number in shown)
        records.append(record)
        tiles += [tile] if tile else []
    wanted = "the most probable class" if options.target == "predicted" else plan.class_names[options.target]
    of_all = f", {len(tiles)} of {len(records)} cases" if len(tiles) < len(records) else ""
    draw_contact_sheet(folder / "contact_sheet.png", tiles,
                       f"{modality}, {options.cohort}: {explainer.method_name} for {wanted}{of_all}")
    write_csv(folder / "metrics.csv", METRIC_COLUMNS, [_row(record) for record in records])
    folds = sorted({fold for subject in subjects for fold in subject.folds})
    result = ExplainRecord(
        made_from=explain_inputs(paths, modality, section, folds, [s.files for s in subjects]),
        modality=modality, cohort=options.cohort, method=options.method, fold=options.fold, target=options.target,
        class_names=plan.class_names, network=explainer.network_name, grid=grid, selected=bool(options.case_ids),
        layer="" if options.method == "occlusion" else explainer.layer.name, method_name=explainer.method_name,
        summary={name: _mean([r.figures[name] for r in records], records) for name in METRICS}, cases=records,
    )  # fmt: skip
    result.save(folder / RECORD)
    return result


@dataclass(frozen=True)
class _Explained:
    loaded: _Loaded
    probs: np.ndarray
    target: int
    signed: np.ndarray
    heat: np.ndarray
    figures: dict[str, float | None]


class _Explainer:
    """The networks of the folds in memory; a class because loading them is dear and is done once for many cases."""

    def __init__(
        self, paths: DatasetPaths, section: ModalityPlan, plan: Plan, modality: str, options: ExplainOptions,
        subjects: Sequence[Subject],
    ) -> None:  # fmt: skip
        self.section, self.options = section, options
        self.networks, self.network_name = _load(paths, section, modality, subjects, options.device)
        any_network = next(iter(self.networks.values()))
        spec, n_channels = network_spec(self.network_name), section.n_inputs
        self.layer: Layer = choose_layer(any_network, spec, n_channels, section.preprocessing.input_vox)
        per_place = options.method == "gradcam" and self.layer.weighs_places
        self.method_name = PER_PLACE if per_place else METHOD_NAMES[options.method]
        self.random = random_networks(self.network_name, n_channels, plan.n_classes, any_network)

    def explain(self, subject: Subject) -> _Explained:
        """Make the map of one case and measure it."""
        options, size = self.options, self.section.inference.batch_size
        networks = [self.networks[fold] for fold in subject.folds]
        loaded = load_case(subject.files, self.section.preprocessing, options.device)
        probs = np.mean([predict_probs(n, loaded.x, loaded.x.shape[2:], batch_size=1)[0] for n in networks], axis=0)
        target = int(probs.argmax()) if options.target == "predicted" else options.target
        signed = combine([self._map(network, loaded, target) for network in networks])
        heat = rectify(to_original(signed.astype(np.float32), loaded.window, loaded.volume.array.shape[1:]))
        figures = {
            **localise(heat, loaded.mask, loaded.window),
            **perturb(networks, loaded.x, target, signed, batch_size=size),
            **compare_with_random(signed, [self._map(network, loaded, target) for network in self.random]),
        }
        return _Explained(loaded, probs, target, signed, heat, figures)

    def _map(self, network: nn.Module, loaded: _Loaded, target: int) -> np.ndarray:
        size = self.section.inference.batch_size
        return attribute(self.options.method, network, self.layer, loaded.x, target, batch_size=size, zscore=loaded.zscore)


def load_case(files: CaseFiles, preprocessing: PreprocessingPlan, device: str) -> _Loaded:
    """Read one case, cut it as the cache does, and say where the crop lies in the original image."""
    volume = read_image(files.images)
    mask = None if files.mask is None else read_mask(files.mask, like=volume).array
    prepared = prepare_arrays(volume, mask, preprocessing)
    box = None if mask is None else lesion_box(mask)
    window = crop_window(box, volume.array.shape[1:], volume.spacing_mm, preprocessing)
    x = center_crop(torch.from_numpy(prepared.image)[None], preprocessing.input_vox).to(device)
    inside = np.prod([s.stop - s.start for s in window_slices(window, volume.array.shape[1:])])
    share = float(inside / volume.array[0].size) if preprocessing.statistics == "image" else 1.0
    return _Loaded(volume, mask, window, x, ZScore(len(volume.array), preprocessing.joint_channels, share))


def _load(
    paths: DatasetPaths, section: ModalityPlan, modality: str, subjects: Sequence[Subject], device: str
) -> tuple[dict[int, nn.Module], str]:
    """Return fold -> network, and the name of the architecture, as it was trained."""
    folds = sorted({fold for subject in subjects for fold in subject.folds})
    networks = {fold: load_network(paths, section, modality, fold, device) for fold in folds}
    return networks, str(read_checkpoint(paths.fold(modality, folds[0]) / FINAL)["network"])


def _write_case(
    folder: Path, plan: Plan, modality: str, subject: Subject, explained: _Explained, explainer: _Explainer, *,
    draw_tile: bool,
) -> tuple[CaseRecord, Tile | None]:  # fmt: skip
    case, loaded = subject.case, explained.loaded
    overlay, volume = f"overlays/{case.case_id}.png", f"maps/{case.case_id}.nii.gz"
    caption = Caption(
        case_id=case.case_id, modality=modality, method=explainer.method_name, class_name=plan.class_names[explained.target],
        probability=float(explained.probs[explained.target]), who=_who(subject, explainer.options),
        label_name=None if case.label is None else plan.class_names[case.label],
    )  # fmt: skip
    write_nifti(folder / volume, explained.heat, loaded.volume)
    draw_overlay(folder / overlay, loaded.volume, explained.heat, loaded.mask, loaded.window, caption)
    slices = []
    for number, (picture, title) in enumerate(draw_slices(loaded.volume, explained.heat, loaded.mask, loaded.window)):
        slices.append(SliceRecord(file=f"slices/{case.case_id}_{number}.jpg", title=title))
        write_bytes(folder / slices[-1].file, picture)
    record = CaseRecord(
        case_id=case.case_id, patient_id=case.patient_id, folds=list(subject.folds), label=case.label,
        target=explained.target, probability=caption.probability, overlay=overlay, map=volume, figures=explained.figures,
        slices=slices,
    )  # fmt: skip
    tile = make_tile(loaded.volume, explained.heat, loaded.mask, loaded.window, caption) if draw_tile else None
    return record, tile


def _who(subject: Subject, options: ExplainOptions) -> str:
    if options.cohort == "oof":
        return f"fold {subject.folds[0]}, which never saw this patient"
    return f"fold {subject.folds[0]} alone" if len(subject.folds) == 1 else f"mean of {len(subject.folds)} folds"


def _row(record: CaseRecord) -> dict[str, Any]:
    return {
        "case_id": record.case_id, "patient_id": record.patient_id, "label": record.label, "target": record.target,
        "fold": record.folds[0] if len(record.folds) == 1 else None, "probability": record.probability, **record.figures,
    }  # fmt: skip


def _mean(values: Sequence[float | None], records: Sequence[CaseRecord]) -> MeanFigure:
    found = mean_over_cases(values, [record.patient_id for record in records])
    finite = [v if np.isfinite(v) else None for v in (found.value, found.ci_low, found.ci_high)]
    n = sum(v is not None for v in values)
    return MeanFigure(value=finite[0], ci_low=finite[1], ci_high=finite[2], ci_method=found.ci_method, n=n)


def write_features(
    paths: DatasetPaths, plan: Plan, modality: str, subjects: Sequence[Subject], options: ExplainOptions
) -> Path:
    """Write what enters the classifier of each case's network: one row per case and fold; return the file."""
    section = plan.modalities[modality]
    networks, name = _load(paths, section, modality, subjects, options.device)
    classifier = network_spec(name).classifier
    rows = []
    for subject in progress(subjects, description=f"Features {modality}", quiet=options.quiet):
        loaded, case = load_case(subject.files, section.preprocessing, options.device), subject.case
        for fold in subject.folds:
            values = deep_features(networks[fold], classifier, loaded.x)
            rows.append({"case_id": case.case_id, "patient_id": case.patient_id, "fold": fold, "label": case.label,
                         **{f"feature_{i}": float(v) for i, v in enumerate(values)}})  # fmt: skip
    path = paths.explain(modality) / f"{options.cohort}-features{'' if options.fold is None else f'-fold{options.fold}'}.csv"
    write_csv(path, list(rows[0]), rows)
    return path


def deep_features(network: nn.Module, classifier: str, x: Tensor) -> np.ndarray:
    """Return what enters the classifier for one crop (1, C, *input_vox): (n_features,) float32."""
    kept: list[Tensor] = []
    hook = network.get_submodule(classifier).register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    try:
        with torch.inference_mode():
            network(x)
    finally:
        hook.remove()
    return kept[0][0].float().cpu().numpy()
