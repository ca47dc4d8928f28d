"""The prediction stage: new images → probabilities of every modality, fused, with a decision.

A folder of new images looks like a dataset without its table: `US/<case>.png`,
`MRI/<case>_0000.nii.gz`, and the lesion masks in `masks/US/<case>.png`; the names
`imagesTs/US` and `masksTs/US` of a dataset work as well. Radiomics needs the masks; clinical covariates come from a
`cases.csv` in the folder. A case that lacks either is fused by the model of what it has, or of the largest part of
that which has a model.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np

from her2net.archive.manifest import SUFFIX as ARCHIVE_SUFFIX
from her2net.archive.read import load_archive
from her2net.artefact import write_csv
from her2net.fuse.logistic import apply_fusion, choose_model, present_modalities
from her2net.fuse.stage import FUSION
from her2net.inference import predict_files
from her2net.input_check import FINDING_COLUMNS, Finding, UnlikeTrainingWarning, inspect_case
from her2net.new_folder import find_cases, find_covariates
from her2net.paths import DEFAULT_PLAN, DatasetPaths, find_roots, find_trained, folder_name
from her2net.plan.machine import choose_device
from her2net.plan.table_schema import CLINICAL
from her2net.predictions import Predictions, make_predictions, write_predictions
from her2net.preprocess.cache import CaseFiles
from her2net.raw.problems import enumerate_names
from her2net.tabular.encode import find_unseen
from her2net.tabular.features import FeatureTable, covariate_table, has_lesion, radiomics_table
from her2net.tabular.radiomics import radiomics_at_hand, require_mirp
from her2net.tabular.stage import mean_of_folds
from her2net.trained import TrainedModel, load_trained

OF_FILES = ("file-ignored", "mask-without-image", "sidecar-without-image")
"""Warnings of what lies beside the images and is not read."""
DECISION_COLUMNS = ("case_id", "model", "probability", "threshold", "decision", "warnings")


class Predictor:
    """Trained folds, fusion and thresholds in memory, ready for new images.

    A class because loading the networks is dear and is done once for many calls.

    Example:
        predictor = Predictor("breast.her2net")
        tables = predictor.predict("new_images")
        print(tables["fusion"].case_ids, tables["fusion"].probs)

    Attributes:
        findings: in what the images of the last call are unlike the training images.
    """

    def __init__(self, source: str | Path | DatasetPaths, *, plan: str = DEFAULT_PLAN, device: str = "auto") -> None:
        """Load everything.

        Args:
            source: a model archive (a path, or text that ends in `.her2net`); or a dataset below the roots, by id,
                name or folder name; or its paths.
            plan: name of the plan whose models predict; of a dataset only.
            device: `auto`, `cpu`, `cuda` or `mps`.

        Raises:
            MissingArtefactError: something is not trained yet; names the command.
            ArchiveError: the archive is damaged, unsafe, or computes otherwise here.
        """
        self.device = choose_device(device)
        self.model = _load(source, plan, self.device)
        self.plan = self.model.plan
        self.findings: list[Finding] = []

    def predict(self, folder: str | Path, *, tta: bool = False, quiet: bool = False) -> dict[str, Predictions]:
        """Predict every case of a folder.

        Returns:
            Model (`US`, `MRI`, ..., `fusion`) -> its table.

        Raises:
            RawDataError: no image found, or images cannot be read or make no sense to the model; lists them all.

        Warns:
            UnlikeTrainingWarning: some images are unlike the training images; see `findings`.
        """
        cases, ignored = find_cases(Path(folder), self.plan)
        covariates: dict[str, dict[str, str]] = {}
        if CLINICAL in self.model.tables:
            used = {code.name for record in self.model.tables[CLINICAL] for code in record.model.encoding.columns}
            covariates, unmatched = find_covariates(Path(folder), self.plan.tables[CLINICAL], used, cases)
            ignored += unmatched
        return self.predict_cases(cases, covariates=covariates, tta=tta, quiet=quiet, found_before=ignored)

    def predict_cases(
        self, files: dict[str, list[CaseFiles]], *, patients: dict[str, str] | None = None,
        covariates: Mapping[str, Mapping[str, str]] | None = None, tta: bool = False, quiet: bool = False,
        n_workers: int | None = None, found_before: Sequence[Finding] = (),
    ) -> dict[str, Predictions]:  # fmt: skip
        """Predict cases given as modality -> files.

        Args:
            patients: case -> patient; without it each case is its own.
            covariates: case -> column -> cell; a case without any is fused without them.
        """
        tables, findings = {}, list(found_before)
        for name, cases in files.items():
            if not cases:
                continue
            section = self.plan.modalities[name]
            check = partial(inspect_case, modality=name, trained=self.model.fingerprint.modalities[name])
            probs, found = predict_files(
                self.model.networks[name], section, cases, tta=tta or section.inference.tta or self.model.tta[name],
                quiet=quiet, n_workers=n_workers, description=f"Predict {name}", check=check,
            )  # fmt: skip
            findings += found
            tables[name] = _as_predictions([case.case_id for case in cases], probs, patients or {})
        for name, features in self._describe(files, covariates or {}, n_workers=n_workers, quiet=quiet).items():
            findings += [*self._compare_mirp(name, features), *self._compare_levels(name, features)]
            probs = mean_of_folds(self.model.tables[name], features)
            tables[name] = _as_predictions(list(features.case_ids), probs, patients or {})
        if self.model.fusion is not None:
            fused = {name: table for name, table in tables.items() if name in self.model.fused}
            tables[FUSION] = apply_fusion(fused, self.model.fusion.models)
            findings += self._compare_sets(fused)
        self.findings = findings
        if findings:
            warnings.warn(summarise_findings(findings), UnlikeTrainingWarning, stacklevel=3)
        return tables

    def _describe(
        self, files: dict[str, list[CaseFiles]], covariates: Mapping[str, Mapping[str, str]], *, n_workers: int | None,
        quiet: bool,
    ) -> dict[str, FeatureTable]:  # fmt: skip
        """Return the features of each table model, of the cases that have them.

        Radiomics needs mirp; without it, a radiomics model is left out unless the fusion takes it.
        """
        found = {}
        for name in self.model.tables:
            table = self.plan.tables[name]
            if table.modality is None:
                there = {case.case_id for cases in files.values() for case in cases}
                filled = {c: row for c, row in covariates.items() if c in there and any(row.get(k) for k in table.columns)}
                features = covariate_table(table, filled)
            elif not radiomics_at_hand() and name not in self.model.fused:
                continue
            else:
                cases = [case for case in files.get(table.modality, ()) if has_lesion(case)]
                channels = self.plan.modalities[table.modality].channels
                features = radiomics_table(table, channels, cases, n_workers=n_workers, quiet=quiet)
            if len(features):
                found[name] = features
        return found

    def _compare_mirp(self, name: str, features: FeatureTable) -> list[Finding]:
        """Warn of every case whose radiomics comes from another version of mirp than that of training."""
        modality = self.plan.tables[name].modality
        versions = {record.environment.get("mirp", "") for record in self.model.tables[name]}
        if modality is None or versions == {here := require_mirp()}:
            return []
        what = "radiomics is computed by another version of mirp than in training"
        expected = ", ".join(sorted(versions))
        return [Finding("warning", "mirp-version", what, here, expected, case_id, modality) for case_id in features.case_ids]

    def _compare_levels(self, name: str, features: FeatureTable) -> list[Finding]:
        """Warn of every level of a covariate that no fold has seen in training."""
        unseen = find_unseen(features, [record.model.encoding for record in self.model.tables[name]])
        return [Finding("warning", "level-unseen", f"the level of {column} was not seen in training, so it counts as missing",
                        level[:60], enumerate_names(known), case_id, name) for case_id, column, level, known in unseen]  # fmt: skip

    def _compare_sets(self, fused: Mapping[str, Predictions]) -> list[Finding]:
        """Warn of every case that is fused from less than it has, because no fusion model is of all of it."""
        found, models = [], self.model.fusion.models if self.model.fusion else []
        for case_id, subset in present_modalities(fused).items():
            used = choose_model(subset, models).modalities
            if len(used) < len(subset):
                what = f"there is no fusion model of what the case has: predicted by that of {' + '.join(used)}"
                found.append(Finding("warning", "fusion-set", what, " + ".join(subset), case_id=case_id, modality=FUSION))
        return found

    def decide(self, tables: dict[str, Predictions]) -> list[dict[str, object]]:
        """Return one row per case and model: probability, threshold chosen on OOF predictions, decision, warnings.

        With more than two classes the decision is the most probable class and the threshold is empty. `warnings` is
        how many `findings` there are of the images and covariates that the probability was made from, and of the fusion's choice
        of a model.
        """
        counts = Counter((finding.case_id, finding.modality) for finding in self.findings)
        of_all = Counter(finding.modality for finding in self.findings if finding.check == "column-missing")
        rows: list[dict[str, object]] = []
        for name, table in tables.items():
            threshold = self.model.thresholds.models[name].value if table.n_classes == 2 else None
            table_plan = self.plan.tables.get(name)
            own = [name] if table_plan is None else [table_plan.modality or name]
            sources = own if name != FUSION else [*{*self.plan.modalities, *self.model.fused, FUSION}]
            for case_id, probs in zip(table.case_ids, table.probs, strict=True):
                label = int(probs.argmax()) if threshold is None else int(probs[1] >= threshold)
                shown = float(probs[1]) if threshold is not None else float(probs.max())
                rows.append({"case_id": case_id, "model": name, "probability": shown, "threshold": threshold,
                             "decision": self.plan.class_names[label],
                             "warnings": sum(counts[case_id, source] + of_all[source] for source in sources)})  # fmt: skip
        return rows


def _as_predictions(ids: list[str], probs: np.ndarray, patients: Mapping[str, str]) -> Predictions:
    return make_predictions(ids, [patients.get(i, i) for i in ids], probs, labels=[None] * len(ids), folds=[""] * len(ids))


def _load(source: str | Path | DatasetPaths, plan: str, device: str) -> TrainedModel:
    """Load an archive, or the models of a dataset: its own, else an imported one."""
    if isinstance(source, Path) or (isinstance(source, str) and source.lower().endswith(ARCHIVE_SUFFIX)):
        return load_archive(Path(source), device).model
    if isinstance(source, str):
        source = find_trained(find_roots(), source, plan)
    if source.imported.is_file() and not source.plan.exists():
        return load_archive(source.imported, device).model
    return load_trained(source, device)


def summarise_findings(findings: Sequence[Finding]) -> str:
    """Say about how many images there are warnings, how many others, and of what kinds; names no case."""
    of_images = [f for f in findings if f.modality not in ("", CLINICAL, FUSION) and f.check not in OF_FILES]
    n, others = len({(finding.case_id, finding.modality) for finding in of_images}), len(findings) - len(of_images)
    parts = [f"{n} image{'s' * (n > 1)} with warnings"] if n else []
    parts += [f"{others} {'other ' * (n > 0)}warning{'s' * (others > 1)}"] if others else []
    what = " and ".join(parts)
    kinds = ", ".join(f"{check} {n}" for check, n in Counter(finding.check for finding in findings).items())
    return f"{what} ({kinds})"


def write_tables(folder: Path, predictor: Predictor, tables: dict[str, Predictions]) -> list[Path]:
    """Write `<model>.csv` per table, `decisions.csv` and `warnings.csv`; return what was written.

    Tables of models that predict nothing here are removed: they are of other images, and may name patients that the rest hides.
    """
    written = []
    for name in set(predictor.model.names) - set(tables):
        (folder / f"{folder_name(name)}.csv").unlink(missing_ok=True)
    for name, table in tables.items():
        path = folder / f"{folder_name(name)}.csv"
        write_predictions(path, table)
        written.append(path)
    write_csv(folder / "decisions.csv", DECISION_COLUMNS, predictor.decide(tables))
    write_csv(folder / "warnings.csv", FINDING_COLUMNS, (asdict(finding) for finding in predictor.findings))
    return [*written, folder / "decisions.csv", folder / "warnings.csv"]
