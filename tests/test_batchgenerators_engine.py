"""The engine `batchgenerators`: equal to the separable one on what both do, and deterministic in what it alone does."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from her2net.errors import MissingDependencyError
from her2net.plan.augmentation import AugmentationPlan, paper_augmentation
from her2net.train import batches as module
from her2net.train.augment import augment, draw_parameters
from her2net.train.batches import augmented_batches, draw_samples
from her2net.train.batchgenerators_engine import augment_sample, require_batchgenerators

INPUT = {2: (20, 24), 3: (9, 12, 16)}
STORED = {2: (26, 32), 3: (13, 18, 22)}
BOTH = pytest.mark.parametrize("ndim", [2, 3])
ALL_SHARED = {f"{key}_probability": 1.0 for key in ("scale", "shift", "blur", "contrast", "brightness")}


def settings(ndim: int, **changes: Any) -> AugmentationPlan:
    """The paper's ranges, without noise, by batchgenerators."""
    base = paper_augmentation(ndim).model_dump() | {"engine": "batchgenerators", "noise_probability": 0.0}
    return AugmentationPlan(**(base | changes))


def some_images(ndim: int, n: int = 5) -> Tensor:
    return torch.randn(n, 2, *STORED[ndim], generator=torch.Generator().manual_seed(1)).half()


def test_rotation_elastic_and_gamma_need_the_engine() -> None:
    for key in ("rotation", "elastic", "gamma"):
        with pytest.raises(ValidationError, match=f"{key}.*batchgenerators"):
            settings(2, engine="separable", **{f"{key}_probability": 0.2})


def test_what_the_separable_engine_ignores_makes_no_fold_stale() -> None:
    plan = paper_augmentation(2)
    assert plan.used == plan.model_copy(update={"rotation_deg": 90.0, "gamma": (0.5, 2.0)}).used
    assert set(plan.model_dump()) - set(plan.used) == {
        "engine", "rotation_deg", "rotation_probability", "elastic_alpha", "elastic_sigma_vox", "elastic_probability",
        "gamma", "gamma_probability",
    }  # fmt: skip
    assert settings(2).used["engine"] == "batchgenerators"


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "batchgenerators"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "batchgenerators", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "her2net\[batchgenerators\]"'):
        require_batchgenerators()


@BOTH
def test_shared_transforms_equal_those_of_the_separable_engine(ndim: int) -> None:
    pytest.importorskip("batchgenerators")
    plan, images = settings(ndim, **ALL_SHARED), some_images(ndim)
    draws = draw_samples(len(images), plan, torch.Generator().manual_seed(7))
    shared = draw_parameters(len(images), ndim, plan, torch.Generator().manual_seed(7))
    expected = augment(images, INPUT[ndim], shared).numpy()
    found = np.stack([augment_sample(x, INPUT[ndim], draw) for x, draw in zip(images.numpy(), draws, strict=True)])
    assert any(any(draw.flip) for draw in draws)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    pytest.importorskip("batchgenerators")
    image = some_images(2)[0, :, :20, :20].float().numpy()
    still = draw_samples(1, settings(2, scale_probability=0.0, shift_probability=0.0, flip_probability=0.0, blur_probability=0.0,
                                     contrast_probability=0.0, brightness_probability=0.0), torch.Generator())[0]  # fmt: skip
    np.testing.assert_allclose(augment_sample(image, (20, 20), still), image, atol=1e-5)
    turned = augment_sample(image, (20, 20), replace(still, angles_rad=(np.pi / 2,)))
    quarter = min(np.abs(turned - np.rot90(image, k, axes=(1, 2))).max() for k in (1, 3))
    assert quarter < 1e-4


@BOTH
def test_gamma_and_deformation_change_the_image_and_follow_their_seed(ndim: int) -> None:
    pytest.importorskip("batchgenerators")
    image = some_images(ndim)[0].float().numpy()
    plan = settings(ndim, elastic_probability=1.0, gamma_probability=1.0, rotation_probability=1.0, elastic_sigma_vox=(2.0, 3.0))
    draw, other = draw_samples(2, plan, torch.Generator().manual_seed(3))
    before = np.random.get_state()[1].copy()
    first, again = augment_sample(image, INPUT[ndim], draw), augment_sample(image, INPUT[ndim], draw)
    assert np.array_equal(first, again)
    assert np.array_equal(np.random.get_state()[1], before)
    assert np.isfinite(first).all()
    assert np.abs(first - augment_sample(image, INPUT[ndim], replace(draw, seed=draw.seed + 1))).max() > 1e-3
    assert np.abs(first - augment_sample(image, INPUT[ndim], other)).max() > 1e-3


def test_batches_are_the_same_in_one_process_and_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("batchgenerators")
    images, plan = some_images(2, 12), settings(2, noise_probability=1.0, rotation_probability=1.0)
    rows = torch.randperm(12, generator=torch.Generator().manual_seed(2)).tensor_split(3)
    made = {}
    for n_workers in (1, 2):
        monkeypatch.setattr(module, "choose_workers", lambda *_, n=n_workers: n)
        made[n_workers] = list(augmented_batches(images, rows, INPUT[2], plan, torch.Generator().manual_seed(5)))
    assert [batch.shape for batch in made[1]] == [(4, 2, *INPUT[2])] * 3
    assert all(torch.equal(a, b) for a, b in zip(made[1], made[2], strict=True))


def test_workers_do_not_import_torch() -> None:
    source = Path(module.__file__).with_name("batchgenerators_engine.py").read_text(encoding="utf-8")
    assert "import torch" not in source.replace("nothing here imports torch", "")
