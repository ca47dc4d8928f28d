"""The prediction stage: new images → probabilities of every modality, fused, with a decision.

A folder of new images looks like a dataset without its table: `US/<case>.png`,
`MRI/<case>_0000.nii.gz`, and the lesion masks in `masks/US/<case>.png`; the names
`imagesTs/US` and `masksTs/US` of a dataset work as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from her2net.artefact import digest_file, write_csv
from her2net.errors import MissingArtefactError, RawDataError, describe, join_problems
from her2net.evaluate.thresholds import choose_threshold
from her2net.fuse.logistic import apply_fusion
from her2net.fuse.stage import FUSION, FusionRecord
from her2net.inference import load_networks, predict_files
from her2net.paths import DatasetPaths, find_dataset, find_roots
from her2net.plan.machine import choose_device
from her2net.plan.schema import ModalityPlan, Plan
from her2net.predictions import Predictions, make_predictions, read_predictions, write_predictions
from her2net.preprocess.cache import CaseFiles
from her2net.raw.layout import SUFFIX

MASK_ENDINGS = (".png", ".nii.gz", ".nii", ".mha", ".nrrd")
DECISION_COLUMNS = ("case_id", "model", "probability", "threshold", "decision")


class Predictor:
    """Trained folds, fusion and thresholds in memory, ready for new images.

    A class because loading the networks is dear and is done once for many calls.

    Example:
        predictor = Predictor("101")
        tables = predictor.predict("new_images")
        print(tables["fusion"].case_ids, tables["fusion"].probs)
    """

    def __init__(self, dataset: str | DatasetPaths, *, plan: str = "auto", device: str = "auto") -> None:
        """Load everything.

        Args:
            dataset: id, name or folder name below the roots; or the paths themselves.
            plan: name of the plan whose models predict.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            MissingArtefactError: something is not trained yet; names the command.
        """
        if isinstance(dataset, str):
            roots = find_roots()
            dataset = DatasetPaths(roots, find_dataset(roots, dataset), plan)
        self.paths = dataset
        self.plan = Plan.load(dataset.plan)
        self.device = choose_device(device)
        self.networks = {name: load_networks(dataset, self.plan, name, self.device) for name in self.plan.modalities}
        self.fusion = FusionRecord.load(dataset.model(FUSION) / "fusion.json") if len(self.networks) > 1 else None

    def predict(self, folder: str | Path, *, tta: bool = False, quiet: bool = False) -> dict[str, Predictions]:
        """Predict every case of a folder.

        Returns:
            Model (`US`, `MRI`, ..., `fusion`) -> its table.

        Raises:
            RawDataError: no image found, or an image cannot be read; names the file.
        """
        return self.predict_cases(find_cases(Path(folder), self.plan), tta=tta, quiet=quiet)

    def predict_cases(
        self, files: dict[str, list[CaseFiles]], *, patients: dict[str, str] | None = None, tta: bool = False,
        quiet: bool = False, n_workers: int | None = None,
    ) -> dict[str, Predictions]:  # fmt: skip
        """Predict cases given as modality -> files; `patients` maps case to patient, else each is its own."""
        tables = {}
        for name, cases in files.items():
            if not cases:
                continue
            section = self.plan.modalities[name]
            probs = predict_files(self.networks[name], section, cases, tta=tta or section.inference.tta, quiet=quiet,
                                  n_workers=n_workers, description=f"Predict {name}")
            ids = [case.case_id for case in cases]
            owners = [(patients or {}).get(i, i) for i in ids]
            tables[name] = make_predictions(ids, owners, probs, labels=[None] * len(ids), folds=[""] * len(ids))
        if self.fusion is not None:
            tables[FUSION] = apply_fusion(tables, self.fusion.models)
        return tables

    def decide(self, tables: dict[str, Predictions]) -> list[dict[str, object]]:
        """Return one row per case and model: probability, threshold chosen on OOF predictions, decision.

        With more than two classes the decision is the most probable class and the threshold is empty.
        """
        rows: list[dict[str, object]] = []
        for name, table in tables.items():
            threshold = self._threshold(name) if table.n_classes == 2 else None
            for case_id, probs in zip(table.case_ids, table.probs, strict=True):
                label = int(probs.argmax()) if threshold is None else int(probs[1] >= threshold)
                shown = float(probs[1]) if threshold is not None else float(probs.max())
                rows.append({"case_id": case_id, "model": name, "probability": shown, "threshold": threshold,
                             "decision": self.plan.class_names[label]})  # fmt: skip
        return rows

    def _threshold(self, model: str) -> float:
        oof = read_predictions(self.paths.model(model) / "oof.csv")
        return choose_threshold(oof.labels, oof.probs[:, 1])


def write_tables(folder: Path, predictor: Predictor, tables: dict[str, Predictions]) -> list[Path]:
    """Write `<model>.csv` per table, and `decisions.csv`; return what was written."""
    written = []
    for name, table in tables.items():
        path = folder / f"{name}.csv"
        write_predictions(path, table)
        written.append(path)
    write_csv(folder / "decisions.csv", DECISION_COLUMNS, predictor.decide(tables))
    return [*written, folder / "decisions.csv"]


def find_cases(folder: Path, plan: Plan) -> dict[str, list[CaseFiles]]:
    """List the images of every modality of the plan, with their masks.

    Raises:
        MissingArtefactError: no such folder.
        RawDataError: no image of any modality, or a channel is missing; lists every problem.
    """
    if not folder.is_dir():
        raise MissingArtefactError(f"{folder}: no such folder of images.")
    problems: list[str] = []
    found = {name: _find_modality(folder, name, section, problems) for name, section in plan.modalities.items()}
    if not any(found.values()) and not problems:
        wanted = " or ".join(f"{name}/<case>{section.file_ending}" for name, section in plan.modalities.items())
        problems.append(describe("no image of any modality", where=folder, expected=wanted))
    if problems:
        raise RawDataError(join_problems(f"{folder}: cannot be predicted.", problems))
    return found


def _find_modality(folder: Path, name: str, section: ModalityPlan, problems: list[str]) -> list[CaseFiles]:
    images = next((p for p in (folder / name, folder / "images" / name, folder / "imagesTs" / name) if p.is_dir()), None)
    if images is None:
        return []
    masks = [p for p in (folder / "masks" / name, folder / "masksTs" / name) if p.is_dir()]
    channels: dict[str, dict[int, Path]] = {}
    for path in sorted(images.iterdir()):
        if path.name.lower().endswith(section.file_ending.lower()) and path.is_file():
            stem = path.name[: -len(section.file_ending)]
            match = SUFFIX.match(stem)
            case_id, channel = (match[1], int(match[2])) if match else (stem, 0)
            channels.setdefault(case_id, {})[channel] = path
    cases = []
    for case_id, files in sorted(channels.items()):
        if sorted(files) != list(range(len(section.channels))):
            problems.append(describe("channels do not match the plan", where=f"{images}/{case_id}", found=sorted(files),
                                     expected=list(range(len(section.channels)))))
            continue
        ordered = tuple(files[c] for c in range(len(section.channels)))
        mask = _find_mask(masks, case_id)
        digests = [digest_file(path) for path in (*ordered, *([mask] if mask else []))]
        cases.append(CaseFiles(case_id, ordered, mask, "+".join(digests)))
    return cases


def _find_mask(folders: Sequence[Path], case_id: str) -> Path | None:
    paths = (folder / f"{case_id}{ending}" for folder in folders for ending in MASK_ENDINGS)
    return next((path for path in paths if path.is_file()), None)
