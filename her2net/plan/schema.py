"""The plan: the only place where a choice lives.

Three sections per modality, by consequence: `preprocessing` (its digest names the
cache), `training`, `inference`. Run-time matters (device, workers, folders) are not
in it. `decisions` holds, for each value, the rule that chose it and why.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from her2net.artefact import Artefact, Strict, digest_json
from her2net.plan.augmentation import AugmentationPlan
from her2net.plan.machine import Machine
from her2net.plan.table_schema import CLINICAL, TablePlan

Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


DCE_PHASES = ("DCE-pre", "DCE-early", "DCE-late")
"""Names of the first channels that maps of uptake are made from."""
DerivedChannel = Literal["subtraction", "wash-in", "wash-out", "mask"]
LARGEST_MARGIN = {"px": 10_000, "mm": 1_000, "lesion": 10}
"""Beyond these a crop holds next to nothing of a lesion, and the matrices that resample it outgrow the memory."""
Preset = Literal["auto", "paper"]
SplitScheme = Literal["stratified", "leave-one-site-out", "custom"]


class PreprocessingPlan(Strict):
    """How one image becomes one array of the cache.

    Attributes:
        margin: added to the lesion box on each side, in `margin_unit`.
        margin_unit: `px` voxels, `mm`, or `lesion` (fraction of the longest box edge).
        aspect: `keep` a window of equal physical edges, `keep_in_plane` equal edges in
            H and W only, `squash` the box as it is (clipped at the image border).
        missing_mask: what stands in for the lesion box of a case without a mask.
        statistics: voxels whose mean and SD the z-score takes, always of the case itself.
        joint_channels: one mean and SD for all channels of a case (keeps enhancement), or one each.
        derived_channels: appended to the channels; made from the phases of a dynamic series, or the lesion mask itself.
        burned_in: whether calipers, text and rulers in 8-bit pictures are left, or filled from around them.
        input_vox: size the network sees, (H, W) or (D, H, W).
        stored_vox: size in the cache; the surplus is room for shifting and scaling.
    """

    margin: NonNegative
    margin_unit: Literal["px", "mm", "lesion"]
    aspect: Literal["keep", "keep_in_plane", "squash"]
    missing_mask: Literal["whole_image"] = "whole_image"
    statistics: Literal["image", "crop"]
    joint_channels: bool
    derived_channels: list[DerivedChannel] = Field(default_factory=list)
    burned_in: Literal["keep", "inpaint"] = "keep"
    input_vox: list[Count] = Field(min_length=2, max_length=3)
    stored_vox: list[Count] = Field(min_length=2, max_length=3)

    @model_validator(mode="after")
    def _margin_leaves_a_lesion(self) -> PreprocessingPlan:
        if self.margin > LARGEST_MARGIN[self.margin_unit]:
            raise ValueError(f"margin is {self.margin:g} {self.margin_unit}, expected at most {LARGEST_MARGIN[self.margin_unit]}")
        return self

    @model_validator(mode="after")
    def _sizes_agree(self) -> PreprocessingPlan:
        if len(self.stored_vox) != len(self.input_vox):
            raise ValueError(f"stored_vox {self.stored_vox} and input_vox {self.input_vox} differ in length")
        if any(s < i or (s - i) % 2 for s, i in zip(self.stored_vox, self.input_vox, strict=True)):
            raise ValueError(f"stored_vox {self.stored_vox} must exceed input_vox {self.input_vox} by an even number")
        return self

    @property
    def digest(self) -> str:
        """Digest of what changes the arrays: no derived channels and marks that are kept do not."""
        idle = {"derived_channels": [], "burned_in": "keep"}
        values = self.model_dump(mode="json")
        return digest_json({k: v for k, v in values.items() if k not in idle or v != idle[k]})


class TrainingPlan(Strict):
    """How one fold is trained.

    Attributes:
        network: a name of `her2net.networks.build.NETWORKS`.
        initialisation: `pretrained` weights, or from `scratch`.
        learning_rate: peak of the schedule (linear warm-up, cosine decay to 0).
        layer_decay: the learning rate of each block is this share of that of the next; the classifier has the whole.
        ema_decay: decay of the running average of the weights per step; 0 switches it off.
        loss_weights: weight of each class in the cross-entropy; mean 1.
        checkpoint: `last` (averaged) weights, or the `best` epoch on the reported fold,
            which is optimistic and marked as such wherever it goes.
    """

    network: str
    initialisation: Literal["scratch", "pretrained"]
    epochs: Count
    batch_size: Count
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    weight_decay: NonNegative
    warmup_epochs: NonNegative
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    drop_path: Annotated[float, Field(ge=0, lt=1)]
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    gradient_clip: Positive
    loss_weights: list[Positive]
    precision: Literal["fp32", "bf16", "fp16"]
    augmentation: AugmentationPlan
    checkpoint: Literal["last", "best"]
    seed: int


class InferencePlan(Strict):
    """How a trained fold predicts; `tta` averages over the flips that training used."""

    batch_size: Count
    tta: bool


class ModalityPlan(Strict):
    """Everything decided for one modality."""

    ndim: Literal[2, 3]
    channels: list[str] = Field(min_length=1)
    file_ending: str
    preprocessing: PreprocessingPlan
    training: TrainingPlan
    inference: InferencePlan

    @model_validator(mode="after")
    def _dimensions_agree(self) -> ModalityPlan:
        if len(self.preprocessing.input_vox) != self.ndim:
            raise ValueError(f"preprocessing.input_vox {self.preprocessing.input_vox} is not {self.ndim}-dimensional")
        return self

    @model_validator(mode="after")
    def _axes_agree(self) -> ModalityPlan:
        if len(self.training.augmentation.flip_axes) != self.ndim:
            raise ValueError(f"training.augmentation.flip_axes names {len(self.training.augmentation.flip_axes)} axes of {self.ndim}")
        return self

    @model_validator(mode="after")
    def _phases_are_there(self) -> ModalityPlan:
        derived = self.preprocessing.derived_channels
        uptake = [name for name in derived if name != "mask"]
        phases = DCE_PHASES[: 3 if "wash-out" in derived else 2]
        if uptake and tuple(self.channels[: len(phases)]) != phases:
            raise ValueError(f"preprocessing.derived_channels {uptake} need {', '.join(phases)} as the first channels")
        if len(set(derived)) < len(derived):
            raise ValueError(f"preprocessing.derived_channels {derived} name one twice")
        return self

    @model_validator(mode="after")
    def _marks_are_flat(self) -> ModalityPlan:
        if self.ndim == 3 and self.preprocessing.burned_in == "inpaint":
            raise ValueError("preprocessing.burned_in can be inpaint for flat pictures only; in volumes nothing is looked for")
        return self

    @property
    def n_inputs(self) -> int:
        """Channels the network reads: those of the files and the derived ones."""
        return len(self.channels) + len(self.preprocessing.derived_channels)

    @property
    def preprocessing_digest(self) -> str:
        """Digest that names the cache."""
        return self.preprocessing.digest


NOT_PLANNED = "enough_patients"
"""The rule whose decision says why a table is not there."""


class SplitsPlan(Strict):
    """How patients are parted; `custom` are folds the user brought."""

    scheme: SplitScheme
    n_folds: Annotated[int, Field(ge=2)]
    seed: Annotated[int, Field(ge=0, lt=1 << 32)]

    @property
    def name(self) -> str:
        """Key of the partition in `splits.json`."""
        return f"{self.scheme}-{self.n_folds}"


class FusionPlan(Strict):
    """Late fusion.

    Attributes:
        method: `auto` lets `her2net_fuse` choose by an inner loop; see `her2net.fuse.choose`.
        strength: inverse L2 penalty of the logistic regressions on standardised logits.
        subsets: sets of modalities that get a model of their own.
    """

    method: Literal["auto", "logistic", "mean", "weighted", "gated"]
    strength: Positive
    subsets: list[list[str]]


class Decision(Strict):
    """Why a value is what it is. `path` is the place in the plan, `value` what the rule chose."""

    path: str
    value: Any
    rule: str
    reason: str


class Plan(Artefact):
    """The whole plan of a dataset.

    Attributes:
        budget_h: wall-clock hours for training all folds of all modalities; `null` is no limit.
        machine: the measurement the choice of network, size and epochs rests on; `null` if none was needed.
        tables: name (`RAD:US`, `CLIN`) -> model of a table; absent where there is none.
    """

    MADE_BY: ClassVar[str] = "her2net_plan"

    name: str
    dataset: str
    preset: Preset
    class_names: list[str] = Field(min_length=2)
    budget_h: Positive | None
    modalities: dict[str, ModalityPlan] = Field(min_length=1)
    splits: SplitsPlan
    fusion: FusionPlan
    machine: Machine | None
    decisions: list[Decision]
    tables: dict[str, TablePlan] = Field(default_factory=dict)

    @model_serializer(mode="wrap")
    def _leave_out_no_tables(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A plan without tables is written, and has the digest, that it had before there were any."""
        values = serialise(self)
        return {k: v for k, v in values.items() if k != "tables" or v}

    @model_validator(mode="after")
    def _classes_agree(self) -> Plan:
        for name, modality in self.modalities.items():
            if len(modality.training.loss_weights) != len(self.class_names):
                weights, n = modality.training.loss_weights, len(self.class_names)
                raise ValueError(f"modalities.{name}.training.loss_weights needs one weight per class, {n}; found {weights}")
        for name, table in self.tables.items():
            wanted = CLINICAL if table.modality is None else f"RAD:{table.modality}"
            if name != wanted or table.modality not in (None, *self.modalities):
                raise ValueError(f"tables.{name}: must be named {CLINICAL}, or RAD:M of a modality M of the plan, and say the same")
        return self

    @model_validator(mode="after")
    def _subsets_are_known(self) -> Plan:
        for subset in self.fusion.subsets:
            if not subset or not set(subset) <= set(self.modalities) or len(set(subset)) < len(subset):
                raise ValueError(f"fusion.subsets: {subset} is not a set of modalities of the plan, {', '.join(self.modalities)}")
        return self

    @model_validator(mode="after")
    def _decisions_are_about_values(self) -> Plan:
        values = self.model_dump(mode="json")
        for number, decision in enumerate(self.decisions):
            if self.is_removed(decision.path) or self.is_unplanned(decision.path):
                continue
            try:
                _find_value(values, decision.path)
            except (KeyError, IndexError, TypeError, ValueError):
                raise ValueError(f"decisions.{number}: {decision.path!r} is no path of the plan") from None
        return self

    @property
    def n_classes(self) -> int:
        return len(self.class_names)

    def value_at(self, path: str) -> Any:
        """Return the value at a dotted path, e.g. `modalities.US.training.epochs`, as plain JSON."""
        return _find_value(self.model_dump(mode="json"), path)

    @property
    def edited(self) -> dict[str, Any]:
        """Paths whose value is no longer the one the rule chose: path -> value now."""
        values = self.model_dump(mode="json")
        kept = [d for d in self.decisions if not (self.is_removed(d.path) or self.is_unplanned(d.path))]
        now = {decision.path: _find_value(values, decision.path) for decision in kept}
        removed = {f"tables.{name}": "removed" for name in self.decided_tables if name not in self.tables}
        return {d.path: now[d.path] for d in kept if now[d.path] != d.value} | removed

    @property
    def unplanned_tables(self) -> dict[str, str]:
        """Tables that were not planned for want of patients -> why."""
        return {d.path.removeprefix("tables."): d.reason for d in self.decisions
                if d.path.startswith("tables.") and d.rule == NOT_PLANNED}  # fmt: skip

    @property
    def decided_tables(self) -> list[str]:
        """Tables that were planned, those included that the user has removed since."""
        return [d.path[len("tables.") : -len(".fused")] for d in self.decisions
                if d.path.startswith("tables.") and d.path.endswith(".fused")]  # fmt: skip

    def is_removed(self, path: str) -> bool:
        """Whether a decision is of a table that the user has removed."""
        return any(path.startswith(f"tables.{name}.") for name in self.decided_tables if name not in self.tables)

    def is_unplanned(self, path: str) -> bool:
        """Whether a decision says why a table is not there."""
        return any(path == f"tables.{name}" for name in self.unplanned_tables if name not in self.tables)

    @property
    def optimistic(self) -> dict[str, str]:
        """Modality -> remark, for those whose weights are chosen on the reported fold."""
        remark = "optimistic: epoch chosen on the reported fold"
        return {name: remark for name, m in self.modalities.items() if m.training.checkpoint == "best"}


def _find_value(values: dict[str, Any], path: str) -> Any:
    value: Any = values
    for part in _split_path(path, values):
        value = value[part]
    return value


def _split_path(path: str, value: Any) -> list[str]:
    """Split a dotted path; the name of a modality or a table may itself contain dots."""
    section, _, rest = path.partition(".")
    if section not in ("modalities", "tables"):
        return path.split(".")
    name = max((m for m in value[section] if rest == m or rest.startswith(m + ".")), key=len)
    return [section, name, *(rest.removeprefix(name + ".").split(".") if rest != name else [])]
