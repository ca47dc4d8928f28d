"""The planning stage: fingerprint (+ machine, budget) → plan.

`make_plan` only arranges what the rules of `rules.py` or the paper's values say, and
keeps each choice with its reason. It measures nothing itself: `measure` is called for
the candidates of a modality when a budget has to be met.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from her2net.errors import PlanError
from her2net.fingerprint import Fingerprint, ModalityFingerprint
from her2net.plan import rules
from her2net.plan.augmentation import default_augmentation, mirrors_only, paper_augmentation
from her2net.plan.machine import Machine, speed_key
from her2net.plan.reasons import default_reason
from her2net.plan.rules import Candidate, Choice
from her2net.plan.schema import (
    Decision,
    FusionPlan,
    InferencePlan,
    ModalityPlan,
    Plan,
    PreprocessingPlan,
    Preset,
    SplitScheme,
    SplitsPlan,
    TrainingPlan,
)

PAPER = "Fan et al. 2025, doi:10.17305/bb.2025.12475"
DEFAULT_CPU_BUDGET_H = 2.0
JITTER = 8  # the cache stores an eighth more than the network sees on each side


@dataclass(frozen=True)
class PlanRequest:
    """What the user and the dataset ask of a plan.

    Attributes:
        present: set of modalities -> number of training cases that have exactly these.
        file_endings: modality -> ending of its image files.
        budget_h: hours for all training, `None` for no limit.
        n_own_folds: number of folds the user brought, `None` if the planner decides.
        n_sites: number of sites that can be held out, one per fold; `None` if that is not asked for.
        pretrained_at_hand: network name -> whether its weights can be had now.
        measure: (network, input size, channels, batch) -> training speed in samples/s.
        memory_gb: (network, input size, channels, batch, cases) -> memory that training takes.
    """

    name: str
    preset: Preset
    fingerprint: Fingerprint
    present: Mapping[tuple[str, ...], int]
    file_endings: Mapping[str, str]
    machine: Machine
    budget_h: float | None
    n_own_folds: int | None
    n_sites: int | None
    pretrained_at_hand: Callable[[str], bool]
    measure: Callable[[str, list[int], int, int], float]
    memory_gb: Callable[[str, list[int], int, int, int], float]
    seed: int = 0


class _Decisions:
    """Collects decisions in the order in which they are taken, and the speeds they rest on."""

    def __init__(self) -> None:
        self.taken: list[Decision] = []
        self.speeds: dict[str, float] = {}

    def take(self, path: str, rule: str, choice: Choice) -> Any:
        """Record a choice and return its value."""
        self.taken.append(Decision(path=path, value=choice.value, rule=rule, reason=choice.reason))
        return choice.value


def _leaves(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return (dotted path, value) of everything below that is not itself a mapping."""
    if not isinstance(value, dict):
        return [(path, value)]
    return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{path}.{key}" if path else key)]


def _explain_the_rest(plan: Plan) -> Plan:
    """Add a decision for every value that no rule derives, so that each value of a plan has its reason."""
    decided = {decision.path for decision in plan.decisions}
    sections = plan.model_dump(mode="json", include={"preset", "budget_h", "modalities", "splits", "fusion"})
    rest = [
        Decision(path=path, value=value, rule="default", reason=default_reason(plan, path))
        for path, value in _leaves(sections)
        if path not in decided
    ]
    return plan.model_copy(update={"decisions": [*plan.decisions, *rest]})


def make_plan(request: PlanRequest) -> Plan:
    """Decide everything.

    Raises:
        PlanError: the cohort cannot be planned for (a modality without training cases, say).
    """
    found = request.fingerprint
    empty = [name for name, m in found.modalities.items() if m.n_cases == 0]
    if empty:
        raise PlanError(f"{found.dataset}: no training case has modality {', '.join(empty)}. Remove it from dataset.json.")
    decisions = _Decisions()
    splits = _plan_splits(request, decisions)
    make = _plan_paper_modality if request.preset == "paper" else _plan_auto_modality
    modalities = {name: make(request, name, m, splits.n_folds, decisions) for name, m in found.modalities.items()}
    subsets = decisions.take("fusion.subsets", "choose_subsets", rules.choose_subsets(request.present, list(modalities)))
    return _explain_the_rest(Plan(
        made_from={"fingerprint": found.dataset_digest}, name=request.name, dataset=found.dataset,
        preset=request.preset, class_names=list(found.class_names), budget_h=request.budget_h, modalities=modalities,
        splits=splits, fusion=FusionPlan(method="logistic", strength=1.0, subsets=subsets),
        machine=request.machine.model_copy(update={"samples_per_s": request.machine.samples_per_s | decisions.speeds}),
        decisions=decisions.taken,
    ))  # fmt: skip


def _plan_splits(request: PlanRequest, decisions: _Decisions) -> SplitsPlan:
    scheme: SplitScheme
    if request.n_own_folds is not None:
        choice, scheme = Choice(request.n_own_folds, "the folds the user brought (--splits)"), "custom"
    elif request.n_sites is not None:
        named = len(request.fingerprint.patients_per_site)
        shared = f"; {named} are named, but the others share all their patients with these" if named > request.n_sites else ""
        choice, scheme = Choice(request.n_sites, f"one fold for each of {request.n_sites} sites{shared}"), "leave-one-site-out"
    elif request.preset == "paper":
        choice, scheme = Choice(4, f"four-fold stratified cross-validation: {PAPER}"), "stratified"
    else:
        per_class = request.fingerprint.patients_per_class.values()
        choice, scheme = rules.choose_n_folds(min(per_class), n_classes=len(per_class)), "stratified"
    n_folds = decisions.take("splits.n_folds", "choose_n_folds", choice)
    return SplitsPlan(scheme=scheme, n_folds=n_folds, seed=request.seed)


def _plan_auto_modality(
    request: PlanRequest, name: str, found: ModalityFingerprint, n_folds: int, decisions: _Decisions
) -> ModalityPlan:
    def take(path: str, rule: str, choice: Choice) -> Any:
        return decisions.take(f"modalities.{name}.{path}", rule, choice)

    n_training = found.n_cases * (n_folds - 1) // n_folds
    candidates, pretrained, why = _candidates(request, found, n_training)
    candidates, batch = _fit_memory(request, found, candidates, rules.choose_batch_size(n_training))
    batch_size = take("training.batch_size", "choose_batch_size", batch)
    initialisation = take("training.initialisation", "pretrained_at_hand",
                          Choice("pretrained" if pretrained else "scratch", why))
    kind = "pretrained" if pretrained else rules.kind_from_scratch(candidates[0].network)
    augmentation = mirrors_only(found.ndim) if kind == "solved" else default_augmentation(found.ndim)
    wanted = rules.choose_epochs(n_training, batch_size, kind=kind)
    share = None if request.budget_h is None else request.budget_h * _share(request.fingerprint, name)
    machine = request.machine
    if share is not None:
        speeds = {
            speed_key(c.network, list(c.input_vox), found.n_channels, batch_size):
                request.measure(c.network, list(c.input_vox), found.n_channels, batch_size)
            for c in candidates
        }  # fmt: skip
        decisions.speeds |= speeds
        machine = machine.model_copy(update={"samples_per_s": machine.samples_per_s | speeds})
    candidate, epochs = rules.choose_candidate(
        candidates, machine, n_channels=found.n_channels, batch_size=batch_size, n_cases=found.n_cases, n_folds=n_folds,
        epochs=wanted.value, budget_h=share,
    )  # fmt: skip
    network, size = candidate.value.network, list(candidate.value.input_vox)
    take("training.network", "choose_candidate", Choice(network, candidate.reason))
    take("preprocessing.input_vox", "choose_candidate", Choice(size, candidate.reason))
    room = "room of an eighth on each side, so that training can shift and scale"
    stored = take("preprocessing.stored_vox", "store_jitter_room", Choice(
        [n + 2 * (n // JITTER) for n in size], room) if augmentation.reach else Choice(size, "nothing is shifted or scaled"))
    optimisation = {key: take(f"training.{key}", "choose_optimisation", choice)
                    for key, choice in rules.choose_optimisation(network, kind=kind).items()}
    n_epochs = take("training.epochs", "choose_epochs", Choice(epochs.value, f"{wanted.reason}; {epochs.reason}"))
    steps = -(-n_training // batch_size)
    return ModalityPlan(
        ndim=found.ndim, channels=list(found.channel_names), file_ending=request.file_endings[name],
        preprocessing=PreprocessingPlan(
            margin=take("preprocessing.margin", "choose_margin", rules.choose_margin(found)), margin_unit="lesion",
            aspect=take("preprocessing.aspect", "choose_aspect", rules.choose_aspect(found)),
            statistics=take("preprocessing.statistics", "choose_statistics", rules.choose_statistics(found)),
            joint_channels=take("preprocessing.joint_channels", "choose_joint_channels",
                                rules.choose_joint_channels(found)),
            derived_channels=take("preprocessing.derived_channels", "choose_derived_channels",
                                  rules.choose_derived_channels(found)),
            input_vox=size, stored_vox=stored,
        ),
        training=TrainingPlan(
            network=network, initialisation=initialisation, epochs=n_epochs, batch_size=batch_size,
            warmup_epochs=min(5.0, n_epochs / 10),
            ema_decay=take("training.ema_decay", "choose_ema_decay", rules.choose_ema_decay(n_epochs, steps, kind=kind)),
            label_smoothing=0.0 if kind == "solved" else rules.LABEL_SMOOTHING, gradient_clip=1.0,
            loss_weights=take("training.loss_weights", "choose_loss_weights",
                              rules.choose_loss_weights([found.cases_per_class[c] for c in request.fingerprint.class_names])),
            precision=take("training.precision", "choose_precision", rules.choose_precision(request.machine)),
            augmentation=augmentation, checkpoint="last", seed=request.seed, **optimisation,
        ),
        inference=InferencePlan(batch_size=16, tta=False),
    )  # fmt: skip


def _candidates(request: PlanRequest, found: ModalityFingerprint, n_training: int) -> tuple[list[Candidate], bool, str]:
    """Prefer networks whose pretrained weights can be had; else those that train well from scratch."""
    device = request.machine.device
    wanted = rules.list_candidates(found, device=device, pretrained=True, n_training_cases=n_training)
    at_hand = [c for c in wanted if request.pretrained_at_hand(c.network)]
    if at_hand:
        return at_hand, True, f"weights at hand for {', '.join(sorted({c.network for c in at_hand}))}"
    why = (f"no pretrained weights at hand for {', '.join(sorted({c.network for c in wanted}))}: "
           "learning rate, length and regularisation are those for training from scratch")  # fmt: skip
    return rules.list_candidates(found, device=device, pretrained=False, n_training_cases=n_training), False, why


def _fit_memory(
    request: PlanRequest, found: ModalityFingerprint, candidates: list[Candidate], batch: Choice
) -> tuple[list[Candidate], Choice]:
    return rules.fit_memory(
        candidates, batch, request.machine.memory_gb,
        lambda c, size: request.memory_gb(c.network, list(c.input_vox), found.n_channels, size, found.n_cases),
    )  # fmt: skip


def _share(fingerprint: Fingerprint, name: str) -> float:
    """Share of the budget: a case of a volume gets twice the time of an image."""
    cost = {n: m.n_cases * (2 if m.ndim == 3 else 1) for n, m in fingerprint.modalities.items()}
    return cost[name] / sum(cost.values())


def _plan_paper_modality(
    request: PlanRequest, name: str, found: ModalityFingerprint, n_folds: int, decisions: _Decisions
) -> ModalityPlan:
    """The paper's values; where it is silent, the reason says what was taken."""

    def take(path: str, value: Any, reason: str = PAPER) -> Any:
        return decisions.take(f"modalities.{name}.{path}", "paper", Choice(value, reason))

    flat = found.ndim == 2
    silent = f"{PAPER} does not say; taken:"
    size = take("preprocessing.input_vox", [256, 256] if flat else [96, 96, 96])
    network = take("training.network", "convnextv2_tiny" if flat else "resnet18_3d",
                   f"{silent} ConvNeXt V2 of size tiny, for US" if flat else f"3D ResNet-18: {PAPER}")
    at_hand = request.pretrained_at_hand(network)
    own = rules.choose_precision(request.machine)
    precision = Choice(own.value, f"{silent} {own.reason}")
    if flat:  # float16 needs a CUDA card
        precision = Choice("fp16", f"dynamic loss scaling on US: {PAPER}") if request.machine.device == "cuda" else Choice(
            own.value, f"{own.reason}; the dynamic loss scaling of {PAPER} belongs to float16 on CUDA")  # fmt: skip
    batch = Choice(16, PAPER)
    if request.machine.device != "cuda":  # a card parts a batch that it cannot hold
        _, batch = _fit_memory(request, found, [Candidate(network, tuple(size))], batch)
    return ModalityPlan(
        ndim=found.ndim, channels=list(found.channel_names), file_ending=request.file_endings[name],
        preprocessing=PreprocessingPlan(
            margin=take("preprocessing.margin", 50.0), margin_unit=take("preprocessing.margin_unit", "px"),
            aspect=take("preprocessing.aspect", "squash", f"box resized to a square or cube: {PAPER}"),
            statistics=take("preprocessing.statistics", "crop", f"z-score: {PAPER}; of the crop, which it does not say"),
            joint_channels=take("preprocessing.joint_channels", False, f"{silent} each channel for itself"),
            input_vox=size, stored_vox=take("preprocessing.stored_vox", size, f"{silent} no room for jitter"),
        ),
        training=TrainingPlan(
            network=network,
            initialisation=take("training.initialisation", "pretrained" if at_hand else "scratch",
                                f"{silent} pretrained weights " + ("are at hand" if at_hand else "if at hand; none are")),
            epochs=take("training.epochs", 300), batch_size=take("training.batch_size", batch.value, batch.reason),
            learning_rate=take("training.learning_rate", 2e-5 if flat else 4e-6),
            weight_decay=take("training.weight_decay", 5e-2 if flat else 1e-2),
            layer_decay=take("training.layer_decay", 1.0, f"{silent} none"),
            warmup_epochs=take("training.warmup_epochs", 0.0, f"{silent} none"),
            ema_decay=take("training.ema_decay", 0.0, f"{silent} none"),
            label_smoothing=take("training.label_smoothing", 0.0, f"{silent} none"), drop_path=0.0, gradient_clip=1.0,
            loss_weights=take("training.loss_weights", [1.0] * len(request.fingerprint.class_names), f"{silent} equal"),
            precision=take("training.precision", precision.value, precision.reason),
            augmentation=paper_augmentation(found.ndim),
            checkpoint=take("training.checkpoint", "best", f"best epoch by accuracy, recall, AUC and F1: {PAPER}. "
                            "Optimistic: epoch chosen on the reported fold"),
            seed=request.seed,
        ),
        inference=InferencePlan(batch_size=16, tta=False),
    )  # fmt: skip


def explain(plan: Plan) -> str:
    """Return the plan's decisions as text: value, rule and reason; edited values are shown as the user's."""
    lines = [f"Plan {plan.name!r} of {plan.dataset}, preset {plan.preset}"]
    if plan.machine is not None:
        m = plan.machine
        lines.append(f"Machine: {m.device} ({m.name}), {m.n_threads} threads, {m.memory_gb} GB"
                     + (", native bfloat16" if m.bf16 else ""))  # fmt: skip
    edited = plan.edited
    lines += [f"{path} = removed by you" for path, value in edited.items() if value == "removed"]
    for decision in plan.decisions:
        if plan.is_removed(decision.path):
            continue
        if decision.path in edited:
            lines += [f"{decision.path} = {edited[decision.path]}",
                      f"    edited by you; the rule {decision.rule} chose {decision.value}: {decision.reason}"]
        else:
            lines += [f"{decision.path} = {decision.value}", f"    {decision.rule}: {decision.reason}"]
    return "\n".join(lines)
