"""The fusion stage: OOF and test tables of the modalities → `fusion/`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Literal

from her2net.artefact import Artefact, digest_file, digest_json
from her2net.errors import MissingArtefactError, StaleArtefactError
from her2net.fuse.logistic import SubsetModel, apply_fusion, fit_fusion, fuse_out_of_fold
from her2net.fuse.sources import fusion_sources, fusion_subsets
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.predictions import Predictions, read_predictions, write_predictions

FUSION = "fusion"
APPARENT = "apparent performance: fitted on the test cases it is reported on"


class FusionRecord(Artefact):
    """`fusion.json`: the fitted models, and a remark where what they report is not honest.

    Attributes:
        fitted_on: `oof`, or `test` as in the paper, which makes test figures apparent performance.
        ci_method: of the odds ratios.
        covariates: whether the clinical covariates were asked for.
    """

    MADE_BY: ClassVar[str] = "her2net_fuse"

    method: Literal["logistic"]
    strength: float
    fitted_on: Literal["oof", "test"]
    remark: str
    ci_method: str = "Wald, penalised information"
    models: list[SubsetModel]
    covariates: bool = False


def fusion_inputs(paths: DatasetPaths, plan: Plan, *, fit_on: str, covariates: bool = False) -> dict[str, str]:
    """Digests of the tables that are fused.

    Raises:
        MissingArtefactError: a modality has no OOF table yet.
    """
    made_from = {"settings": digest_json([plan.fusion.model_dump(), fit_on])}
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
    test_labels: Callable[[], Mapping[str, int]] | None = None, covariates: bool = False,
) -> FusionRecord:  # fmt: skip
    """Fit the fusion, and write its models, its OOF and its test predictions.

    Args:
        folds: held-out patients of each fold.
        test_labels: reads the sealed labels; called for `fit_on="test"` only.
        covariates: fuse the clinical covariates as well.

    Raises:
        MissingArtefactError: a modality is not ensembled, or there is no test table to fit on.
    """
    made_from = fusion_inputs(paths, plan, fit_on=fit_on, covariates=covariates)
    sources = fusion_sources(plan, covariates=covariates)
    oof, test = (read_tables(paths, sources, part) for part in ("oof", "test"))
    if fusion_inputs(paths, plan, fit_on=fit_on, covariates=covariates) != made_from:
        raise StaleArtefactError(f"{paths.results}: a table was written while it was read. Run her2net_fuse again.")
    subsets, strength, folder = fusion_subsets(plan, sources), plan.fusion.strength, paths.model(FUSION)
    if fit_on == "test":
        if not test or test_labels is None:
            raise MissingArtefactError(f"{paths.results}: no test predictions to fit on. Use --fit-on oof.")
        known = test_labels()
        models = fit_fusion({k: t.with_labels(dict(known)) for k, t in test.items()}, subsets, plan.class_names, strength)
        fused_oof = apply_fusion(oof, models)
    else:
        models = fit_fusion(oof, subsets, plan.class_names, strength)
        fused_oof = fuse_out_of_fold(oof, subsets, folds, plan.class_names, strength)
    write_predictions(folder / "oof.csv", fused_oof)
    if test:
        write_predictions(folder / "test.csv", apply_fusion(test, models))
    else:
        (folder / "test.csv").unlink(missing_ok=True)
    record = FusionRecord(made_from=made_from, method="logistic", strength=strength, fitted_on=fit_on,
                          remark=APPARENT if fit_on == "test" else "", models=models, covariates=covariates)
    record.save(folder / "fusion.json")
    return record
