"""What a self-test leaves on disk and says: `selftest.json`, `selftest.csv`, a table, and a sentence per probe."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

from her2net.artefact import Artefact, Strict

ProbeName = Literal["image", "outline", "background", "lesion size", "metadata", "permuted labels"]
COLUMNS = ("modality", "probe", "auc", "ci_low", "ci_high", "ci_method", "n", "n_positive", "image_auc", "verdict")
AS_WELL = 0.9
"""A probe that reaches this share of what the image gives above chance does as well as the image."""

SUBJECT = {
    "outline": "The outline alone",
    "background": "The surroundings without the lesion",
    "lesion size": "Size and place of the lesion alone",
    "metadata": "Site, image size, spacing and brightness alone",
}
ADVICE = {
    "outline": "Either shape is the sign, or whoever drew the outlines knew the diagnosis: the results hold for outlines "
    "drawn in the same way, and for no others.",
    "background": "Shadow and invasion are signs; a scanner or a preset that differs between the classes is a shortcut: "
    "compare with the metadata, and look at the images.",
    "lesion size": "Say so beside every result: a ruler would do part of the work.",
    "metadata": "The classes differ before anybody looks at a lesion: balance sites and scanners, and test with "
    "--splits leave-one-site-out.",
}


class ProbeResult(Strict):
    """One row: how well the classes are told apart by this probe, out of fold.

    Attributes:
        model: network, or random forest.
        auc: area under the ROC curve; mean one-vs-rest area for several classes.
        ci_low: of 95 %; of 99 % for permuted labels, where a false alarm would be dear.
        n: cases; those without a mask take no part in the probes that need one.
        n_positive: cases of any class but the first.
        image_auc: what it is compared with: the plan's model where it is trained, else the quick one.
        verdict: in words.
        hint: the strongest single column, where the probe is made of columns.
    """

    modality: str
    probe: ProbeName
    model: str
    auc: float
    ci_low: float | None
    ci_high: float | None
    ci_method: str
    n: int
    n_positive: int
    image_auc: float
    verdict: str
    hint: str = ""


class SelfTest(Artefact):
    """`selftest.json`.

    Attributes:
        n_permutations: trainings on permuted labels.
        results: rows of `selftest.csv`.
        skipped: "modality probe" -> why it could not be made.
        leak: whether permuted labels could be predicted in any modality.
    """

    MADE_BY: ClassVar[str] = "her2net_selftest"

    n_permutations: int
    results: list[ProbeResult]
    skipped: dict[str, str]
    leak: bool


def is_leak(low: float | None) -> bool:
    """Whether labels that belong to nobody could be predicted: the interval lies above 0.5."""
    return low is not None and low > 0.5


def word_verdict(probe: ProbeName, auc: float, low: float | None, high: float | None, image_auc: float) -> str:
    """Say in plain words what a probe's AUC means.

    Args:
        low, high: interval of the AUC.
        image_auc: of the image itself.
    """
    figure = f"AUC {auc:.2f}" + (f" ({low:.2f} to {high:.2f})" if low is not None and high is not None else "")
    if probe == "permuted labels":
        if is_leak(low):
            return f"LEAK: labels given to the wrong patients are predicted with {figure}. No result of this plan can be trusted."
        return f"Labels given to the wrong patients cannot be predicted: {figure}, as it must be."
    if probe == "image":
        return f"What the same quick training makes of the image itself: {figure}."
    if low is None or low <= 0.5:
        return f"{SUBJECT[probe]} {'tells' if probe == 'outline' else 'tell'} nothing that shows in these cases: {figure}."
    gives = "gives" if probe == "outline" else "give"
    share = (auc - 0.5) / (image_auc - 0.5) if image_auc > 0.5 else float("inf")
    if share >= AS_WELL:
        return f"{SUBJECT[probe]} {gives} {figure}; the image gives {image_auc:.2f}, no more. {ADVICE[probe]}"
    return f"{SUBJECT[probe]} {gives} {figure}, {share:.0%} of what the image ({image_auc:.2f}) gives above chance. {ADVICE[probe]}"


def format_table(record: SelfTest) -> str:
    """Return the rows as a table, then the sentences."""
    width = max(len(row.modality) for row in record.results) + 2
    lines = [f"{'':<{width}}{'probe':<18}{'AUC':<7}{'interval':<17}{'n':>5}{'image':>8}"]
    for row in record.results:
        interval = "" if row.ci_low is None or row.ci_high is None else f"{row.ci_low:.3f} to {row.ci_high:.3f}"
        lines.append(f"{row.modality:<{width}}{row.probe:<18}{row.auc:<7.3f}{interval:<17}{row.n:>5}{row.image_auc:>8.3f}")
    lines += ["", *(f"{row.modality}: {row.verdict}" + (f" {row.hint}" if row.hint else "") for row in record.results)]
    lines += [f"{name}: not made, {why}" for name, why in record.skipped.items()]
    return "\n".join(lines)


def csv_rows(results: Sequence[ProbeResult]) -> list[dict[str, object]]:
    """Return the rows of `selftest.csv`."""
    return [row.model_dump(include=set(COLUMNS)) for row in results]
