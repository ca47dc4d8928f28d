"""Why the values of a plan that no rule derives are what they are."""

from __future__ import annotations

from her2net.networks.build import network_spec
from her2net.plan.schema import Plan, SplitScheme

DEFAULT_REASONS = {
    "preset": "as asked with --preset; auto without it",
    "budget_h": "as asked with --budget; without it 2 hours for the preset auto on a CPU, else no limit",
    "ndim": "read from the files",
    "channels": "declared in dataset.json",
    "file_ending": "declared in dataset.json",
    "margin_unit": "a margin in lesion sizes scales with the lesion",
    "derived_channels": "the paper names none",
    "burned_in": "marks are found and reported by her2net_verify; pictures are changed only if you ask for it here",
    "missing_mask": "a case without a mask is shown whole; her2net_verify warns of it",
    "warmup_epochs": "a tenth of the epochs, at most 5, so that the first updates do not break the weights",
    "label_smoothing": "a little tempers overconfidence on small cohorts (Szegedy et al. 2016, arXiv:1512.00567)",
    "gradient_clip": "norm 1 stops a single odd batch from throwing the weights off",
    "drop_path": "none",
    "checkpoint": "the last, averaged weights: no epoch is chosen on the fold that is reported",
    "seed": "fixed, so that the same inputs give the same numbers",
    "augmentation": "which of the paper's seven transforms are used; ranges and sources in her2net.plan.augmentation",
    "inference.batch_size": "does not change the predictions",
    "inference.tta": "off: it multiplies the time; her2net_ensemble --tta switches it on",
    "fusion.method": "logistic regression, as in the paper; in simulated cohorts mean and weighted pooling were calibrated worse, and "
    "choosing a method (auto) lost more than it gained",
    "fusion.strength": "a weak L2 penalty on standardised logits keeps the fit finite when the classes separate",
}
SOLVED_REASONS = {
    "warmup_epochs": "without effect: the classifier is solved, not stepped",
    "label_smoothing": "without effect: the classifier is solved, not stepped",
    "gradient_clip": "without effect: the classifier is solved, not stepped",
    "checkpoint": "the classifier is solved in one go: the last weights are the only ones",
}
SCHEME_REASONS: dict[SplitScheme, str] = {
    "stratified": "patients are the unit; folds are stratified by label and, where a site has enough patients of a class, by site",
    "leave-one-site-out": "as asked with --splits; patients are the unit",
    "custom": "as brought with --splits; patients are the unit",
}


def default_reason(plan: Plan, path: str) -> str:
    """Why a value has its default; the longest key that the path ends with or contains wins."""
    solved = [f"modalities.{name}." for name, m in plan.modalities.items() if network_spec(m.training.network).solved]
    reasons = DEFAULT_REASONS | {"splits.scheme": SCHEME_REASONS[plan.splits.scheme]}
    reasons |= SOLVED_REASONS if path.startswith(tuple(solved)) else {}
    return reasons[max((key for key in reasons if path.endswith(key) or f"{key}." in path), key=len)]
