"""The augmentation section of a plan: which transforms, how likely and how strong.

Seven transforms, in the order in which they act: flip, scale and shift (one geometric
step), Gaussian blur, contrast and brightness, Gaussian noise; then mixup of the batch.
A transform is off when its probability is 0. Three more (rotation, elastic deformation, gamma) are off unless
the plan asks for them, and need the engine `batchgenerators`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from her2net.artefact import Strict

Probability = Annotated[float, Field(ge=0.0, le=1.0)]
Range = tuple[float, float]

LIMITS: dict[str, Range] = {
    "scale": (0.25, 4.0),
    "noise_std": (0.0, 5.0),
    "blur_sigma_vox": (0.0, 8.0),
    "brightness": (-10.0, 10.0),
    "contrast": (0.0, 10.0),
    "elastic_alpha": (0.0, 10000.0),
    "elastic_sigma_vox": (0.5, 100.0),
    "gamma": (0.1, 10.0),
}


class AugmentationPlan(Strict):
    """Ranges are inclusive (low, high); every sample draws anew.

    Attributes:
        flip_axes: per spatial axis, in array order ([D,] H, W), whether it may be flipped.
        flip_probability: of flipping each axis that may be flipped.
        scale: magnification about the centre of the crop, drawn log-uniformly, above 1 enlarges; in [0.25, 4].
        scale_probability: of scaling.
        shift: largest shift of the content per axis, as a fraction of the input size, either way. In [0, 0.5].
        shift_probability: of shifting.
        blur_sigma_vox: standard deviation of the Gaussian blur, voxels of the input. In [0, 8].
        blur_probability: of blurring.
        contrast: factor on the deviation from the mean of the channel. In [0, 10].
        contrast_probability: of a contrast change.
        brightness: added to every voxel, in the units of the normalised image (z-scores). In [-10, 10].
        brightness_probability: of a brightness change.
        noise_std: standard deviation of the Gaussian noise, in the units of the normalised image. In [0, 5].
        noise_probability: of adding noise.
        mixup_alpha: parameter of the Beta(alpha, alpha) from which mixing weights come; 0 switches mixup off.
        engine: `separable`, matrix products where the network is; or `batchgenerators` (an extra package), sample by
            sample in worker processes, which also knows the transforms below. They are for trials: no preset uses them.
        rotation_deg: largest angle about each axis, in voxels counted as cubes, either way. In [0, 180].
        rotation_probability: of rotating.
        elastic_alpha: strength of an elastic deformation, as batchgenerators takes it.
        elastic_sigma_vox: its smoothness, voxels. In [0.5, 100].
        elastic_probability: of deforming.
        gamma: exponent on the intensities of a channel, scaled to 0..1; mean and SD are kept. In [0.1, 10].
        gamma_probability: of a change of gamma.
    """

    flip_axes: tuple[bool, ...] = Field(min_length=2, max_length=3)
    flip_probability: Probability
    scale: Range
    scale_probability: Probability
    shift: float = Field(ge=0.0, le=0.5)
    shift_probability: Probability
    blur_sigma_vox: Range
    blur_probability: Probability
    contrast: Range
    contrast_probability: Probability
    brightness: Range
    brightness_probability: Probability
    noise_std: Range
    noise_probability: Probability
    mixup_alpha: float = Field(default=0.0, ge=0.0, le=10.0)
    engine: Literal["separable", "batchgenerators"] = "separable"
    rotation_deg: float = Field(default=15.0, ge=0.0, le=180.0)
    rotation_probability: Probability = 0.0
    elastic_alpha: Range = (0.0, 200.0)
    elastic_sigma_vox: Range = (9.0, 13.0)
    elastic_probability: Probability = 0.0
    gamma: Range = (0.7, 1.5)
    gamma_probability: Probability = 0.0

    @model_validator(mode="after")
    def _check_ranges(self) -> AugmentationPlan:
        for key, (lowest, highest) in LIMITS.items():
            low, high = getattr(self, key)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"{key} is ({low}, {high}), expected {lowest} <= low <= high <= {highest}")
        return self

    @model_validator(mode="after")
    def _check_engine(self) -> AugmentationPlan:
        wanted = [key for key in ("rotation", "elastic", "gamma") if getattr(self, f"{key}_probability") > 0]
        if wanted and self.engine == "separable":
            raise ValueError(f"{', '.join(wanted)} cannot be separated into axes: set engine to 'batchgenerators'")
        return self

    @property
    def used(self) -> dict[str, Any]:
        """What changes an image, as plain JSON; the transforms of batchgenerators count with that engine alone."""
        values = self.model_dump(mode="json")
        if self.engine == "batchgenerators":
            return values
        others = ("engine", "rotation", "elastic", "gamma")
        return {key: value for key, value in values.items() if not key.startswith(others)}

    @property
    def ndim(self) -> int:
        """Number of spatial axes, 2 or 3."""
        return len(self.flip_axes)

    @property
    def mirrored_axes(self) -> list[int]:
        """Spatial axes along which training flips, hence along which test-time augmentation may."""
        return [axis for axis, may in enumerate(self.flip_axes) if may and self.flip_probability > 0]

    @property
    def reach(self) -> float:
        """How far beyond the crop the strongest draw looks on each side, as a fraction of the input size.

        A cache that stores this margin never has to repeat its edge voxels, the few voxels of the blur apart.
        """
        scale = (1.0 / min(1.0, self.scale[0]) - 1.0) / 2.0 if self.scale_probability else 0.0
        return scale + (self.shift if self.shift_probability else 0.0)


def _flip_axes(ndim: int) -> tuple[bool, ...]:
    # An ultrasound image has a direction: the beam comes from above and shadows fall below a lesion.
    return (False, True) if ndim == 2 else (True,) * ndim


def paper_augmentation(ndim: int) -> AugmentationPlan:
    """Return the augmentation of the paper for 2D (US) or 3D (MRI) images.

    The paper names the seven transforms, and Mixup for US, and prints no range, probability or alpha.
    Taken here: the ranges and probabilities of nnU-Net's default augmentation for scale, blur, noise,
    brightness and contrast; shifts of up to a tenth of the crop; flips left-right in 2D and along all
    axes in 3D; Mixup with alpha 0.2, the middle of the range its authors recommend for ImageNet.

    Source:
        Fan et al. 2025, doi:10.17305/bb.2025.12475; Isensee et al. 2021, supplementary note 4,
        doi:10.1038/s41592-020-01008-z; Zhang et al. 2018, mixup, arXiv:1710.09412.
    """
    return AugmentationPlan(
        flip_axes=_flip_axes(ndim),
        flip_probability=0.5,
        scale=(0.7, 1.4),
        scale_probability=0.2,
        shift=0.1,
        shift_probability=0.2,
        blur_sigma_vox=(0.5, 1.0),
        blur_probability=0.2,
        contrast=(0.75, 1.25),
        contrast_probability=0.15,
        brightness=(-0.25, 0.25),
        brightness_probability=0.15,
        noise_std=(0.0, 0.3),
        noise_probability=0.1,
        mixup_alpha=0.2 if ndim == 2 else 0.0,
    )


def mirrors_only(ndim: int) -> AugmentationPlan:
    """Return the augmentation of networks whose classifier is solved: each case as it is, and mirrored left-right.

    More was tried and did harm (docs/LOG.md): fixed wavelets do not learn to overlook noise or another contrast.
    """
    names = ("scale", "shift", "blur", "contrast", "brightness", "noise")
    off = {f"{name}_probability": 0.0 for name in names} | {"flip_probability": 1.0, "mixup_alpha": 0.0}
    left_right = (False,) * (ndim - 1) + (True,)
    return paper_augmentation(ndim).model_copy(update=off | {"flip_axes": left_right})


def default_augmentation(ndim: int) -> AugmentationPlan:
    """Return the augmentation of the preset `auto` for networks that learn their filters.

    The transforms of the paper, more often, and geometry milder: the cohorts are small, and the size of a lesion
    in its crop carries meaning.
    """
    return paper_augmentation(ndim).model_copy(
        update={
            "scale": (0.8, 1.25),
            "scale_probability": 0.8,
            "shift_probability": 0.8,
            "contrast": (0.7, 1.3),
            "contrast_probability": 0.7,
            "brightness": (-0.3, 0.3),
            "brightness_probability": 0.7,
            "noise_probability": 0.5,
            "noise_std": (0.0, 0.2),
            "mixup_alpha": 0.4 if ndim == 2 else 0.0,
        }
    )
