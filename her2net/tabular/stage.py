"""Training and ensembling of table models: features → one model per fold → OOF and test predictions.

The counterpart of `train` and `ensemble` for a table instead of images: the same folds, the same tables of
predictions. Every number that is fitted is fitted on the training patients of the fold.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from her2net.artefact import changed_inputs, digest_json, sweep_temporaries
from her2net.ensemble import digest_oof, pool, write_pooled
from her2net.errors import MissingArtefactError, PlanError, StaleArtefactError
from her2net.locks import hold
from her2net.paths import DatasetPaths
from her2net.plan.schema import Plan
from her2net.plan.table_schema import TablePlan
from her2net.predictions import Predictions, make_predictions, read_predictions, write_predictions
from her2net.project import Project, list_files
from her2net.raw.dataset import Case
from her2net.tabular.explain import explain_table
from her2net.tabular.features import FEATURES_VERSION, FeatureTable, cases_with, features_digest, features_of
from her2net.tabular.learn import apply_model, fit_model
from her2net.tabular.radiomics import require_mirp
from her2net.tabular.record import TableEnsemble, TableFold
from her2net.train.data import part_fold

TABLE_VERSION = 1  # raise when the same features give another model
MODEL, EXPLANATION = "model.json", "explanation.json"


def split_fold(project: Project, name: str, fold: int | str) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Part the training cases that the table describes into those that train a fold and those it holds out.

    Raises:
        PlanError: no such table or fold, or a class is absent.
        LeakageError: a patient would stand on both sides.
    """
    cases = cases_with(find_table(project.plan, name), project.dataset.train, project.scan)
    parts = part_fold(cases, name, "these features", fold, project.plan, project.splits)
    return parts.training, parts.held_out


def find_table(plan: Plan, name: str) -> TablePlan:
    """Return a table of the plan.

    Raises:
        PlanError: there is none of that name; lists those there are.
    """
    if name not in plan.tables:
        there = ", ".join([*plan.modalities, *plan.tables])
        raise PlanError(f"no modality or table {name!r} in plan {plan.name!r}. There are: {there}.")
    return plan.tables[name]


def row_digests(project: Project, name: str, cases: Sequence[Case]) -> list[str]:
    """Digest of what each case's features are made from; computes nothing."""
    table = project.plan.tables[name]
    if table.modality is None:
        return [digest_json([c.case_id, {k: c.covariates.get(k, "") for k in table.columns}]) for c in cases]
    return [features_digest(files, table) for files in list_files(project.scan, table.modality, tuple(cases))]


def plan_inputs(table: TablePlan) -> dict[str, str]:
    """Digests of how a fold is fitted, and of how features are taken from images."""
    return {
        "table_version": str(TABLE_VERSION),
        "settings": digest_json([table.model.model_dump(mode="json"), table.columns]),
        "features": digest_json([None if table.modality is None else FEATURES_VERSION, table.features_digest]),
    }


def fold_inputs(project: Project, name: str, training: Sequence[Case], held_out: Sequence[Case]) -> dict[str, str]:
    """Digests of what a fold is made from."""
    inputs = {
        part: digest_json([row_digests(project, name, cases), [c.label for c in cases], [c.patient_id for c in cases]])
        for part, cases in (("training_cases", training), ("held_out_cases", held_out))
    }
    return plan_inputs(project.plan.tables[name]) | inputs


def train_table_fold(project: Project, name: str, fold: int | str, *, restart: bool, quiet: bool) -> TableFold:
    """Fit one fold and predict its held-out cases; a finished fold that is fresh is kept.

    Raises:
        LockError: another process fits this fold.
        StaleArtefactError: the folder holds a model made from other inputs, and `restart` is false.
    """
    folder = project.paths.fold(name, fold)
    training, held_out = split_fold(project, name, fold)
    made_from = fold_inputs(project, name, training, held_out)
    with hold(folder, f"{name} fold {fold}", wait=False):
        sweep_temporaries(folder)
        former = None if restart else read_fold(folder)
        if former is not None and former.made_from != made_from:
            raise StaleArtefactError(
                f"{folder}: this fold was fitted to other inputs. Fit it again with --restart, or undo the change."
            )
        if former is not None and (not held_out or (folder / "oof.csv").is_file()):
            return former
        table = features_of(project, name, [*training, *held_out], quiet=quiet)
        record = TableFold(
            made_from=made_from, table=name, fold=str(fold), settings=project.plan.tables[name].model,
            n_held_out_cases=len(held_out), environment=_environment(project.plan.tables[name]),
            model=fit_model(
                _rows(table, training), np.array([c.label for c in training]), [c.patient_id for c in training],
                project.plan.n_classes, project.plan.tables[name].model,
            ),
        )  # fmt: skip
        if held_out:
            probs = apply_model(record.model, _rows(table, held_out))
            write_predictions(folder / "oof.csv", make_predictions(
                [c.case_id for c in held_out], [c.patient_id for c in held_out], probs,
                labels=[c.label for c in held_out], folds=[str(fold)] * len(held_out),
            ))  # fmt: skip
        else:
            (folder / "oof.csv").unlink(missing_ok=True)  # of a fit before, to other folds
        record.save(folder / MODEL)
        return record


def read_fold(folder: Path) -> TableFold | None:
    """Return the fitted model of a fold folder, `None` if there is none."""
    try:
        return TableFold.load(folder / MODEL)
    except MissingArtefactError:
        return None


def load_folds(paths: DatasetPaths, plan: Plan, name: str) -> list[TableFold]:
    """Return the models of all folds.

    Raises:
        MissingArtefactError: some are not trained; names the command.
    """
    records = [read_fold(paths.fold(name, k)) for k in range(plan.splits.n_folds)]
    missing = [str(k) for k, record in enumerate(records) if record is None]
    if missing:
        command = f"her2net_train {name} {' '.join(missing)}"
        raise MissingArtefactError(f"{paths.model(name)}: folds {', '.join(missing)} are not trained. Run {command} first.")
    return [record for record in records if record is not None]


def refuse_stale_folds(paths: DatasetPaths, name: str, folds: Sequence[TableFold], now: Sequence[dict[str, str]]) -> None:
    """Refuse models that were fitted to something else.

    Args:
        now: per fold, digests of the inputs that matter, as they are now.

    Raises:
        StaleArtefactError: names the folds, what changed, and the command.
    """
    changed = {record.fold: changed_inputs(record.made_from, inputs) for record, inputs in zip(folds, now, strict=True)}
    stale = [fold for fold, keys in changed.items() if keys]
    if stale:
        what = ", ".join(sorted({key for keys in changed.values() for key in keys}))
        raise StaleArtefactError(
            f"{paths.model(name)}: folds {', '.join(stale)} were fitted to other inputs than there are now (changed since: {what}). "
            f"Run her2net_train {name} {' '.join(stale)} --restart {paths.options}, or undo the change."
        )


def mean_of_folds(folds: Sequence[TableFold], table: FeatureTable) -> np.ndarray:
    """Return (n, n_classes): the mean of the folds' probabilities."""
    return np.mean([apply_model(record.model, table) for record in folds], axis=0)


def digest_folds(paths: DatasetPaths, name: str, folds: Sequence[TableFold]) -> str:
    """Digest of the fitted folds and of their predictions of held-out cases."""
    return digest_json([[record.made_from, digest_json(record.model), digest_oof(paths.fold(name, record.fold))]
                        for record in folds])  # fmt: skip


def ensemble_inputs(project: Project, name: str) -> dict[str, str]:
    """Digests of the fitted folds and of the test cases' features.

    Raises:
        MissingArtefactError: a fold is not fitted.
    """
    folds = load_folds(project.paths, project.plan, name)
    test = cases_with(project.plan.tables[name], project.dataset.test, project.scan)
    return {
        "folds": digest_folds(project.paths, name, folds),
        "test_cases": digest_json(row_digests(project, name, test)),
    }


def ensemble_table(project: Project, name: str, *, quiet: bool) -> TableEnsemble:
    """Pool the OOF tables, predict the test cases with the mean of the folds, and explain the model.

    Raises:
        MissingArtefactError: a fold is not fitted.
        StaleArtefactError: a fold was fitted to other inputs.
        LeakageError: a case is predicted by two folds, or by none.
    """
    find_table(project.plan, name)
    folder = project.paths.model(name)
    with hold(folder, f"the ensemble of {name}"):
        sweep_temporaries(folder)
        made_from = ensemble_inputs(project, name)
        folds = load_folds(project.paths, project.plan, name)
        now = [fold_inputs(project, name, *split_fold(project, name, k)) for k in range(len(folds))]
        refuse_stale_folds(project.paths, name, folds, now)
        training = cases_with(project.plan.tables[name], project.dataset.train, project.scan)
        tables = [read_predictions(project.paths.fold(name, k) / "oof.csv", made_by=f"her2net_train {name}")
                  for k, record in enumerate(folds) if record.n_held_out_cases]  # fmt: skip
        oof, test = pool(tables, [case.case_id for case in training]), _predict_test(project, name, folds, quiet=quiet)
        explanation = explain_table(project, name, folds, features_of(project, name, training), training, made_from)
        if ensemble_inputs(project, name) != made_from:
            raise StaleArtefactError(f"{folder}: a fold was fitted meanwhile. Run her2net_ensemble {name} again.")
        write_pooled(folder, oof, test)
        explanation.save(folder / EXPLANATION)
        record = TableEnsemble(made_from=made_from, table=name, folds=list(range(len(folds))), n_oof=len(oof),
                               n_test=0 if test is None else len(test))  # fmt: skip
        record.save(folder / "ensemble.json")
        return record


def _predict_test(project: Project, name: str, folds: Sequence[TableFold], *, quiet: bool) -> Predictions | None:
    test = cases_with(project.plan.tables[name], project.dataset.test, project.scan)
    if not test:
        return None
    probs = mean_of_folds(folds, _rows(features_of(project, name, test, quiet=quiet), test))
    blank: list[int | None] = [None] * len(test)
    return make_predictions([c.case_id for c in test], [c.patient_id for c in test], probs, labels=blank, folds=[""] * len(test))


def _rows(table: FeatureTable, cases: Sequence[Case]) -> FeatureTable:
    place = {case_id: i for i, case_id in enumerate(table.case_ids)}
    return table.take(np.array([place[case.case_id] for case in cases], dtype=int))


def _environment(table: TablePlan) -> dict[str, str]:
    import sklearn

    versions = {"python": platform.python_version(), "scikit-learn": sklearn.__version__, "numpy": np.__version__}
    return versions | ({"mirp": require_mirp()} if table.radiomics is not None else {})
