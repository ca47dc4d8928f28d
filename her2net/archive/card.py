"""The model card: what a model is for, what it learned from, how well it does and where it stops. Markdown.

Written from the artefacts alone, and from nothing that names a person, a place, a file or a day.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from her2net.archive.licence import Licence
from her2net.evaluate.estimate import fixed
from her2net.evaluate.record import Evaluation, Metric
from her2net.fingerprint import Fingerprint, ModalityFingerprint, Spread
from her2net.fuse.choose import METHOD_NAMES
from her2net.fuse.stage import FusionRecord
from her2net.networks.build import network_spec
from her2net.plan.schema import Plan
from her2net.trained import TrainedModel
from her2net.version import __version__

SHOWN = (
    "auc", "pr_auc", "sensitivity", "specificity", "accuracy", "balanced_accuracy", "brier", "calibration_slope",
    "calibration_intercept",
)  # fmt: skip
OF_EACH_CLASS = ("auc_class_", "sensitivity_class_")
COHORTS = {
    "oof": "training patients, each predicted by the fold that did not see them",
    "test": "test cases, predicted by all folds together, as this archive predicts",
    "test-without-resembling": "test cases without those that look like a training case",
}
MANY_POSITIVES = 100


@dataclass(frozen=True)
class Training:
    """What became of one modality's training: epochs of each fold, and where the weights started."""

    epochs: tuple[int, ...]
    start: str


def write_card(model: TrainedModel, evaluation: Evaluation, training: Mapping[str, Training], licence: Licence) -> str:
    """Return the model card."""
    plan, cohort = model.plan, model.fingerprint
    parts = [
        f"# Model card: {_escape(plan.dataset)}, plan {_escape(plan.name)}",
        f"Written by her2net {__version__} from the files of this model; every figure is taken from them.",
        "## Intended use", _intended_use(plan),
        "## Input", _inputs(plan, cohort),
        *(["## Table models", _tables(model)] if model.tables else []),
        "## Training cohort", _cohort(cohort),
        "## Training", _training(plan, training),
        "## Performance", _performance(evaluation),
        "## Decisions", _decisions(model),
        "## Limits", _limits(model, evaluation),
        "## Licence", f"{_escape(licence.identifier)}; the text is in licence.txt." if licence.identifier else licence.text.strip(),
    ]  # fmt: skip
    return "\n\n".join(parts) + "\n"


def _intended_use(plan: Plan) -> str:
    names = [*plan.modalities, *plan.tables]
    source = " or ".join(names) + (", or a fusion of them" if len(names) > 1 else "")
    classes = ", ".join(f"{_escape(name)} ({i})" for i, name in enumerate(plan.class_names))
    return (
        f"Gives each case (one lesion) a probability for each class, from {source}. Classes: {classes}.\n\n"
        "For research: to be tested on other cohorts and compared with other models. It is not a medical device; no "
        "decision about a patient may rest on it."
    )


def _inputs(plan: Plan, cohort: Fingerprint) -> str:
    rows = []
    for name, section in plan.modalities.items():
        trained = cohort.modalities[name]
        rows.append([
            name, ", ".join(section.channels), section.file_ending, f"{section.ndim}D", _axes(trained.size_vox),
            _axes(trained.spacing_mm) if trained.spacing_mm else "unknown", _masks(trained),
        ])  # fmt: skip
    header = ["modality", "channels", "files", "axes", "size (voxels)", "spacing (mm)", "lesion masks"]
    return _table(header, rows) + "\n\nSize and spacing: median (smallest to largest) per axis of the training images."


def _tables(model: TrainedModel) -> str:
    rows = []
    for name, folds in model.tables.items():
        table = model.plan.tables[name]
        covariates = ", ".join(f"{column} ({kind})" for column, kind in table.columns.items())
        mirp = folds[0].environment.get("mirp", "")
        learners = Counter(record.model.chosen.learner.replace("_", " ") for record in folds)
        read = {term.column for record in folds for term in record.model.encoding.terms}
        source = f"{table.modality} with lesion mask; mirp {mirp}" if table.modality else f"covariates of cases.csv: {covariates}"
        rows.append([
            name, source,
            ", ".join(f"{learner} in {n}" for learner, n in learners.items()), len(read),
            " to ".join(str(n) for n in sorted({f(record.model.n_cases for record in folds) for f in (min, max)})),
        ])  # fmt: skip
    header = ["model", "reads", "learner in folds", "columns used by any fold", "training cases of a fold"]
    return _table(header, rows) + (
        "\n\nThey hold no row of a case, but figures of the training cases: of each column mean, SD, the median or the most frequent "
        "level, the names of its levels, and for radiomics 21 quantiles, any of which may be the value of one case; of a forest "
        "the thresholds of its splits and the share of each class in its leaves (three cases or more)."
    )


def _masks(trained: ModalityFingerprint) -> str:
    n_with = trained.n_cases - trained.n_without_mask
    return f"{n_with} of {trained.n_cases}" + ("; expected with new images" if n_with > trained.n_cases / 2 else "")


def _cohort(cohort: Fingerprint) -> str:
    rows = [[name, cohort.cases_per_class[name], cohort.patients_per_class[name]] for name in cohort.class_names]
    rows.append(["all", cohort.n_cases, cohort.n_patients])
    sites = f" From {cohort.n_sites} sites." if cohort.n_sites else ""
    return _table(["class", "cases", "patients"], rows) + f"\n\nTest cases: {cohort.test_cases}.{sites}"


def _training(plan: Plan, training: Mapping[str, Training]) -> str:
    rows = []
    for name, section in plan.modalities.items():
        done = training[name]
        start, epochs = done.start, str(min(done.epochs)) + f" to {max(done.epochs)}" * (len(set(done.epochs)) > 1)
        if network_spec(section.training.network).solved:
            start, epochs = "nothing: the filters are fixed", "none: the classifier is solved"
        size = " x ".join(map(str, section.preprocessing.input_vox))
        rows.append([name, section.training.network, size, start, epochs, len(done.epochs)])
    sources = sorted({network_spec(section.training.network).source for section in plan.modalities.values()})
    table = _table(["modality", "network", "network input", "weights start from", "epochs", "folds"], rows)
    return table + "\n\nNetworks: " + ". ".join(sources) + "."


def _performance(evaluation: Evaluation) -> str:
    shown = [metric for metric in evaluation.metrics
             if (metric.metric in SHOWN or metric.metric.startswith(OF_EACH_CLASS)) and metric.cohort in COHORTS]  # fmt: skip
    rows = [
        [row.model, row.cohort, row.metric, _estimate(row), row.ci_method, row.n, row.n_positive,
         "" if row.threshold is None else f"{row.threshold:.4f}"]
        for row in shown
    ]  # fmt: skip
    header = ["model", "cohort", "figure", "value [95 % interval]", "interval by", "n", "positive", "threshold"]
    found = dict.fromkeys(row.cohort for row in shown)
    lines = [_table(header, rows), "\n".join(f"- `{cohort}`: {COHORTS[cohort]}." for cohort in found)]
    if any(row.metric.startswith(OF_EACH_CLASS) for row in shown):
        lines.append("`_class_0` and so on: that class, by its number, against the rest; its cases are the positive ones. Of other "
                     "figures they are those of any class but the first.")  # fmt: skip
    remarks = dict.fromkeys(f"- {row.model}, {row.cohort}: {row.remark}." for row in shown if row.remark)
    return "\n\n".join([*lines, *(["Read with:\n\n" + "\n".join(remarks)] if remarks else [])])


def _estimate(row: Metric) -> str:
    if row.value is None:
        return f"undefined ({row.reason})" if row.reason else "undefined"
    if row.ci_low is None or row.ci_high is None:
        return fixed(row.value)
    return f"{fixed(row.value)} [{fixed(row.ci_low)}, {fixed(row.ci_high)}]"


def _decisions(model: TrainedModel) -> str:
    fused = [] if model.fusion is None else [_fusion(model.fusion)]
    if not model.thresholds.models:
        return "\n\n".join(["The most probable class.", *fused])
    rows = [[name, f"{t.value:.4f}", t.rule if t.parameter is None else f"{t.rule} {t.parameter:g}",
             f"{t.n} out-of-fold cases" if t.chosen_on == "oof" else "nothing"]
            for name, t in model.thresholds.models.items()]  # fmt: skip
    return "\n\n".join([_table(["model", "positive from", "rule", "chosen on"], rows), *fused])


def _fusion(fusion: FusionRecord) -> str:
    rows = [
        [" + ".join(fitted.modalities), c.modality, c.class_name, f"{c.odds_ratio_per_sd:.2f}", fitted.n_cases]
        for fitted in fusion.models
        for c in fitted.coefficients
    ]
    header = ["modalities at hand", "modality", "class", "odds ratio per SD of its logit", "cases"]
    how = f"Fusion: {METHOD_NAMES[fusion.method]}; fitted on {fusion.fitted_on} predictions."
    return f"{how}\n\n{_table(header, rows)}"


def _limits(model: TrainedModel, evaluation: Evaluation) -> str:
    cohort = model.fingerprint
    smallest = min(cohort.patients_per_class.values())
    limits = [
        "Images from other devices or protocols than those above: the probabilities may be wrong without showing it. "
        "`her2net_predict` warns where size, spacing, intensities or masks are outside the range of the training images.",
        f"The probabilities reflect the share of classes in the training cohort ({_shares(cohort)}), not that of another clinic.",
    ]
    chosen_on = {threshold.chosen_on for threshold in model.thresholds.models.values()}
    if "oof" in chosen_on:
        limits.append("The thresholds were chosen in the training cohort, by the rule above; they are no clinical recommendation.")
    elif chosen_on:
        limits.append("The thresholds were given beforehand and not chosen on patients; they are no clinical recommendation.")
    if smallest < MANY_POSITIVES:
        least = "smaller" if len(cohort.class_names) == 2 else "smallest"
        patients = f"{smallest} patient{'s' * (smallest != 1)}"
        limits.append(f"The {least} class has {patients}: read the intervals, not the values alone.")
    if not any(metric.cohort.startswith("test") for metric in evaluation.metrics):
        limits.append("It was not tested on patients apart from the training cohort.")
    if cohort.n_sites <= 1:
        limits.append("Nothing is known of how it does at another site.")
    if any(trained.n_missing for trained in cohort.modalities.values()):
        absent = ", ".join(f"{name} {trained.n_missing}" for name, trained in cohort.modalities.items())
        limits.append(f"Training cases that lack a modality: {absent}.")
    return "\n".join(f"- {text}" for text in limits)


def _shares(cohort: Fingerprint) -> str:
    return ", ".join(f"{_escape(name)} {n / cohort.n_cases:.0%}" for name, n in cohort.cases_per_class.items())


def _axes(spreads: Sequence[Spread]) -> str:
    return " x ".join(f"{s.median:.4g} ({s.minimum:.4g} to {s.maximum:.4g})" for s in spreads)


def _table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(_escape(cell) for cell in line) + " |" for line in lines)


def _escape(cell: object) -> str:
    return str(cell).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|").replace("\n", " ")
