"""Features of what lies around a lesion: they see shadow, contrast and a blurred margin, and neither gain nor size."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from her2net.tabular.surroundings import describe_surroundings

ALL = ("ring", "margin", "behind")


def make_lesion(n: int = 128, *, blur: float = 1.0, shadow: float = 0.0, darkness: float = 60.0) -> tuple[np.ndarray, np.ndarray]:
    """Return a dark disc in grainy tissue, with a darker (or brighter) strip below it; grain, blur and disc grow with n."""
    scale = n / 128
    y, x = np.mgrid[:n, :n] / scale
    lesion = (y - 56) ** 2 + (x - 64) ** 2 <= 20**2
    grain = ndimage.zoom(np.random.default_rng(0).normal(size=(32, 32)), n / 32, order=1)
    image = 120 + 8 * grain - darkness * ndimage.gaussian_filter(lesion.astype(float), blur * scale)
    image[(y > 76) & (np.abs(x - 64) < 16)] -= shadow
    return image, lesion


def describe(image: np.ndarray, lesion: np.ndarray) -> dict[str, float]:
    return describe_surroundings(image, lesion, (1.0, 1.0), ALL)


def test_shadow_and_enhancement_behind_the_lesion_have_opposite_signs() -> None:
    plain, dark, bright = (describe(*make_lesion(shadow=s))["behind_shadow"] for s in (0.0, 40.0, -40.0))
    assert dark < -0.5 < plain < 0.5 < bright
    image, lesion = make_lesion(shadow=40.0)
    above = describe(image[::-1], lesion[::-1])
    assert abs(above["behind_shadow"]) < 0.5, "rows go down into the body: what is above is not behind"


def test_a_blurred_margin_is_seen() -> None:
    sharp, blurred = (describe(*make_lesion(blur=b)) for b in (1.0, 8.0))
    assert sharp["margin_fine_slope"] > 2 * blurred["margin_fine_slope"]
    assert sharp["margin_fine_lost"] < blurred["margin_fine_lost"]


def test_a_lesion_that_differs_from_its_ring_is_seen() -> None:
    dark, same = (describe(*make_lesion(darkness=d)) for d in (60.0, 0.0))
    assert dark["ring_contrast_lesion_near"] < -1
    assert abs(same["ring_contrast_lesion_near"]) < 0.5
    assert dark["ring_order_lesion_far"] < 0.1 < 0.3 < same["ring_order_lesion_far"] < 0.7


def test_neither_gain_nor_magnification_matters() -> None:
    image, lesion = make_lesion(shadow=20.0)
    first = describe(image, lesion)
    assert describe(3 * image, lesion) == pytest.approx(first, rel=1e-3, abs=1e-5)
    large = describe(*make_lesion(256, shadow=20.0))
    for name, value in first.items():
        assert large[name] == pytest.approx(value, abs=0.25), name


def test_what_stands_outside_of_the_image_is_missing_not_made_up() -> None:
    image, lesion = make_lesion()
    cut = int(np.flatnonzero(lesion.any(axis=1))[-1]) + 1
    found = describe(image[:cut], lesion[:cut])
    assert np.isnan(found["behind_shadow"])
    assert np.isfinite([v for name, v in found.items() if not name.startswith("behind")]).all()
    whole = describe(image, np.ones_like(lesion))
    assert np.isnan(whole["ring_contrast_lesion_near"])


def test_volumes_with_thick_slices() -> None:
    image, lesion = make_lesion(64)
    volume, mask = np.stack([image] * 5), np.stack([np.zeros_like(lesion), lesion, lesion, lesion, np.zeros_like(lesion)])
    found = describe_surroundings(volume, mask, (6.0, 1.0, 1.0), ("ring", "margin"))
    assert found["ring_contrast_lesion_far"] < -0.5
    assert np.isfinite(list(found.values())).all()
    assert {name.partition("_")[0] for name in found} == {"ring", "margin"}


def test_a_volume_of_one_slice_has_the_margin_of_the_slice() -> None:
    """Along the axis of one voxel there is no slope."""
    image, lesion = make_lesion(64)
    flat = describe_surroundings(image, lesion, (1.0, 1.0), ("margin",))
    found = describe_surroundings(image[None], lesion[None], (6.0, 1.0, 1.0), ("ring", "margin"))
    assert np.isfinite(list(found.values())).all()
    assert set(flat) < set(found)
    assert found["margin_fine_slope"] > 0.1
