"""The networks that a plan may name, in one explicit table, and how each is built.

2D networks come from timm, 3D networks from MONAI, the scattering networks, which need few cases and no
pretraining, from here. The libraries take seconds to import, so they are imported only when a network is
built; reading the table costs nothing.

The 3D ResNets follow the layout of MedicalNet (parameter-free shortcuts in ResNet-18
and -34, projections without bias in ResNet-10 and -50), whose weights then fit each of them.
They come with three stems, because the stem decides most of the cost:

- `resnet18_3d`: MONAI's default, stem stride 1 (the paper's network);
- `resnet18_3d_s2`: stem stride 2, as MedicalNet was trained; about five times as fast;
- `resnet18_3d_s122`: stem and first pooling with stride (1, 2, 2), for volumes of few slices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from her2net.errors import MissingDependencyError, PlanError

if TYPE_CHECKING:
    from torch import nn

CONVNEXT_SOURCE = "Woo et al. 2023, ConvNeXt V2, arXiv:2301.00808; timm; ImageNet weights are CC-BY-NC-4.0"
RESNET_2D_SOURCE = "He et al. 2016, arXiv:1512.03385; Wightman et al. 2021, arXiv:2110.00476; timm"
SCATTERING_SOURCE = "Mallat 2012, arXiv:1101.2286; Bruna & Mallat 2013, arXiv:1203.1513; Yu et al. 2016, arXiv:1610.09072"
SCATTERING_WINDOWS = (1.0, 0.625)
"""Shares of the crop's edges that a scattering network looks at. A margin of 0.3 around a lesion's longest edge leaves it 0.625."""
RESNET_STAGES = ("layer4", "layer3", "layer2")
RESNET_3D_SOURCE = "Chen et al. 2019, Med3D, arXiv:1904.00625; MONAI ResNet; MedicalNet weights"


@dataclass(frozen=True)
class NetworkSpec:
    """One row of the table.

    Attributes:
        name: the name that a plan uses.
        ndim: 2 or 3 spatial axes.
        library: "timm", "monai" or "her2net".
        library_name: the library's own name of the architecture.
        options: keyword arguments of the library's constructor.
        min_size: smallest input, voxels per axis; below it the network fails, or most of it sees a single voxel.
        stride: total downsampling per axis; an input of this size ends in one feature voxel.
        first_conv: name of the convolution that reads the image.
        classifier: name of the linear layer that gives the logits.
        cam_layers: layers whose output is a map (N, channels, grid), the last one first; explanations look at one of them.
        weights_repo: Hugging Face repository of pretrained weights; empty if there are none.
        weights_file: file in that repository.
        weighs_places: the classifier has a weight for each place of the last map, instead of one for their mean.
        windows: shares of the crop's edges, about its middle, over which parts of the last map extend, one after the other.
        solved: every layer but the classifier is fixed, and the classifier is solved (`her2net.train.solve`), not stepped.
        normalises_batches: it divides by the spread of a batch in training, which one case alone does not have.
        source: paper, library and licence of the weights where it restricts their use.
    """

    name: str
    ndim: int
    library: str
    library_name: str
    min_size: tuple[int, ...]
    stride: tuple[int, ...]
    first_conv: str
    classifier: str
    cam_layers: tuple[str, ...]
    weights_repo: str
    weights_file: str
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weighs_places: bool = False
    windows: tuple[float, ...] = (1.0,)
    solved: bool = False
    normalises_batches: bool = False


def _convnext(size: str, weights: str) -> NetworkSpec:
    name = f"convnextv2_{size}"
    return NetworkSpec(
        name, 2, "timm", name, (32, 32), (32, 32), "stem.0", "head.fc", ("stages.3", "stages.2", "stages.1"),
        f"timm/{name}.{weights}", "model.safetensors", CONVNEXT_SOURCE,
    )  # fmt: skip


def _resnet_2d(name: str, first_conv: str, weights: str) -> NetworkSpec:
    return NetworkSpec(
        name, 2, "timm", name, (16, 16), (32, 32), first_conv, "fc", RESNET_STAGES,
        f"timm/{name}.{weights}", "model.safetensors", RESNET_2D_SOURCE, normalises_batches=True,
    )  # fmt: skip


def _resnet_3d(depth: int, suffix: str, stem_stride: tuple[int, int, int]) -> NetworkSpec:
    pool_stride = 1 if suffix == "_s122" else 2
    stride = (8 * stem_stride[0] * pool_stride, 16 * stem_stride[1], 16 * stem_stride[2])
    shortcut = {"shortcut_type": "A"} if depth in (18, 34) else {"shortcut_type": "B", "bias_downsample": False}
    return NetworkSpec(
        f"resnet{depth}_3d{suffix}", 3, "monai", f"resnet{depth}", tuple(max(n // 4, 4) for n in stride), stride,
        "conv1", "fc", RESNET_STAGES, f"TencentMedicalNet/MedicalNet-Resnet{depth}", f"resnet_{depth}_23dataset.pth",
        RESNET_3D_SOURCE, {"conv1_t_stride": stem_stride, **shortcut}, normalises_batches=True,
    )  # fmt: skip


def _scattering(ndim: int) -> NetworkSpec:
    name = f"scattering_{ndim}d"
    size = (12, 12) if ndim == 2 else (8, 12, 12)
    return NetworkSpec(
        name, ndim, "her2net", name, size, size, "", "classifier", ("maps",), "", "", SCATTERING_SOURCE,
        weighs_places=True, windows=SCATTERING_WINDOWS, solved=True,
    )  # fmt: skip


_TABLE = (
    _scattering(2),
    _scattering(3),
    _convnext("atto", "fcmae_ft_in1k"),
    _convnext("femto", "fcmae_ft_in1k"),
    _convnext("pico", "fcmae_ft_in1k"),
    _convnext("nano", "fcmae_ft_in22k_in1k"),
    _convnext("tiny", "fcmae_ft_in22k_in1k"),
    _convnext("base", "fcmae_ft_in22k_in1k"),
    _resnet_2d("resnet10t", "conv1.0", "c3_in1k"),
    _resnet_2d("resnet14t", "conv1.0", "c3_in1k"),
    _resnet_2d("resnet18", "conv1", "a1_in1k"),
    _resnet_2d("resnet26t", "conv1.0", "ra2_in1k"),
    _resnet_2d("resnet26d", "conv1.0", "bt_in1k"),
    *(_resnet_3d(depth, "", (1, 1, 1)) for depth in (10, 18, 34, 50)),
    *(_resnet_3d(depth, "_s2", (2, 2, 2)) for depth in (10, 18, 34, 50)),
    *(_resnet_3d(depth, "_s122", (1, 2, 2)) for depth in (10, 18, 34, 50)),
)
NETWORKS: dict[str, NetworkSpec] = {spec.name: spec for spec in _TABLE}


def network_spec(name: str) -> NetworkSpec:
    """Look a network up.

    Raises:
        PlanError: no such network; lists those that exist.
    """
    if name not in NETWORKS:
        raise PlanError(f"network {name!r} is unknown. Choose one of: {', '.join(NETWORKS)}.")
    return NETWORKS[name]


def build_network(
    name: str, *, n_channels: int, n_classes: int, drop_path: float = 0.0, dropout: float = 0.0
) -> nn.Module:
    """Build a network with random weights; the same `torch.manual_seed` gives the same weights.

    Args:
        name: a key of `NETWORKS`.
        n_channels: image channels, at least 1.
        n_classes: classes, at least 2.
        drop_path: probability in [0, 1) of skipping a residual branch (2D networks only).
        dropout: probability in [0, 1) of zeroing a feature before the classifier.

    Returns:
        Module from (N, C, H, W) or (N, C, D, H, W) float to logits (N, n_classes).

    Raises:
        PlanError: unknown name, a number out of range, or drop_path for a 3D network.
        MissingDependencyError: timm or monai is not installed.
    """
    spec = network_spec(name)
    _check_numbers(spec, n_channels, n_classes, drop_path, dropout)
    build = {"timm": _build_timm, "monai": _build_monai, "her2net": _build_scattering}[spec.library]
    return build(spec, n_channels, n_classes, drop_path, dropout)


def _check_numbers(spec: NetworkSpec, n_channels: int, n_classes: int, drop_path: float, dropout: float) -> None:
    if n_channels < 1:
        raise PlanError(f"network {spec.name}: n_channels is {n_channels}, expected at least 1.")
    if n_classes < 2:
        raise PlanError(f"network {spec.name}: n_classes is {n_classes}, expected at least 2.")
    for key, value in (("drop_path", drop_path), ("dropout", dropout)):
        if not 0.0 <= value < 1.0:
            raise PlanError(f"network {spec.name}: {key} is {value}, expected a number in [0, 1).")
    if why := why_nothing_is_dropped(spec, drop_path, dropout):
        raise PlanError(f"network {spec.name}: {why}")


def why_nothing_is_dropped(spec: NetworkSpec, drop_path: float, dropout: float = 0.0) -> str:
    """Say why a network has no stochastic depth or dropout of its own; empty if it has, or if none is asked for."""
    if spec.solved and (drop_path or dropout):
        return "nothing is dropped where the classifier is solved. Set drop_path and dropout to 0."
    return "MONAI's ResNet has no stochastic depth. Set drop_path to 0." if drop_path and spec.ndim == 3 else ""


def _build_timm(spec: NetworkSpec, n_channels: int, n_classes: int, drop_path: float, dropout: float) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise MissingDependencyError(f"{spec.name} comes from timm, which is missing. Run: pip install timm") from error
    return timm.create_model(
        spec.library_name, pretrained=False, in_chans=n_channels, num_classes=n_classes,
        drop_path_rate=drop_path, drop_rate=dropout, **spec.options,
    )  # fmt: skip


def _build_monai(spec: NetworkSpec, n_channels: int, n_classes: int, drop_path: float, dropout: float) -> nn.Module:
    try:
        from monai.networks import nets
    except ImportError as error:
        raise MissingDependencyError(
            f"{spec.name} comes from MONAI, which is missing. Run: pip install monai"
        ) from error
    from torch import nn

    from her2net.networks.layers import DropoutLinear, PaddedShortcut, specialise

    network = getattr(nets, spec.library_name)(
        spatial_dims=3, n_input_channels=n_channels, num_classes=n_classes, **spec.options
    )
    for block in network.modules():
        shortcut = getattr(block, "downsample", None)
        if isinstance(shortcut, partial):  # MONAI's own cuts the gradient (it pads `out.data`)
            block.downsample = PaddedShortcut(shortcut.keywords["planes"], shortcut.keywords["stride"])
    if spec.options["conv1_t_stride"] == (1, 2, 2):
        network.maxpool = nn.MaxPool3d(kernel_size=3, stride=(1, 2, 2), padding=1)
    network.fc = DropoutLinear.from_linear(network.fc, dropout)
    specialise(network)
    return network


def _build_scattering(spec: NetworkSpec, n_channels: int, n_classes: int, drop_path: float, dropout: float) -> nn.Module:
    from her2net.networks.scattering import ScatteringNetwork

    return ScatteringNetwork(spec.ndim, n_channels, n_classes)
