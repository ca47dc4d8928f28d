"""The fusion stage: OOF and test tables of the modalities → `fusion/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from her2net.artefact import Artefact, digest_file, digest_json
from her2net.errors import MissingArtefactError, PlanError, StaleArtefactError, join_problems
from her2net.fuse.choose import LeftOut, Method, Selection, fit_fusion, fuse_out_of_fold, list_left_out, select_method
from her2net.fuse.logistic import SubsetModel, apply_fusion
from her2net.fuse.sources import fusion_sources, fusion_subsets
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.predictions import Predictions, read_predictions, write_predictions

FUSION_VERSION = 2  # raise when the same tables give another fusion
FUSION = "fusion"
APPARENT = "apparent performance: fitted on the test cases it is reported on"


class FusionRecord(Artefact):
    """`fusion.json`: the fitted models, and a remark where what they report is not honest.

    Attributes:
        method: of the models.
        fitted_on: `oof`, or `test` as in the paper, which makes test figures apparent performance.
        selection: how the method was chosen; `null` where the plan names it.
        ci_method: of the odds ratios.
        covariates: whether the clinical covariates were asked for.
        left_out: planned sets without a model, of the models and of the fits that predict each fold.
    """

    MADE_BY: ClassVar[str] = "her2net_fuse"

    method: Method
    strength: float
    fitted_on: Literal["oof", "test"]
    remark: str
    selection: Selection | None = None
    ci_method: str = "Wald, penalised information"
    models: list[SubsetModel]
    covariates: bool = False
    left_out: list[LeftOut] = Field(default_factory=list)


def check_fusion(plan: Plan, record: FusionRecord) -> list[str]:
    """List in what a fusion does not fit a plan."""
    n_logits, problems = plan.n_classes - 1, []
    sources = fusion_sources(plan, covariates=record.covariates)
    for model in record.models:
        shape = (n_logits, len(model.modalities) * n_logits)
        rows = {len(row) for row in model.weights}
        if not model.modalities or not set(model.modalities) <= set(sources):
            problems.append(f"fusion of {' + '.join(model.modalities) or 'nothing'}: not models that the plan fuses.")
        elif (len(model.weights), rows) != (shape[0], {shape[1]}) or len(model.intercepts) != n_logits:
            what = f"expected weights of shape {shape} and {n_logits} intercepts"
            problems.append(f"fusion of {' + '.join(model.modalities)}: {what}.")
    there = {frozenset(model.modalities) for model in record.models}
    there |= {frozenset(item.modalities) for item in record.left_out if item.fold is None and len(item.modalities) > 1}
    absent = [subset for subset in fusion_subsets(plan, sources) if frozenset(subset) not in there]
    return problems + [f"fusion of {' + '.join(subset)}: no model." for subset in absent]


def load_fusion(path: Path, plan: Plan) -> FusionRecord:
    """Read `fusion.json` and check that it fits the plan.

    Raises:
        MissingArtefactError: not fused yet.
        PlanError: not such a file, or it does not fit.
    """
    record = FusionRecord.load(path)
    problems = check_fusion(plan, record)
    if problems:
        raise PlanError(join_problems(f"{path}: does not fit the plan. Run her2net_fuse to make it anew.", problems))
    return record


def fusion_inputs(
    paths: DatasetPaths, plan: Plan, *, fit_on: str, covariates: bool = False, label_cells: str = ""
) -> dict[str, str]:
    """Digests of the tables that are fused.

    Args:
        label_cells: digest of the label cells of the test cases where the fusion is fitted on them, else empty.

    Raises:
        MissingArtefactError: a modality has no OOF table yet.
    """
    made_from = {"version": str(FUSION_VERSION), "settings": digest_json([plan.fusion.model_dump(), fit_on])}
    made_from |= {"test_label_cells": label_cells} if label_cells else {}
    for name in fusion_sources(plan, covariates=covariates):
        for part in ("oof", "test"):
            path = paths.model(name) / f"{part}.csv"
            if path.exists():
                made_from[f"{name}/{part}.csv"] = digest_file(path)
            elif part == "oof":
                raise MissingArtefactError(f"{path}: no such file. Run her2net_ensemble {name} first.")
    return made_from


def read_tables(paths: DatasetPaths, names: Sequence[str], part: str) -> dict[str, Predictions]:
    """Read the tables of one part (`oof` or `test`) of those models that have it."""
    files = {name: paths.model(name) / f"{part}.csv" for name in names}
    return {name: read_predictions(path) for name, path in files.items() if path.exists()}


def fuse_modalities(
    paths: DatasetPaths, plan: Plan, folds: Sequence[Sequence[str]], *, fit_on: Literal["oof", "test"] = "oof",
    test_labels: Callable[[], Mapping[str, int]] | None = None, covariates: bool = False, label_cells: str = "",
) -> FusionRecord:  # fmt: skip
    """Fit the fusion, and write its models, its OOF and its test predictions.

    Args:
        folds: held-out patients of each fold.
        test_labels: reads the sealed labels; called for `fit_on="test"` only.
        covariates: fuse the clinical covariates as well.
        label_cells: see `fusion_inputs`.

    Raises:
        MissingArtefactError: a modality is not ensembled, or has no test table to fit on.
    """
    made_from = fusion_inputs(paths, plan, fit_on=fit_on, covariates=covariates, label_cells=label_cells)
    sources = fusion_sources(plan, covariates=covariates)
    oof, test = (read_tables(paths, sources, part) for part in ("oof", "test"))
    if fusion_inputs(paths, plan, fit_on=fit_on, covariates=covariates, label_cells=label_cells) != made_from:
        raise StaleArtefactError(f"{paths.results}: a table was written while it was read. Run her2net_fuse again.")
    subsets, strength, folder, names = fusion_subsets(plan, sources), plan.fusion.strength, paths.model(FUSION), plan.class_names
    selection: Selection | None = None
    if plan.fusion.method == "auto":
        selection = select_method(oof, subsets, folds, names, strength)
        method, per_fold = selection.chosen, selection.per_fold
    else:
        method, per_fold = plan.fusion.method, [plan.fusion.method] * len(folds)
    if fit_on == "test":
        absent = [name for name in plan.modalities if name not in test]
        if absent or test_labels is None:
            of = f" of {', '.join(absent)}" if absent else ""
            raise MissingArtefactError(f"{paths.results}: no test predictions{of} to fit on. Use --fit-on oof.")
        known = dict(test_labels())
        fitted = {k: t.with_labels(known) for k, t in test.items()}
        left_out = list_left_out(fitted, subsets, names, method)
        models = fit_fusion(fitted, subsets, names, strength, method=method)
        fused_oof = apply_fusion(oof, models)
    else:
        left_out = list_left_out(oof, subsets, names, method)
        for k, held in enumerate(folds):
            left_out += list_left_out(oof, subsets, names, per_fold[k], fold=k, held=held)
        models = fit_fusion(oof, subsets, names, strength, method=method)
        fused_oof = fuse_out_of_fold(oof, subsets, folds, names, strength, per_fold)
    write_predictions(folder / "oof.csv", fused_oof)
    if test:
        write_predictions(folder / "test.csv", apply_fusion(test, models))
    else:
        (folder / "test.csv").unlink(missing_ok=True)
    record = FusionRecord(made_from=made_from, method=method, strength=strength, fitted_on=fit_on, selection=selection,
                          remark=APPARENT if fit_on == "test" else "", models=models, covariates=covariates,
                          left_out=left_out)
    record.save(folder / "fusion.json")
    return record
