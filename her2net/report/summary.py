"""The first screen: what was asked, the answer with its interval and n, and what it may not be used for."""

from __future__ import annotations

from dataclasses import dataclass

from her2net.evaluate.record import RESEMBLING, Metric
from her2net.report.material import Material
from her2net.report.results import confusion_counts
from her2net.report.words import cohort_name, count, estimate, listed, number, percent, with_interval


@dataclass(frozen=True)
class Rate:
    """A rate at the threshold in words."""

    name: str
    plain: str
    interval: str


@dataclass(frozen=True)
class Summary:
    """The answer.

    Attributes:
        question: what was asked.
        model: whose figures answer it; `cohort` in which patients.
        auc: with interval; `plain` says what it means. `value` and `interval` are its parts.
        verdict: whether it is more than guessing, as the interval says.
        rates: sensitivity and specificity; empty with more than two classes.
        others: (model, AUC with interval, n) of the other models in the same cohort.
        without: the answer without test cases that resemble a training case; empty if there are none.
    """

    question: str
    model: str
    cohort: str
    n_text: str
    auc: str
    value: str
    interval: str
    auc_method: str
    plain: str
    verdict: str
    better: bool
    rates: list[Rate]
    others: list[tuple[str, str, str]]
    without: str
    n: int


def summarise(material: Material) -> Summary:
    """Word the answer."""
    model, cohort = material.headline
    auc = material.metric(model, cohort, "auc")
    names = material.class_names
    modalities = [m for m in material.plan.modalities if (m, cohort) in material.tables]
    what = f"“{names[1]}” from “{names[0]}”" if material.binary else listed([f"“{name}”" for name in names]) + " apart"
    verdict, better = _judge(auc)
    others = [(m, material.metric(m, cohort, "auc")) for m in material.models if m != model]
    table = material.known(model, cohort)
    positive = f", {int((table.labels == 1).sum())} of them {names[1]}" if material.binary else ""
    return Summary(
        question=f"Can a network tell {what} on {listed(modalities)}?", model=model, cohort=cohort_name(cohort),
        n_text=f"{count(len(table), 'case')} of {count(len(set(table.patient_ids)), 'patient')}{positive}",
        auc=estimate(auc), value=number(auc.value if auc else None), interval=_interval(auc),
        auc_method=auc.ci_method if auc else "", plain=_plain(material, auc), verdict=verdict, better=better,
        rates=_rates(material, model, cohort),
        others=[(m, estimate(found), f"n = {found.n}") for m, found in others if found is not None],
        without=_without(material, model), n=len(table),
    )  # fmt: skip


def _interval(metric: Metric | None) -> str:
    if metric is None or metric.ci_low is None or metric.ci_high is None:
        return "no interval"
    return f"{number(metric.ci_low)} to {number(metric.ci_high)}"


def _without(material: Material, model: str) -> str:
    found = material.metric(model, RESEMBLING, "auc")
    if found is None:
        return ""
    n = len(material.project.splits.resembling_test_cases)
    verdict, whole = _judge(found)[0], _judge(material.metric(model, "test", "auc"))[0]
    which = f"{count(n, 'test case')} that nearly equal{'s' if n == 1 else ''} a training case"
    text = f"Without the {which}: AUC {estimate(found)}, n = {found.n}."
    return text if verdict == whole or found.value is None else f"{text} {verdict}"


def _judge(auc: Metric | None) -> tuple[str, bool]:
    if auc is None or auc.value is None:
        return f"The AUC is undefined here: {auc.reason if auc else 'no labelled case'}.", False
    if auc.ci_low is None or auc.ci_high is None:
        return "There is no interval, so nothing is shown.", False
    if auc.ci_low > 0.5:
        return "Better than guessing in these patients: the whole interval lies above 0.5.", True
    if auc.ci_high < 0.5:
        return "Worse than guessing: the whole interval lies below 0.5. Look for swapped labels.", False
    return "Not shown to be better than guessing: the interval includes 0.5.", False


def _plain(material: Material, auc: Metric | None) -> str:
    if auc is None or auc.value is None:
        return ""
    if not material.binary:
        return "Mean over the classes of how well each is told from the rest; 0.5 is guessing, 1 is perfect."
    negative, positive = material.class_names[0], material.class_names[1]
    return (
        f"Of two cases, one {positive} and one {negative}, the model gives the {positive} one the higher probability "
        f"in about {100 * auc.value:.0f} of 100 such pairs. 50 would be guessing, 100 perfect."
    )


def _rates(material: Material, model: str, cohort: str) -> list[Rate]:
    if not material.binary:
        return []
    counts, names = confusion_counts(material, model, cohort), material.class_names
    rates = []
    for c, name in ((1, "sensitivity"), (0, "specificity")):
        metric = material.metric(model, cohort, name)
        if metric is None or metric.value is None:
            continue
        plain = f"{counts[c, c]} of {counts[c].sum()} {names[c]} cases recognised ({percent(metric.value)})"
        rates.append(Rate(name.capitalize(), plain, with_interval(metric.value, metric.ci_low, metric.ci_high)))
    return rates
