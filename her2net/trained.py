"""A trained model in memory: everything that a prediction needs, from a results folder or from a model archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from her2net.artefact import changed_inputs
from her2net.ensemble import EnsembleRecord, ensemble_inputs
from her2net.errors import PlanError, StaleArtefactError, describe, join_problems
from her2net.evaluate.evaluation import choose_thresholds, recorded_options
from her2net.evaluate.thresholds import Thresholds
from her2net.fingerprint import Fingerprint
from her2net.fuse.sources import fusion_sources
from her2net.fuse.stage import FUSION, FusionRecord, fusion_inputs, load_fusion, read_tables
from her2net.inference import load_networks
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.tabular.record import TableEnsemble, TableFold
from her2net.tabular.stage import digest_folds, load_folds, plan_inputs, refuse_stale_folds


@dataclass(frozen=True)
class TrainedModel:
    """All folds of all modalities with what turns their outputs into decisions.

    Attributes:
        fingerprint: of the training cases; new images are compared with it.
        networks: modality -> network of each fold, in fold order.
        fusion: `None` with a single modality.
        thresholds: model -> operating point, by the rule of the last evaluation, on OOF predictions unless it was given; empty with
            more than two classes.
        tta: modality -> whether fusion and thresholds were fitted on test-time augmented predictions.
        tables: table model (`RAD:US`, `CLIN`) -> fitted model of each fold.
    """

    plan: Plan
    fingerprint: Fingerprint
    networks: dict[str, list[torch.nn.Module]]
    fusion: FusionRecord | None
    thresholds: Thresholds
    tta: dict[str, bool]
    tables: dict[str, list[TableFold]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The modalities, the tables, and the fusion."""
        return [*self.networks, *self.tables, *([FUSION] if self.fusion else [])]

    @property
    def fused(self) -> list[str]:
        """The models whose predictions the fusion takes."""
        return list(dict.fromkeys(name for model in (self.fusion.models if self.fusion else []) for name in model.modalities))


def load_trained(paths: DatasetPaths, device: str) -> TrainedModel:
    """Load what was trained from a dataset.

    Raises:
        MissingArtefactError: something is not trained yet; names the command.
        StaleArtefactError: something was trained by another plan, or pooled or fused before it was trained; names the command.
    """
    plan = Plan.load(paths.plan)
    names = list(plan.modalities)
    networks = {name: load_networks(paths, plan, name, device) for name in names}
    path = paths.model(FUSION) / "fusion.json"
    covariates = path.is_file() and FusionRecord.load(path).covariates
    fusion = load_fusion(path, plan) if len(fusion_sources(plan, covariates=covariates)) > 1 else None
    records = {name: EnsembleRecord.load(paths.model(name) / "ensemble.json") for name in names}
    fitted = {name: load_folds(paths, plan, name) for name in plan.tables}
    for name, folds in fitted.items():
        refuse_stale_folds(paths, name, folds, [plan_inputs(plan.tables[name])] * len(folds))
    _refuse_older_tables(paths, plan, records, fitted, fusion)
    tables = read_tables(paths, [*names, *fitted, *([FUSION] if fusion else [])], "oof")
    thresholds = choose_thresholds({(name, "oof"): table for name, table in tables.items()}, recorded_options(paths))
    return TrainedModel(
        plan=plan, fingerprint=_load_fingerprint(paths, names), networks=networks, fusion=fusion,
        thresholds=Thresholds(models=thresholds), tta={name: record.tta for name, record in records.items()}, tables=fitted,
    )  # fmt: skip


def _refuse_older_tables(
    paths: DatasetPaths, plan: Plan, records: Mapping[str, EnsembleRecord], fitted: Mapping[str, Sequence[TableFold]],
    fusion: FusionRecord | None,
) -> None:  # fmt: skip
    """Refuse thresholds and a fusion that are of other models than there are now; needs no images and no labels.

    Raises:
        MissingArtefactError: a table model is not pooled yet; names the command.
        StaleArtefactError: names each, and the command.
    """
    now = {name: ensemble_inputs(paths, plan, name, (), tta=record.tta)["folds"] for name, record in records.items()}
    now |= {name: digest_folds(paths, name, folds) for name, folds in fitted.items()}
    pooled = {name: record.made_from for name, record in records.items()}
    pooled |= {name: TableEnsemble.load(paths.model(name) / "ensemble.json").made_from for name in fitted}
    problems = [
        f"ensemble {name}: made from other folds than there are now. Run her2net_ensemble {name} {paths.options} first."
        for name, folds in now.items()
        if changed_inputs(pooled[name], {"folds": folds})
    ]
    if fusion is not None:
        on_test = fusion.fitted_on == "test"
        tables = fusion_inputs(paths, plan, fit_on=fusion.fitted_on, covariates=fusion.covariates)
        parts = ("/oof.csv", "/test.csv") if on_test else "/oof.csv"
        changed = changed_inputs(fusion.made_from, {table: digest for table, digest in tables.items() if table.endswith(parts)})
        if changed:
            command = f"her2net_fuse {paths.options}{' --covariates' * fusion.covariates}{' --fit-on test' * on_test}"
            problems.append(f"fuse: made from other tables than there are now ({', '.join(changed)}). Run {command} first.")
    if problems:
        raise StaleArtefactError(join_problems(f"{paths.results}: thresholds and fusion do not belong to these networks.", problems))


def _load_fingerprint(paths: DatasetPaths, names: list[str]) -> Fingerprint:
    fingerprint = Fingerprint.load(paths.fingerprint)
    absent = [name for name in names if name not in fingerprint.modalities]
    if absent:
        remedy = "Run her2net_plan to make it anew."
        raise PlanError(describe(f"does not describe {', '.join(absent)}", where=paths.fingerprint, remedy=remedy))
    return fingerprint
