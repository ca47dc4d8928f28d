"""The planning rules of the preset `auto`: each one a pure function to a value and a reason.

Nothing here reads a file, a clock or a device. `her2net_plan --explain` prints the reasons.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from her2net.fingerprint import ModalityFingerprint
from her2net.networks.build import network_spec
from her2net.plan.machine import Machine, speed_key
from her2net.plan.schema import DCE_PHASES

PASSES = {"scratch": 40, "pretrained": 40}
MIN_STEPS, MAX_STEPS = 100, 4000
SCATTERING_UP_TO = 1600
"""Training cases a fold up to which images are described by wavelets instead of learned filters; see `list_candidates`."""

VALIDATION_SHARE = 0.35  # cost of a forward pass without gradients against a training step on the same case
USABLE_MEMORY = 0.75  # of what there is; the system and other programs take the rest
MIN_BATCH = 2
LAYER_DECAY = 0.9  # of pretrained weights
LABEL_SMOOTHING = 0.05
OVERHEAD = 1.25  # loading, checkpoints, final predictions


@dataclass(frozen=True)
class Choice:
    """What a rule chose and why, in a sentence."""

    value: Any
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A network and the input size it would see."""

    network: str
    input_vox: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"{self.network} at {'x'.join(map(str, self.input_vox))}"


def choose_n_folds(smallest_class_patients: int, *, n_classes: int = 2) -> Choice:
    """Four folds as in the paper; five while each still holds at least 10 patients of the smallest class.

    Source:
        Fan et al. 2025 use four; Kohavi 1995 (IJCAI 14:1137) finds 5 to 10 folds a fair balance of bias and variance. The mean of
        3, 5 and 10 folds predicted new cases alike (five recipes of 200 cases, two cohorts each: -0.002, 0, -0.002).
    """
    least = "smaller" if n_classes == 2 else "smallest"
    there = f"{smallest_class_patients} patient{'s' * (smallest_class_patients != 1)} in the {least} class"
    if smallest_class_patients >= 50:
        return Choice(5, f"{there} leave at least 10 in each of 5 folds")
    n = min(4, max(2, smallest_class_patients))
    return Choice(n, f"{there}; 4 folds as in the paper, fewer if they lack")


def choose_margin(modality: ModalityFingerprint) -> Choice:
    """A margin in lesion sizes, so that small and large lesions show the same share of surrounding tissue.

    Source:
        The surround carries information on invasion; nnU-Net's patch size follows the object likewise (Isensee et al. 2021).
    """
    if modality.n_without_mask == modality.n_cases:
        return Choice(0.0, "no case has a mask: the whole image is the crop")
    return Choice(0.3, "0.3 of the longest lesion edge on each side: the lesion fills 60 % of the crop whatever its size")


def choose_aspect(modality: ModalityFingerprint) -> Choice:
    """Never distort the lesion; where slices are thick, only within the slice.

    Source:
        Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) treat an axis as anisotropic from a ratio of 3 on; the same here.
    """
    if modality.ndim == 2:
        return Choice("keep", "square window: the outline of a lesion is a diagnostic sign and is not squashed")
    ratio = anisotropy(modality)
    if ratio >= 3 or min(axis.median for axis in modality.size_vox) < 16:
        return Choice("keep_in_plane", f"slices {ratio:.1f} times as thick as pixels, or few of them: square in plane, depth apart")
    return Choice("keep", f"slices {ratio:.1f} times as thick as pixels: a cube in millimetres")


def anisotropy(modality: ModalityFingerprint) -> float:
    """Largest over smallest median spacing; 1 where spacing is unknown."""
    if modality.spacing_mm is None:
        return 1.0
    spacings = [axis.median for axis in modality.spacing_mm]
    return max(spacings) / min(spacings)


def choose_statistics(modality: ModalityFingerprint) -> Choice:
    """Z-score by the crop: gain and coil settings differ between images, and the crop is what the network sees."""
    where = "8-bit images with free gain" if modality.fixed_range else "intensities without a fixed unit"
    return Choice("crop", f"{where}: mean and SD of each case's own crop, so nothing is fitted across patients")


def choose_joint_channels(modality: ModalityFingerprint) -> Choice:
    """One mean and SD for all phases of a dynamic series, so that enhancement survives."""
    dynamic = modality.n_channels > 1 and all(name.upper().startswith("DCE") for name in modality.channel_names)
    if dynamic:
        return Choice(True, "the channels are phases of one dynamic series: common statistics keep the enhancement")
    return Choice(False, "channels of unrelated units, or only one: each has its own statistics")


def choose_derived_channels(modality: ModalityFingerprint) -> Choice:
    """None: maps of uptake were not shown to help; the phases with common statistics hold the same information.

    Nor the mask: outlines are often drawn by someone who knows the class, and a network that sees one judges the drawing.

    Source:
        docs/LOG.md, "subtraction, wash-in and wash-out channels" and "the mask as a channel".
    """
    drawn = "the mask (\"mask\") is not shown: an outline drawn by someone who knows the class gives it away"
    if tuple(modality.channel_names[:2]) == DCE_PHASES[:2]:
        possible = ["subtraction", "wash-in"] + ["wash-out"] * (tuple(modality.channel_names[:3]) == DCE_PHASES)
        return Choice([], f"{', '.join(possible)} can be made from these phases, but were not shown to help (docs/LOG.md); {drawn}")
    return Choice([], f"the channels are not {', '.join(DCE_PHASES)}; {drawn}")


def choose_depth_vox(modality: ModalityFingerprint, in_plane_vox: int) -> Choice:
    """Voxels along the slice axis: as many as the crop has slices, never more than in plane."""
    lesion = modality.lesion_size_vox
    slices = modality.size_vox[0].median if lesion is None else min(lesion[0].p90 * 1.6, modality.size_vox[0].p90)
    depth = min(in_plane_vox, max(8, 8 * math.ceil(slices / 8)))
    return Choice(depth, f"the crops hold about {slices:.0f} slices; rounded up to a multiple of 8")


def list_candidates(
    modality: ModalityFingerprint, *, device: str, pretrained: bool, n_training_cases: int
) -> list[Candidate]:
    """Networks to consider, the most capable first; the first that fits the time is taken.

    With pretrained weights ConvNeXt V2 is worth its price. From scratch, on some hundred images or volumes, fixed
    wavelets under a support-vector machine were no worse than learned filters and take a fraction of the time
    (docs/explanation/planning-rules.md has the figures). With 1,600 images both were alike, the wavelets in an eighth of the time.
    Above it, a small residual network: from scratch it was ahead of ConvNeXt V2 atto and of ResNet-18 on three signs (0.831, 0.776,
    0.811; 0.819, 0.518, 0.670; 0.821, 0.768, 0.804). A stem of stride 1 costs 3.7 times the time of stride 2 for the same AUC (0.831,
    0.830); volumes of few slices keep their depth in it (0.837).
    """
    if not pretrained and n_training_cases <= SCATTERING_UP_TO:
        if modality.ndim == 2:
            return [Candidate("scattering_2d", (96, 96))]
        return [Candidate("scattering_3d", (choose_depth_vox(modality, 32).value, 48, 48))]
    if modality.ndim == 2:
        if pretrained:
            names = ["convnextv2_tiny", "convnextv2_nano"] if device != "cpu" else ["convnextv2_femto", "convnextv2_atto"]
            return [Candidate(name, (224, 224)) for name in names] + [Candidate(names[-1], (128, 128))]
        return [Candidate("resnet10t", (n, n)) for n in (128, 96, 64)]
    sizes = (96, 64) if device != "cpu" else (64, 48, 32)
    depths = [choose_depth_vox(modality, n).value for n in sizes]
    network = "resnet18_3d" if pretrained or device != "cpu" else "resnet10_3d"
    stems = ["_s122" if depth <= 16 else "_s2" for depth in depths]
    return [Candidate(network + stem, (d, n, n)) for n, d, stem in zip(sizes, depths, stems, strict=True)]


def choose_epochs(n_training_cases: int, batch_size: int, *, kind: str) -> Choice:
    """A number of passes over the cases, whatever their number: on small cohorts more passes learn the cases by heart.

    Args:
        kind: `solved`, `scratch` or `pretrained`.
    """
    if kind == "solved":
        return Choice(1, "the classifier is solved in one go, on each case as it is and mirrored")
    steps = math.ceil(n_training_cases / batch_size)
    epochs = max(math.ceil(MIN_STEPS / steps), min(PASSES[kind], MAX_STEPS // steps))
    return Choice(epochs, f"{PASSES[kind]} passes for {kind}, within {MIN_STEPS} to {MAX_STEPS} updates, {steps} an epoch")


def training_hours(epochs: int, n_cases: int, n_folds: int, samples_per_s: float) -> float:
    """Hours to train all folds: every case is trained on in all folds but one, and validated in that one."""
    per_epoch = n_cases * (n_folds - 1) + VALIDATION_SHARE * n_cases
    return OVERHEAD * epochs * per_epoch / samples_per_s / 3600


def choose_candidate(
    candidates: Sequence[Candidate], machine: Machine, *, n_channels: int, batch_size: int, n_cases: int, n_folds: int,
    epochs: int, budget_h: float | None,
) -> tuple[Choice, Choice]:  # fmt: skip
    """Take the first candidate that fits the time; if none does, the fastest with fewer epochs.

    Returns:
        The candidate, and the number of epochs.
    """
    if budget_h is None:
        return Choice(candidates[0], "no time limit: the most capable candidate"), Choice(epochs, "no time limit")
    lines = []
    for candidate in candidates:
        speed = machine.samples_per_s[speed_key(candidate.network, list(candidate.input_vox), n_channels, batch_size)]
        hours = training_hours(epochs, n_cases, n_folds, speed)
        lines.append(f"{candidate.name}: {speed:g} cases/s, {_minutes(hours)} for {epochs} epochs of {n_folds} folds")
        if hours <= budget_h:
            reason = f"budget {_minutes(budget_h)}; " + "; ".join(lines)
            return Choice(candidate, reason), Choice(epochs, f"fits the budget of {_minutes(budget_h)}")
    fewer = max(1, math.floor(epochs * budget_h / hours))
    reason = f"budget {_minutes(budget_h)}; " + "; ".join(lines) + "; none fits, the smallest is taken"
    if epochs * budget_h < hours:
        return Choice(candidates[-1], reason), Choice(fewer, f"a single one takes longer than the budget of {_minutes(budget_h)}")
    return Choice(candidates[-1], reason), Choice(fewer, f"cut from {epochs} to fit the budget of {_minutes(budget_h)}")


def _minutes(hours: float) -> str:
    return f"{hours * 60:.0f} min" if hours >= 1 / 60 else f"{hours * 3600:.0f} s"


def choose_batch_size(n_training_cases: int) -> Choice:
    """16 as in the paper; 8 where 16 would leave fewer than 4 updates an epoch."""
    if n_training_cases >= 64:
        return Choice(16, f"{n_training_cases} training cases a fold: 16, as in the paper")
    return Choice(8, f"{n_training_cases} training cases a fold: 8, so that an epoch has enough updates")


def fit_memory(
    candidates: Sequence[Candidate], batch: Choice, memory_gb: int, need_gb: Callable[[Candidate, int], float]
) -> tuple[list[Candidate], Choice]:
    """Drop candidates whose training does not fit into the memory; if none does, halve the batch of the smallest.

    Args:
        need_gb: candidate and batch size -> memory for training it, estimated.

    Source:
        nnU-Net fits its patch and batch to the memory of the card likewise (Isensee et al. 2021).
    """
    limit = USABLE_MEMORY * memory_gb
    fitting = [candidate for candidate in candidates if need_gb(candidate, batch.value) <= limit]
    dropped = [c.name for c in candidates if c not in fitting]
    if not dropped:
        return list(candidates), batch
    words = f"{batch.reason}; of {memory_gb} GB at most {limit:.1f} are used, too little for {', '.join(dropped)}"
    if fitting:
        return fitting, Choice(batch.value, words)
    smallest, size = candidates[-1], batch.value
    while size > MIN_BATCH and need_gb(smallest, size) > limit:
        size //= 2
    need = need_gb(smallest, size)
    still = "" if need <= limit else f", which needs {need:.1f} GB and may be refused here"
    return [smallest], Choice(size, f"{words} in batches of {batch.value}: {smallest.name} in batches of {size}{still}")


def kind_from_scratch(network: str) -> str:
    """Return `solved` where only a classifier is fitted, in one go, else `scratch`."""
    return "solved" if network_spec(network).solved else "scratch"


def choose_optimisation(network: str, *, kind: str) -> dict[str, Choice]:
    """Learning rate and its decay by layer, weight decay, stochastic depth: gentle with pretrained weights, strong from scratch.

    Args:
        kind: `solved`, `scratch` or `pretrained`.

    Source:
        Fine-tuning: Woo et al. 2023 (ConvNeXt V2), appendix; decay by layer as for their atto and tiny models, not measured here,
        for want of weights. From scratch: Wightman et al. 2021 (arXiv:2110.00476), scaled to batch 16.
    """
    convnext = network.startswith("convnext")
    if kind == "pretrained":
        why = "pretrained weights: a small step that does not forget them"
        drop_path = Choice(0.1, why) if convnext else Choice(0.0, f"{network} has no stochastic depth here")
        gentle = Choice(LAYER_DECAY, "pretrained weights: the nearer to the image, the more general, and the smaller the step")
        return {"learning_rate": Choice(1e-4, why), "weight_decay": Choice(0.05, why), "drop_path": drop_path, "layer_decay": gentle}
    why = "trained from scratch: a step large enough to learn features in a few hundred updates"
    if kind == "solved":
        why = "without effect: the classifier is solved, not stepped; its cost of errors comes from an inner loop"
        return {"learning_rate": Choice(1e-3, why), "weight_decay": Choice(0.0, why), "drop_path": Choice(0.0, why),
                "layer_decay": Choice(1.0, why)}  # fmt: skip
    return {
        "learning_rate": Choice(5e-4 if convnext else 2e-3, why),
        "weight_decay": Choice(0.05, why),
        "drop_path": Choice(0.0, "few updates and a small network: no stochastic depth"),
        "layer_decay": Choice(1.0, "trained from scratch: every layer has as much to learn"),
    }


def choose_ema_decay(epochs: int, steps_per_epoch: int, *, kind: str) -> Choice:
    """Average over the last tenth of the updates; none where the classifier is solved.

    Source:
        Averaged weights replace the choice of an epoch (Izmailov et al. 2018, arXiv:1803.05407).
    """
    if kind == "solved":
        return Choice(0.0, "the classifier is solved: there are no steps to average")
    horizon = max(5.0, 0.1 * epochs * steps_per_epoch)
    return Choice(round(1 - 1 / horizon, 4), f"the running average spans about {horizon:.0f} updates, a tenth of all")


def choose_loss_weights(cases_per_class: Sequence[int]) -> Choice:
    """Inverse square root of the class frequencies, mean 1: helps the rare class without doubling every label error.

    Balanced classes (ratio below 1.5) are left alone, which keeps the probabilities calibrated. The plan shows the weights of all
    training cases of the modality; each fold applies the rule to its own (`her2net.train.fold.weigh_classes`).
    """
    cases_per_class = [max(n, 1) for n in cases_per_class]
    ratio = max(cases_per_class) / min(cases_per_class)
    if ratio < 1.5:
        return Choice([1.0] * len(cases_per_class), f"classes differ by {ratio:.2f}: left alone, which keeps probabilities calibrated")
    raw = [n**-0.5 for n in cases_per_class]
    return Choice(
        [round(w * len(raw) / sum(raw), 4) for w in raw], f"classes differ by {ratio:.2f}: inverse square root of their sizes"
    )


def choose_precision(machine: Machine) -> Choice:
    """bfloat16 where the hardware multiplies it natively (2 to 3 times float32 on a CPU), else float32."""
    if machine.bf16:
        return Choice("bf16", f"{machine.device} computes bfloat16 natively")
    if machine.device == "cuda":
        return Choice("fp16", "CUDA without bfloat16: float16 with dynamic loss scaling")
    return Choice("fp32", f"{machine.device} has no native bfloat16")


def choose_subsets(present: Mapping[tuple[str, ...], int], modalities: Sequence[str]) -> Choice:
    """One fusion model per set of modalities that occurs, for each alone, and for all together."""
    wanted = {tuple(m for m in modalities if m in subset) for subset in present}
    wanted |= {(name,) for name in modalities} | {tuple(modalities)}
    if len(modalities) <= 3:
        wanted |= {c for n in range(1, len(modalities) + 1) for c in combinations(modalities, n)}
    ordered = sorted(wanted, key=lambda subset: (len(subset), [list(modalities).index(m) for m in subset]))
    counts = ", ".join(f"{'+'.join(subset)}: {n}" for subset, n in sorted(present.items()))
    return Choice([list(subset) for subset in ordered], f"training cases by the modalities they have: {counts}")
