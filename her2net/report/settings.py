"""The plan and the provenance as tables: what was decided and why, on what machine, with which software, from which data."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from her2net.artefact import digest_file
from her2net.fuse.choose import METHOD_NAMES, describe_left_out
from her2net.networks.build import network_spec
from her2net.plan.schema import ModalityPlan
from her2net.report.material import Material
from her2net.report.table import Cell, Table, make_table
from her2net.report.words import count, listed, network, number, ratio
from her2net.train.record import RunRecord
from her2net.version import __version__

DIGEST_DIGITS = 16
MACHINE_WORDS = {"python": "Python", "device": "kind of processor", "device_name": "processor", "threads": "threads of it"}
PACKAGES = ("numpy", "scipy", "scikit-learn", "statsmodels", "torch", "torchvision", "timm", "monai", "SimpleITK", "Pillow",
            "h5py", "pydantic", "matplotlib", "jinja2")  # fmt: skip


def settings_table(material: Material) -> Table:
    """Return the settings that matter most, one column per modality."""
    plans = material.plan.modalities
    masked = {name: found.n_without_mask < found.n_cases for name, found in material.fingerprint.modalities.items()}
    columns = [_settings(section, material.runs[name][0].training.epochs, masked[name]) for name, section in plans.items()]
    hours = [sum(sum(run.duration_s.values()) for run in material.runs[name]) / 3600 for name in plans]
    weights = ["; ".join(dict.fromkeys(run.checkpoint for run in material.runs[name])) for name in plans]
    balance = [class_weights(material.runs[name]) or "all alike" for name in plans]
    starts = ["; ".join(dict.fromkeys(run.initialisation for run in material.runs[name])) for name in plans]
    rows: list[list[str | Cell]] = [[name, *(column[name] for column in columns)] for name in columns[0]]
    rows += [["Class weights in the loss", *balance], ["Initial weights", *starts], ["Weights that predict", *weights],
             ["Time to train all folds", *(f"{h:.1f} h" if h >= 1 else f"{60 * h:.1f} min" for h in hours)]]  # fmt: skip
    return make_table("plan", "The plan, its main values", ["Setting", *plans], rows, sortable=False)


def class_weights(runs: Sequence[RunRecord]) -> str:
    """Return the weight of each class in the loss; each fold takes it from its own training cases. Empty if all are alike."""
    folds = [run.training.loss_weights for run in runs]
    if all(len(set(weights)) == 1 for weights in folds):
        return ""
    ends = [tuple(f"{end(of_class):.3g}" for end in (min, max)) for of_class in zip(*folds, strict=True)]
    return listed([low if low == high else f"{low} to {high}" for low, high in ends])


def _settings(section: ModalityPlan, epochs: int, masked: bool) -> dict[str, str]:
    pre, training = section.preprocessing, section.training
    unit = {"px": "px", "mm": "mm", "lesion": "of the longest lesion edge"}[pre.margin_unit]
    aspect = {"keep": "equal edges", "keep_in_plane": "equal edges within the slice", "squash": "resized without keeping shape"}
    window = f"lesion box + {pre.margin:g} {unit} on each side, {aspect[pre.aspect]}"
    stepped = not network_spec(training.network).solved
    return {
        "Channels": ", ".join([*section.channels, *pre.derived_channels]),
        "Window": window if masked else "the whole image, for want of masks",
        "Input": f"{' × '.join(map(str, pre.input_vox))} {'px' if section.ndim == 2 else 'voxels'}",
        "Normalisation": f"z-score of each case's own {pre.statistics}" + (", channels together" if pre.joint_channels else ""),
        "Network": network(training.network),
        "Epochs": _epochs(epochs, training.epochs) if stepped else "solved in one go",
        "Batch size": str(training.batch_size) if stepped else "none",
        "Learning rate": f"{training.learning_rate:g}" if stepped else "none",
        "Weight decay": f"{training.weight_decay:g}" if stepped else "none",
    }


def _epochs(done: int, planned: int) -> str:
    return str(done) if done == planned else f"{done}, as asked (the plan: {planned})"


def fusion_table(material: Material) -> Table | None:
    """Return the odds ratio of each modality in each fusion model; `None` without a fusion."""
    if material.fusion is None:
        return None
    rows: list[list[str | Cell]] = [
        [
            " + ".join(model.modalities), c.modality, c.class_name, Cell(str(model.n_cases), sort=model.n_cases),
            Cell(_ratios(c.odds_ratio, c.ci_low, c.ci_high), sort=c.odds_ratio),
            Cell(_ratios(c.odds_ratio_per_sd, c.ci_low_per_sd, c.ci_high_per_sd), sort=c.odds_ratio_per_sd),
        ]
        for model in material.fusion.models
        for c in model.coefficients
    ]  # fmt: skip
    headers = ["Cases that have", "Modality", "Class", "n", "Odds ratio per unit of logit (95 % interval)",
               "Odds ratio per standard deviation (95 % interval)"]  # fmt: skip
    return make_table("fusion", "Weight of each modality in the fusion", headers, rows, numeric=(3, 4, 5), notes=(
        f"Intervals: {material.fusion.ci_method}. An odds ratio of 1 means no weight; those per standard deviation can be "
        "compared between modalities. Without interval: left out, because the fit would have turned its predictions around.",
        *describe_left_out(material.fusion.left_out),
    ))  # fmt: skip


def fusion_methods_table(material: Material) -> Table | None:
    """Return the inner estimates that the way of fusing was chosen by; `None` where the plan names it."""
    selection = None if material.fusion is None else material.fusion.selection
    if selection is None:
        return None
    rows: list[list[str | Cell]] = [
        [
            c.method, METHOD_NAMES[c.method], Cell(str(c.n_parameters), sort=c.n_parameters), Cell(number(c.log_loss), sort=c.log_loss),
            "" if c.excess is None or c.excess_se is None else f"{c.excess:.4f} ± {c.excess_se:.4f}",
            Cell(str(c.n_patients), sort=c.n_patients), "chosen" if c.method == selection.chosen else c.reason,
        ]
        for c in selection.candidates
    ]  # fmt: skip
    headers = ["Method", "What it is", "Fitted numbers", "Log loss, out of fold", "Above the best (± SE)", "Patients", "Remark"]
    per_fold = ", ".join(f"fold {k}: {method}" for k, method in enumerate(selection.per_fold))
    return make_table("fusion_methods", "Ways of fusing, estimated in an inner loop", headers, rows, numeric=(2, 3, 4, 5), notes=(
        f"Rule: {selection.rule}. Criterion: {selection.criterion}.",
        f"The out-of-fold figures of the fusion come from a choice made anew without the patients of each fold: {per_fold}.",
    ))  # fmt: skip


def _ratios(value: float, low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return ratio(value)
    return f"{ratio(value)} ({ratio(low)} to {ratio(high)})"


def decisions_table(material: Material) -> Table:
    """Return every value of the plan with the rule that chose it and why; the user's own values are marked."""
    edited = material.plan.edited
    rows: list[list[str | Cell]] = []
    for decision in [d for d in material.plan.decisions if not material.plan.is_removed(d.path)]:
        if decision.path in edited:
            value = Cell(f"{_shown(edited[decision.path])} (edited by hand)", mark="author")
            rows.append([decision.path, value, decision.rule, f"the rule chose {_shown(decision.value)}: {decision.reason}"])
        else:
            rows.append([decision.path, _shown(decision.value), decision.rule, decision.reason])
    return make_table("decisions", "Every decision of the plan", ["Value of", "Is", "Rule", "Reason"], rows)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def software_table(material: Material) -> Table:
    """Return the versions here and now, and those that each modality was trained with."""
    here = {"her2net": __version__, "Python": platform.python_version()} | {name: _version(name) for name in PACKAGES}
    trained = {name: runs[0].environment for name, runs in material.runs.items() if runs}
    rows: list[list[str | Cell]] = [[name, version, "", "evaluation and report"] for name, version in here.items()]
    used: dict[tuple[str, str], list[str]] = {}
    for name, found in trained.items():
        for key, value in found.items():
            used.setdefault((MACHINE_WORDS.get(key, key), value), []).append(name)
    rows += [[key, value, listed(names), "training"] for (key, value), names in used.items()]
    return make_table("software", "Software and machine", ["What", "Version", "Modality", "Used for"], rows)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def digests_table(material: Material, made_from: Mapping[str, str]) -> Table:
    """Return the digests of what the report and the artefacts before it were made from."""
    paths = material.project.paths
    rows: list[list[str | Cell]] = [[name, digest, "report"] for name, digest in made_from.items() if _is_digest(digest)]
    rows += [[name, digest, "evaluation"] for name, digest in material.evaluation.made_from.items() if _is_digest(digest)]
    rows += [[name, digest, "plan"] for name, digest in material.plan.made_from.items()]
    rows += [["training cases and their files", material.fingerprint.dataset_digest, "fingerprint"],
             ["cases.csv", digest_file(paths.raw / "cases.csv"), "raw data"],
             ["dataset.json", digest_file(paths.raw / "dataset.json"), "raw data"]]  # fmt: skip
    return make_table("digests", "Digests: same digest, same content", ["What", "Digest (BLAKE2b, 64 bit)", "Input of"], rows)


def _is_digest(value: str) -> bool:
    """Tell a digest from the other things that a record of inputs holds, such as a version or a switch."""
    return len(value) == DIGEST_DIGITS


def openings_table(material: Material) -> Table:
    """Return each opening of the test labels."""
    rows: list[list[str | Cell]] = [
        [Cell(str(i), sort=i), str(entry.get("time", ""))[:16].replace("T", " "), f"her2net_{entry.get('purpose', '')}",
         str(entry.get("her2net_version", "")), str(entry.get("n_cases", ""))]
        for i, entry in enumerate(material.openings, start=1)
    ]  # fmt: skip
    return make_table("openings", f"The test labels were opened {count(len(rows), 'time')}, this report included",
                      ["No.", "When (UTC)", "By", "her2net", "Labels"], rows, numeric=(0, 4))  # fmt: skip


def problems_table(material: Material) -> Table | None:
    """Return the warnings about the raw data, or how many there are of each kind where no case may be named.

    `None` if there are none.
    """
    rows: list[list[str | Cell]] = [[p.where, p.check, p.message] for p in material.problems]
    if not rows:
        return None
    if material.pseudonyms is not None:
        counts = Counter(p.check for p in material.problems)
        return make_table("data_warnings", "Warnings of her2net_verify, which names the cases", ["Check", "Warnings"],
                          [[check, Cell(str(n), sort=n)] for check, n in counts.items()], numeric=(1,))  # fmt: skip
    return make_table("data_warnings", "Warnings of her2net_verify", ["Where", "Check", "What"], rows)
