"""What the columns of `cases.csv` say together: classes that go with the site, covariates that one part lacks, patients
spelled in two ways, swapped labels.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from her2net.raw.dataset import Case, RawDataset
from her2net.raw.names import word_key
from her2net.raw.problems import Problem, enumerate_names, problem

SITE_P = 0.01
"""Classes whose share differs between sites by more than chance, at this level, are worth a warning."""
WORDS = ("negative", "positive")
LEADING_ZEROS = re.compile(r"(?<!\d)0+(?=\d)")


def check_columns(dataset: RawDataset) -> list[Problem]:
    """Return warnings; labels of test cases are not looked at."""
    return [*_check_positive(dataset.class_names), *_check_patients(dataset), *_check_sites(dataset), *_check_covariates(dataset)]


def _check_patients(dataset: RawDataset) -> list[Problem]:
    """Warn of names that may be one patient's: they are told apart, and may stand on both sides of a fold."""
    alike: dict[str, set[str]] = defaultdict(set)
    for case in dataset.cases:
        spelled = "".join(word_key(case.patient_id).split()).removesuffix(".0")
        alike[LEADING_ZEROS.sub("", spelled)].add(case.patient_id)
    groups = [" and ".join(map(repr, sorted(names))) for _, names in sorted(alike.items()) if len(names) > 1]
    if not groups:
        return []
    what = f"names that differ in case, spaces or leading zeros alone are taken for several patients: {enumerate_names(groups)}"
    remedy = "If they are one patient, spell the name alike, or the patient may stand on both sides of a fold."
    return [problem("warning", "patient-spelling", f"cases.csv column {dataset.spec.patient}", what, remedy=remedy)]


def _check_positive(class_names: Sequence[str]) -> list[Problem]:
    """Class 1 of two is the positive one, whatever it is called."""
    names = [name.casefold() for name in class_names]
    if len(names) != 2 or not all(word in name for word, name in zip(reversed(WORDS), names, strict=True)):
        return []
    what = f"{class_names[1]!r} is 1 and so the positive class: sensitivity, PPV and thresholds will be those of {class_names[1]!r}"
    remedy = f"If that is not meant, number them the other way round: {class_names[0]!r} 1, {class_names[1]!r} 0."
    return [problem("warning", "labels-swapped", "dataset.json labels", what, remedy=remedy)]


def _check_sites(dataset: RawDataset) -> list[Problem]:
    """Warn where the class goes with the site: a network would learn the scanner."""
    from scipy.stats import chi2_contingency

    patients = {(case.site, case.patient_id, case.label) for case in dataset.train if case.site and case.label is not None}
    sites = sorted({site for site, _, _ in patients})
    table = [[sum(s == site and label == c for s, _, label in patients) for c in range(len(dataset.class_names))] for site in sites]
    if len(sites) < 2 or not all(map(sum, zip(*table, strict=True))) or chi2_contingency(table).pvalue >= SITE_P:
        return []
    counts = [f"{site}: " + ", ".join(f"{n} {name}" for n, name in zip(row, dataset.class_names, strict=True))
              for site, row in zip(sites, table, strict=True)]  # fmt: skip
    what = f"the classes differ between the sites, in patients: {'; '.join(counts)}"
    remedy = "A network may learn the site instead of the lesion: run her2net_selftest, and read the figures by site."
    return [problem("warning", "site-class", f"cases.csv column {dataset.spec.site}", what, remedy=remedy)]


def _check_covariates(dataset: RawDataset) -> list[Problem]:
    problems = []
    for name, kind in dataset.spec.covariates.items():
        train, test = (_filled(cases, name) for cases in (dataset.train, dataset.test))
        where = f"cases.csv column {name}"
        if dataset.test and bool(train) != bool(test):
            filled, empty = ("training", "test") if train else ("test", "training")
            what = f"has values in {filled} cases and in no {empty} case"
            remedy = "Fill it in both, or take it out of dataset.json."
            problems.append(problem("warning", "covariate-one-part", where, what, remedy=remedy))
        new = sorted(set(test) - set(train))
        if train and new and kind in ("binary", "categorical"):
            what = f"{sum(value in new for value in test)} test case(s) have values that no training case has: {enumerate_names(new)}"
            remedy = "Models take them for missing; correct the spelling if they are others."
            problems.append(problem("warning", "level-untrained", where, what, remedy=remedy))
    return problems


def _filled(cases: Sequence[Case], column: str) -> list[str]:
    return [value for case in cases if (value := case.covariates.get(column))]
