"""Crop, resample, normalise and cache: what the network sees, and that nothing stale is reused."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from her2net.errors import CacheError, MissingArtefactError
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.cache import CaseFiles, build_cache, cache_is_fresh, load_cache
from her2net.preprocess.crop import crop_window, lesion_box, widen
from her2net.preprocess.prepare import prepare_arrays
from her2net.preprocess.resample import axis_matrix, resample
from her2net.raw.images import Volume


def make_plan(**changes: object) -> PreprocessingPlan:
    values: dict = {
        "margin": 0.3, "margin_unit": "lesion", "aspect": "keep", "statistics": "crop", "joint_channels": False,
        "input_vox": [16, 16], "stored_vox": [20, 20],
    }  # fmt: skip
    return PreprocessingPlan(**(values | changes))


def box_mask(shape: tuple[int, ...], *edges: tuple[int, int]) -> np.ndarray:
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in edges)] = True
    return mask


def test_lesion_box_is_the_smallest_box() -> None:
    start, stop = lesion_box(box_mask((9, 20, 30), (2, 4), (5, 11), (7, 8)))
    assert start.tolist() == [2, 5, 7]
    assert stop.tolist() == [4, 11, 8]
    assert lesion_box(np.zeros((4, 4), bool)) is None


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31))
def test_lesion_box_agrees_with_all_voxels(seed: int) -> None:
    mask = np.random.default_rng(seed).random((5, 7, 6)) > 0.97
    found = lesion_box(mask)
    if not mask.any():
        assert found is None
        return
    voxels = np.argwhere(mask)
    assert (found[0] == voxels.min(0)).all()
    assert (found[1] == voxels.max(0) + 1).all()


@pytest.mark.parametrize("value", [0, 37, 255])
def test_a_crop_that_shows_nothing_is_measured_by_the_image(value: int) -> None:
    """Else what lies just beside it would be thousands of standard deviations away, up to the largest float16."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(40, 200, (1, 80, 80)).astype(np.uint8)
    normal = prepare_arrays(Volume(pixels, None), box_mask((80, 80), (30, 50), (30, 50)), make_plan()).image
    pixels[0, 20:60, 20:60] = value
    blank = prepare_arrays(Volume(pixels, None), box_mask((80, 80), (30, 50), (30, 50)), make_plan(stored_vox=[40, 40])).image
    assert np.abs(blank).max() < 8
    assert np.abs(center(blank, 16)).max() < 0.1
    assert 0.1 < normal.astype(float).std() < 1.2


def center(image: np.ndarray, n: int) -> np.ndarray:
    first = (image.shape[-1] - n) // 2
    return image[..., first : first + n, first : first + n]


def test_paper_window_is_the_box_and_fifty_pixels_cut_at_the_border() -> None:
    plan = make_plan(margin=50.0, margin_unit="px", aspect="squash")
    start, stop = crop_window((np.array([100, 20]), np.array([140, 90])), (300, 400), None, plan)
    assert start.tolist() == [50, 0]
    assert stop.tolist() == [190, 140]


def test_kept_aspect_is_square_in_millimetres_and_moves_into_the_image() -> None:
    start, stop = crop_window((np.array([0, 50]), np.array([20, 60])), (200, 200), (0.5, 1.0), make_plan(margin=0.0))
    edges = (stop - start) * np.array([0.5, 1.0])
    assert edges.tolist() == pytest.approx([10, 10])
    assert (start >= 0).all()
    assert start[0] == 0


def test_thick_slices_keep_their_own_depth() -> None:
    plan = make_plan(aspect="keep_in_plane", margin=0.0, input_vox=[8, 16, 16], stored_vox=[8, 16, 16])
    start, stop = crop_window((np.array([1, 10, 10]), np.array([3, 30, 20])), (6, 64, 64), (10.0, 1.0, 1.0), plan)
    assert (stop - start).tolist() == [2, 20, 20]


def test_resampling_to_its_own_grid_changes_nothing() -> None:
    array = np.random.default_rng(0).normal(size=(2, 5, 6, 7)).astype(np.float32)
    assert np.allclose(resample(array, [0, 0, 0], [5, 6, 7], [5, 6, 7]), array, atol=1e-6)


def test_resampling_equals_torch_away_from_the_border() -> None:
    import torch
    from torch.nn import functional as F

    array = np.random.default_rng(0).normal(size=(1, 90, 111)).astype(np.float32)
    ours = resample(array, [0, 0], [90, 111], [40, 50])
    theirs = F.interpolate(torch.from_numpy(array)[None], (40, 50), mode="bicubic", antialias=True)[0].numpy()
    assert np.abs(ours - theirs)[:, 3:-3, 3:-3].max() < 1e-5


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((2, 30, 70, 90), (24, 48, 31)),
        ((3, 20, 100, 100), (8, 40, 40)),
        ((1, 500, 600), (72, 72)),
        ((3, 64, 64), (288, 250)),
        ((1, 1, 1), (5, 5)),
    ],
)
def test_resampling_in_bands_equals_whole_matrices(shape: tuple[int, ...], size: tuple[int, ...]) -> None:
    array = np.random.default_rng(0).normal(size=shape)
    start, stop = -0.2 * np.array(shape[1:]), 1.1 * np.array(shape[1:])
    whole = array
    for axis, (n, a, b, m) in enumerate(zip(shape[1:], start, stop, size, strict=True), start=1):
        needed, matrix = axis_matrix(n, a, b, m)
        whole = np.moveaxis(np.tensordot(matrix.astype(float), whole.take(range(n)[needed], axis), (1, axis)), 0, axis)
    found = resample(array, start, stop, size)
    assert found.flags.c_contiguous
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, whole, rtol=0, atol=2e-6)


def test_resampling_does_not_alias() -> None:
    x = np.arange(256)
    fast = np.sin(2 * np.pi * x * 0.45)[None, None].repeat(8, axis=1).astype(np.float32)
    assert np.abs(resample(fast, [0, 0], [8, 256], [8, 64])[..., 4:-4]).max() < 0.1


def test_outside_the_image_the_border_is_repeated() -> None:
    array = np.full((1, 4, 4), 7, np.uint8)
    assert np.allclose(resample(array, [-4, -4], [8, 8], [12, 12]), 7)


def test_stored_room_surrounds_the_window_at_the_same_scale() -> None:
    start, stop = widen((np.array([10.0, 10.0]), np.array([26.0, 42.0])), make_plan())
    assert start.tolist() == [8, 6]
    assert stop.tolist() == [28, 46]


def test_prepared_case_is_z_scored_by_its_own_crop() -> None:
    rng = np.random.default_rng(0)
    image = Volume(rng.normal(100, 25, (1, 60, 60)).astype(np.float32))
    plan = make_plan(margin=0.0, input_vox=[20, 20], stored_vox=[20, 20])
    found = prepare_arrays(image, box_mask((60, 60), (20, 40), (20, 40)), plan)
    assert found.image.dtype == np.float16
    assert abs(float(found.image.astype(np.float32).mean())) < 0.01
    assert abs(float(found.image.astype(np.float32).std()) - 1) < 0.01
    assert found.mask.all()


def test_joint_channels_keep_enhancement() -> None:
    pre = np.random.default_rng(0).normal(100, 10, (4, 20, 20))
    image = Volume(np.stack([pre, pre + 50]).astype(np.float32))
    sizes = {"input_vox": [4, 20, 20], "stored_vox": [4, 20, 20], "aspect": "squash"}
    joint = prepare_arrays(image, None, make_plan(joint_channels=True, **sizes)).image.astype(np.float32)
    apart = prepare_arrays(image, None, make_plan(joint_channels=False, **sizes)).image.astype(np.float32)
    assert joint[1].mean() - joint[0].mean() > 1
    assert abs(apart[1].mean() - apart[0].mean()) < 0.01


def test_derived_channels_are_uptake_without_the_gain_of_the_scanner() -> None:
    pre = np.random.default_rng(0).normal(100, 10, (4, 20, 20))
    sizes = {"input_vox": [4, 20, 20], "stored_vox": [4, 20, 20], "aspect": "squash", "joint_channels": True}
    plan = make_plan(derived_channels=["subtraction", "wash-in", "wash-out"], **sizes)
    image = np.stack([pre, 2 * pre, 1.5 * pre]).astype(np.float32)
    one = prepare_arrays(Volume(image), None, plan).image.astype(np.float32)
    louder = prepare_arrays(Volume(7 * image), None, plan).image.astype(np.float32)
    assert one.shape == (6, 4, 20, 20)
    np.testing.assert_allclose(one[3], one[1] - one[0], atol=0.01)
    np.testing.assert_allclose(one[4], 1, atol=0.01)  # the signal doubles
    np.testing.assert_allclose(one[5], -0.25, atol=0.01)  # and a quarter of it leaves again
    np.testing.assert_allclose(one, louder, atol=0.02)
    np.testing.assert_array_equal(one[:3], prepare_arrays(Volume(image), None, make_plan(**sizes)).image)


def test_the_mask_is_a_channel_only_if_the_plan_says_so() -> None:
    image = Volume(np.random.default_rng(0).integers(0, 255, (1, 40, 50)).astype(np.uint8))
    mask = np.zeros((40, 50), bool)
    mask[10:25, 20:35] = True
    without = prepare_arrays(image, mask, make_plan())
    shown = prepare_arrays(image, mask, make_plan(derived_channels=["mask"]))
    np.testing.assert_array_equal(shown.image[:1], without.image)
    np.testing.assert_array_equal(shown.image[1], 2.0 * shown.mask - 1)
    assert set(np.unique(shown.image[1])) == {-1, 1}
    assert not prepare_arrays(image, None, make_plan(derived_channels=["mask"])).image[1].any(), "neither inside nor outside"


def test_uptake_of_air_is_bounded() -> None:
    image = np.stack([np.zeros((4, 20, 20)), np.full((4, 20, 20), 3.0)]).astype(np.float32)
    image[:, :, :10] = 100
    sizes = {"input_vox": [4, 20, 20], "stored_vox": [4, 20, 20], "aspect": "squash"}
    plan = make_plan(derived_channels=["wash-in"], **sizes)
    found = prepare_arrays(Volume(image), None, plan).image
    assert 0 < float(found[2].max()) < 1


def test_constant_image_stays_finite() -> None:
    found = prepare_arrays(Volume(np.full((1, 30, 30), 5, np.uint8)), None, make_plan())
    assert np.isfinite(found.image).all()
    assert not found.has_mask


@pytest.fixture
def cases(tmp_path: Path) -> list[CaseFiles]:
    from PIL import Image

    rng = np.random.default_rng(0)
    found = []
    for i in range(5):
        path, mask = tmp_path / f"c{i}.png", tmp_path / f"c{i}_mask.png"
        Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(path)
        Image.fromarray((box_mask((40, 50), (10, 25), (12, 30)) * 255).astype(np.uint8)).save(mask)
        found.append(CaseFiles(f"c{i}", (path,), mask, f"digest{i}"))
    return found


def test_cache_recomputes_only_the_case_that_changed(tmp_path: Path, cases: list[CaseFiles]) -> None:
    path, plan = tmp_path / "cache" / "US_x.h5", make_plan()
    assert build_cache(path, cases, plan, n_workers=1, quiet=True) == 5
    assert cache_is_fresh(path, cases, plan)
    before = load_cache(path, [case.case_id for case in cases])
    changed = [*cases[:2], CaseFiles("c2", cases[3].images, cases[3].mask, "other"), *cases[3:]]
    assert not cache_is_fresh(path, changed, plan)
    assert build_cache(path, changed, plan, n_workers=1, quiet=True) == 1
    after = load_cache(path, [case.case_id for case in cases])
    assert (after.image[[0, 1, 3, 4]] == before.image[[0, 1, 3, 4]]).all()
    assert (after.image[2] == before.image[3]).all()
    assert sorted(p.name for p in path.parent.iterdir()) == ["US_x.h5"]


def test_another_crop_never_reuses_the_rows(tmp_path: Path, cases: list[CaseFiles]) -> None:
    path = tmp_path / "US_x.h5"
    build_cache(path, cases, make_plan(), n_workers=1, quiet=True)
    assert not cache_is_fresh(path, cases, make_plan(margin=0.5))


def test_worker_processes_give_the_same_bytes(tmp_path: Path, cases: list[CaseFiles]) -> None:
    many = [CaseFiles(f"{c.case_id}_{k}", c.images, c.mask, c.source_digest) for k in range(2) for c in cases]
    build_cache(tmp_path / "a.h5", many, make_plan(), n_workers=1, quiet=True)
    build_cache(tmp_path / "b.h5", many, make_plan(), n_workers=2, quiet=True)
    ids = [case.case_id for case in many]
    a, b = load_cache(tmp_path / "a.h5", ids), load_cache(tmp_path / "b.h5", ids)
    assert (a.image == b.image).all()
    assert (a.mask == b.mask).all()


def test_damaged_row_is_found_and_rebuilt(tmp_path: Path, cases: list[CaseFiles]) -> None:
    path, plan = tmp_path / "US_x.h5", make_plan()
    build_cache(path, cases, plan, n_workers=1, quiet=True)
    with h5py.File(path, "r+") as file:
        file["image"][3, 0, 0, 0] += np.float16(1)
    with pytest.raises(CacheError, match=r"damaged rows: c3"):
        load_cache(path, [case.case_id for case in cases])
    assert build_cache(path, cases, plan, n_workers=1, quiet=True) == 1
    load_cache(path, [case.case_id for case in cases])


def test_truncated_and_absent_caches_are_named(tmp_path: Path, cases: list[CaseFiles]) -> None:
    path = tmp_path / "US_x.h5"
    with pytest.raises(MissingArtefactError, match="her2net_plan"):
        load_cache(path, ["c0"])
    build_cache(path, cases, make_plan(), n_workers=1, quiet=True)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CacheError, match="cannot be read"):
        load_cache(path, ["c0"])
    assert build_cache(path, cases, make_plan(), n_workers=1, quiet=True) == 5


@pytest.mark.parametrize("seed", range(8))
def test_a_mask_resampled_within_its_lesion_is_the_same_mask(seed: int) -> None:
    rng = np.random.default_rng(seed)
    ndim = 2 + seed % 2
    mask = np.zeros(rng.integers(12, 60, ndim), bool)
    start = [int(rng.integers(0, n - 4)) for n in mask.shape]
    mask[tuple(slice(a, a + int(rng.integers(1, 12))) for a in start)] = True
    first = [float(rng.uniform(-4, a + 2)) for a in start]  # the lesion may lie across the window or outside of it
    window = first, [a + float(rng.uniform(3, 40)) for a in first]
    size = [int(n) for n in rng.integers(4, 50, ndim)]
    whole = resample(mask[None], *window, size, linear=True)
    assert np.abs(resample(mask[None], *window, size, linear=True, box=lesion_box(mask)) - whole).max() < 1e-6
