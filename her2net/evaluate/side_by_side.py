"""What prediction tables from anywhere must have in common, before they are evaluated side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from her2net.errors import LeakageError, PredictionTableError, describe, join_problems
from her2net.evaluate.labels import name_patients
from her2net.predictions import Predictions, make_predictions
from her2net.raw.names import normalise
from her2net.raw.problems import enumerate_names
from her2net.raw.rows import is_missing, known_or_empty


def cohort_of(table: Predictions) -> str:
    """Return `oof` of a table whose fold is filled, else `test`."""
    return "oof" if any(table.folds) else "test"


def compose_ids(file: Path, table: Predictions) -> Predictions:
    """Return the table with ids in composed Unicode form, so that a name is one name whichever system wrote it.

    A patient or a fold that is written as missing, such as R's `NA`, is none: it neither makes one patient of all cases nor
    out-of-fold predictions of test cases.

    Raises:
        PredictionTableError: two cases have one name then.
    """
    cases = [normalise(name) for name in table.case_ids]
    patients = [case if is_missing(name) else normalise(name) for case, name in zip(cases, table.patient_ids, strict=True)]
    repeated = sorted(name for name, n in Counter(cases).items() if n > 1)
    if repeated:
        what, remedy = f"cases differ only in Unicode form: {enumerate_names(repeated)}", "Give each case its own case_id."
        raise PredictionTableError(describe(what, where=f"{file}: column case_id", remedy=remedy))
    labels = [None if label < 0 else label for label in table.labels.tolist()]
    folds = [known_or_empty(fold) for fold in table.folds]
    return make_predictions(cases, patients, table.probs, labels=labels, folds=folds)


def refuse_mixture(file: Path, table: Predictions) -> None:
    """Refuse a table of which some rows are out-of-fold and some are not.

    Raises:
        PredictionTableError: with how many.
    """
    n = sum(map(bool, table.folds))
    if 0 < n < len(table):
        what, found = "out-of-fold and test predictions stand in one table", f"filled in {n} of {len(table)} rows"
        remedy = "Make two tables of it; two of one name in two folders go together."
        where, expected = f"{file}: column fold", "in all rows or in none"
        raise PredictionTableError(describe(what, where=where, found=found, expected=expected, remedy=remedy))


def refuse_same_names(files: Sequence[tuple[Path, Predictions]]) -> None:
    """Refuse two tables that would be one model in one cohort.

    Raises:
        PredictionTableError: names the files.
    """
    parts = Counter((file.stem, cohort_of(table)) for file, table in files)
    repeated = sorted({name for (name, _), n in parts.items() if n > 1})
    if repeated:
        headline = (
            f"A model is named after its file, and {', '.join(repeated)} occurs twice. Rename one. (Two files of one name go "
            "together if one is out-of-fold, with the column fold filled, and the other is of test cases.)"
        )
        raise PredictionTableError(join_problems(headline, [str(file) for file, _ in files if file.stem in repeated]))


def share_patients(tables: Mapping[tuple[str, str], Predictions]) -> dict[tuple[str, str], Predictions]:
    """Give each case the patient that any of the tables names; a table without patients counts each case as its own."""
    known = {c: p for table in tables.values() for c, p in zip(table.case_ids, table.patient_ids, strict=True) if c != p}
    return {key: name_patients(table, known) for key, table in tables.items()}


def refuse_contradictions(tables: Mapping[tuple[str, str], Predictions]) -> None:
    """Refuse tables that give a case different labels, patients or numbers of classes.

    Raises:
        PredictionTableError: every contradiction, with the two tables.
    """
    seen: dict[str, tuple[str, int, str]] = {}
    problems = []
    classes = {model: table.n_classes for (model, _), table in tables.items()}
    if len(set(classes.values())) > 1:
        problems.append("they have different numbers of classes: " + ", ".join(f"{m} {n}" for m, n in classes.items()))
    for (model, _), table in tables.items():
        for case_id, label, patient in zip(table.case_ids, table.labels.tolist(), table.patient_ids, strict=True):
            other, known, owner = seen.setdefault(case_id, (model, label, patient))
            if known != label and known >= 0 <= label:
                problems.append(f"{case_id}: label {known} in {other}, {label} in {model}")
            if owner != patient:
                problems.append(f"{case_id}: patient {owner!r} in {other}, {patient!r} in {model}")
    if problems:
        raise PredictionTableError(join_problems("The prediction tables contradict each other.", problems))


def refuse_shared_patients(tables: Mapping[tuple[str, str], Predictions]) -> None:
    """Refuse a model that is tested on patients of its own training.

    Raises:
        LeakageError: names them.
    """
    for model in [name for name, cohort in tables if cohort == "oof" and (name, "test") in tables]:
        shared = sorted(set(tables[model, "oof"].patient_ids) & set(tables[model, "test"].patient_ids))
        if shared:
            raise LeakageError(
                f"{model}: {len(shared)} patients of its test table are in its out-of-fold table, so the model was trained on "
                f"them: {', '.join(shared[:5])}{', ...' if len(shared) > 5 else ''}. Leave them out of one of the two."
            )
