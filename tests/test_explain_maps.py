"""Grad-CAM, Grad-CAM++, occlusion, and the way back to the voxels of the original image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from her2net.explain import draw
from her2net.explain.geometry import rectify, to_original, window_slices
from her2net.explain.maps import (
    Layer,
    ZScore,
    attribute,
    choose_layer,
    combine,
    grad_cam,
    grad_cam_per_place,
    grad_cam_plus_plus,
    layer_gradient,
    occlusion,
    restandardise,
    sum_windows,
)
from her2net.explain.measure import compare_with_random, localise, mean_over_cases, perturb, random_networks
from her2net.explain.planes import Plane, cut_plane, patient_axes
from her2net.networks.build import NETWORKS, build_network
from her2net.plan.schema import PreprocessingPlan
from her2net.preprocess.crop import crop_window, lesion_box
from her2net.preprocess.prepare import prepare_arrays
from her2net.raw.images import Volume, compare_grids, read_image, write_nifti

QUICK = ("scattering_2d", "scattering_3d", "convnextv2_atto", "resnet10t", "resnet10_3d_s122")


class Spots(nn.Module):
    """A network whose answer is known: class 1 is the mean of channel 0 of its map, class 0 that of channel 1."""

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Conv2d(1, 2, 4, stride=4, bias=False)
        with torch.no_grad():
            self.maps.weight[0], self.maps.weight[1] = 1.0, -1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.maps(x)).mean((2, 3)).flip(1)


def spots() -> tuple[nn.Module, torch.Tensor]:
    """Bright at the top left (class 1), dark at the bottom right (class 0)."""
    x = torch.zeros(1, 1, 32, 32)
    x[0, 0, 4:8, 4:8], x[0, 0, 24:28, 20:24] = 1.0, -1.0
    return Spots().eval(), x


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "occlusion"])
def test_each_class_is_found_where_it_is(method: str) -> None:
    network, x = spots()
    layer = Layer("maps", (8, 8))
    for target, place in ((1, (1, 1)), (0, (6, 5))):
        signed = attribute(method, network, layer, x, target, batch_size=16)  # type: ignore[arg-type]
        assert np.unravel_index(signed.argmax(), signed.shape) == place


def test_grad_cam_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    maps, gradient = rng.random((3, 2, 2)), rng.standard_normal((3, 2, 2))
    by_hand = sum(gradient[k].mean() * maps[k] for k in range(3))
    assert np.allclose(grad_cam(maps, gradient), by_hand)


def test_behind_mean_pooling_per_place_is_grad_cam_up_to_a_factor() -> None:
    rng = np.random.default_rng(0)
    maps, weights = rng.random((3, 4, 4)), rng.standard_normal((3, 1, 1))
    gradient = np.broadcast_to(weights, maps.shape)
    assert np.allclose(grad_cam_per_place(maps, gradient), grad_cam(maps, gradient))


def test_grad_cam_plus_plus_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    maps, g = rng.random((3, 2, 2)), rng.standard_normal((3, 2, 2))
    alpha = g**2 / (2 * g**2 + maps.sum((1, 2), keepdims=True) * g**3)
    weights = (alpha * np.maximum(g, 0)).sum((1, 2))
    assert np.allclose(grad_cam_plus_plus(maps, g), np.tensordot(weights, maps, 1))


def test_the_map_of_two_classes_is_one_map_with_two_signs() -> None:
    """The log odds of one class are minus those of the other, so what speaks for one speaks against the other."""
    network, x = spots()
    of_class = [attribute("gradcam", network, Layer("maps", (8, 8)), x, k, batch_size=1) for k in (0, 1)]
    assert np.allclose(of_class[0], -of_class[1])


@pytest.mark.parametrize("name", QUICK)
def test_the_table_names_layers_that_are_maps(name: str) -> None:
    """Also of the scattering networks, which have no trained convolution; the network is left as it was."""
    spec = NETWORKS[name]
    size = (64, 64) if spec.ndim == 2 else (8, 32, 32)
    torch.manual_seed(0)
    network = build_network(name, n_channels=2, n_classes=3).eval()
    x = torch.randn(1, 2, *size)
    before = network(x)
    layer = choose_layer(network, spec, 2, size)
    assert len(layer.grid) == spec.ndim
    assert min(layer.grid[-2:]) >= 4
    maps, gradient = layer_gradient(network, layer, x, 2)
    assert maps.shape == gradient.shape == (len(maps), *layer.grid)
    assert np.abs(gradient).max() > 0
    assert torch.equal(network(x), before)


def test_the_gradient_is_that_of_the_log_odds() -> None:
    """Against a small step on the standardised scattering coefficients."""
    torch.manual_seed(1)
    network = build_network("scattering_2d", n_channels=1, n_classes=3).eval()
    x = torch.randn(1, 1, 32, 32)
    maps, gradient = layer_gradient(network, Layer("maps", (4, 4)), x, 1)
    place = np.unravel_index(np.abs(gradient).argmax(), gradient.shape)
    odds = []
    for step in (-1e-2, 1e-2):
        moved = torch.from_numpy(maps.copy()).float()
        moved[place] += step
        hook = network.maps.register_forward_hook(lambda m, i, out, moved=moved: moved.reshape(out.shape))
        with torch.no_grad():
            p = network(x).double().softmax(1)[0, 1].item()
        hook.remove()
        odds.append(np.log(p / (1 - p)))
    assert (odds[1] - odds[0]) / 2e-2 == pytest.approx(gradient[place], rel=0.05)


def test_monai_agrees_with_us_but_for_its_normaliser() -> None:
    """The reference: MONAI's Grad-CAM without its post-processing; with it, the map is upside down."""
    from monai.visualize import GradCAM

    torch.manual_seed(0)
    network = build_network("resnet10_3d_s122", n_channels=1, n_classes=2).eval()
    x = torch.randn(1, 1, 8, 64, 64)
    layer = Layer("layer3", (2, 4, 4))
    maps, gradient = layer_gradient(network, layer, x, 1)
    theirs = GradCAM(network, "layer3", postprocessing=lambda m: m).compute_map(x, class_idx=1)[0, 0].detach().numpy()
    logit_gradient = _gradient_of_logit(network, x, 1)
    assert np.allclose(np.maximum(grad_cam(maps, logit_gradient), 0), theirs, atol=1e-6)
    assert gradient.shape == logit_gradient.shape
    inverted = GradCAM(network, "layer3")(x, class_idx=1)[0, 0].detach().numpy()
    plain = GradCAM(network, "layer3", postprocessing=lambda m: m)(x, class_idx=1)[0, 0].detach().numpy()
    assert np.corrcoef(inverted.ravel(), plain.ravel())[0, 1] == pytest.approx(-1, abs=1e-4)


def _gradient_of_logit(network: nn.Module, x: torch.Tensor, target: int) -> np.ndarray:
    kept: list[torch.Tensor] = []
    hook = network.get_submodule("layer3").register_forward_hook(lambda m, i, out: kept.append(out))
    (gradient,) = torch.autograd.grad(network(x)[0, target], kept[0])
    hook.remove()
    return gradient[0].double().numpy()


@pytest.mark.parametrize("grid", [(4, 4), (2, 4, 4)])
def test_the_map_of_a_window_lies_over_its_part_of_the_crop(grid: tuple[int, ...]) -> None:
    nothing, uniform = np.zeros(grid), np.ones(grid)
    total = sum_windows([nothing, uniform], (1.0, 0.5))
    middle = tuple(slice(n // 4, 3 * n // 4) for n in total.shape)
    np.testing.assert_allclose(total[middle], 2.0 ** len(grid), rtol=1e-6)  # as much as over the whole crop, on less room
    assert total.sum() == pytest.approx(total[middle].sum())
    np.testing.assert_allclose(sum_windows([uniform, nothing], (1.0, 0.5)), 1.0, rtol=1e-6)
    corner = nothing.copy()
    corner[(0,) * len(grid)] = 1.0
    place = np.unravel_index(sum_windows([nothing, corner], (1.0, 0.5)).argmax(), total.shape)
    assert [n // 4 for n in total.shape] <= list(place) < [3 * n // 8 for n in total.shape]


def test_folds_count_alike_and_disagreement_cancels() -> None:
    a, b = np.array([[1.0, 0.0]]), np.array([[-50.0, 25.0]])
    assert np.allclose(combine([a, b]), [[0.0, 0.25]])
    assert np.allclose(rectify(combine([a, a])), [[1.0, 0.0]])
    assert not rectify(-a).any()


PLAN = PreprocessingPlan(
    margin=1.0, margin_unit="lesion", aspect="keep", statistics="image", joint_channels=True,
    input_vox=[24, 48, 48], stored_vox=[28, 56, 56],
)  # fmt: skip


def _oblique(path: Path, spot: tuple[int, int, int]) -> Volume:
    """Write a volume with anisotropic voxels, a shifted origin and turned, flipped axes, and a blob at one voxel."""
    array = np.zeros((14, 40, 50), np.float32)
    array[tuple(slice(s - 1, s + 2) for s in spot)] = 50.0
    array[spot] = 100.0
    image = SimpleITK.GetImageFromArray(array)
    image.SetSpacing((0.8, 1.1, 3.3))
    image.SetOrigin((-31.5, 12.25, 77.0))
    angle = 0.4
    turned = np.array([[0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)], [-1, 0, 0]])
    image.SetDirection(turned.ravel().tolist())
    SimpleITK.WriteImage(image, str(path))
    return read_image([path])


@pytest.mark.parametrize("spot", [(6, 20, 25), (3, 12, 9), (11, 33, 44)])
@pytest.mark.parametrize("aspect", ["keep", "keep_in_plane", "squash"])
def test_a_planted_blob_comes_back_to_its_voxel(tmp_path: Path, spot: tuple[int, int, int], aspect: str) -> None:
    """Crop and resample as the cache does, take the crop itself as the map, write it, read it with another reader."""
    source, written = tmp_path / "image.nii.gz", tmp_path / "map.nii.gz"
    volume = _oblique(source, spot)
    plan = PLAN.model_copy(update={"aspect": aspect, "margin": 2.0})
    mask = np.zeros(volume.array.shape[1:], bool)
    mask[tuple(slice(max(s - 2, 0), s + 3) for s in spot)] = True
    window = crop_window(lesion_box(mask), mask.shape, volume.spacing_mm, plan)
    crop = prepare_arrays(volume, mask, plan).image[0, 2:-2, 4:-4, 4:-4].astype(np.float32)
    heat = rectify(to_original(crop, window, mask.shape))
    write_nifti(written, heat, volume)
    original, found = SimpleITK.ReadImage(str(source)), SimpleITK.ReadImage(str(written))
    place = np.unravel_index(SimpleITK.GetArrayFromImage(found).argmax(), mask.shape)
    assert np.abs(np.subtract(place, spot)).max() <= 1, "float16 makes neighbours of the peak equal to it"
    assert not compare_grids(replace(read_image([written]), array=heat), volume)
    index = [int(i) for i in place[::-1]]
    points = [image.TransformIndexToPhysicalPoint(index) for image in (found, original)]
    assert np.allclose(*points, atol=1e-3)
    assert not heat[tuple(slice(0, s.start) for s in window_slices(window, mask.shape))].any()


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 60), st.floats(-20, 50), st.floats(3, 60), st.integers(2, 9), st.data())
def test_a_hot_cell_lands_where_its_cell_is(n: int, start: float, edge: float, cells: int, data: st.DataObject) -> None:
    """On one axis, in any window: the maximum lies in the hot cell whenever a voxel's centre does."""
    start = min(max(start, 1 - edge), n - 1.0)
    hot = data.draw(st.integers(0, cells - 1))
    grid = np.zeros(cells, np.float32)
    grid[hot] = 1.0
    shown = to_original(grid, (np.array([start]), np.array([start + edge])), (n,))
    low, high = start + edge * hot / cells, start + edge * (hot + 1) / cells
    centres = np.arange(n) + 0.5
    if ((centres > low) & (centres < high)).any():
        tolerance = max(1.0, edge / cells * 0.01)
        assert low - tolerance <= centres[shown.argmax()] <= high + tolerance
    assert not shown[(centres < start - 1e-6) | (centres > start + edge + 1e-6)].any()


def test_a_flat_picture_becomes_one_slice(tmp_path: Path) -> None:
    heat = np.zeros((6, 9), np.float32)
    heat[2, 7] = 1
    write_nifti(tmp_path / "map.nii.gz", heat, Volume(np.zeros((1, 6, 9), np.uint8)))
    image = SimpleITK.ReadImage(str(tmp_path / "map.nii.gz"))
    assert (image.GetSize(), image.GetSpacing(), image.GetOrigin()) == ((9, 6, 1), (1, 1, 1), (0, 0, 0))
    assert image[7, 2, 0] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["map.nii.gz"]


def test_energy_and_pointing_are_counted_in_the_original_image() -> None:
    heat, mask = np.zeros((10, 10), np.float32), np.zeros((10, 10), bool)
    heat[4, 4:6], heat[0, 0] = (1.0, 0.5), 0.5
    mask[4, 4] = mask[4, 5] = True
    window = (np.array([0.0, 0.0]), np.array([10.0, 10.0]))
    found = localise(heat, mask, window)
    assert found["energy_inside"] == pytest.approx(0.75)
    assert found["mask_share"] == pytest.approx(0.02)
    assert found["pointing"] == 1
    assert found["energy_centre"] > found["mask_share"]
    assert localise(0 * heat, mask, window)["energy_inside"] is None
    assert set(localise(heat, None, window).values()) == {None}


def test_a_right_map_deletes_fast_and_inserts_fast() -> None:
    """Against the same map upside down."""
    network, x = spots()
    scale = _Scaled(network)
    signed = attribute("gradcam", scale, Layer("network.maps", (8, 8)), x, 1, batch_size=1)
    right, wrong = (perturb([scale], x, 1, m, batch_size=32) for m in (signed, -signed))
    assert right["deletion_auc"] < wrong["deletion_auc"] - 0.1
    assert right["insertion_auc"] > wrong["insertion_auc"] + 0.1


class _Scaled(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 20 * self.network(x)


def test_random_networks_are_always_the_same_and_leave_the_generator_alone() -> None:
    like = build_network("scattering_2d", n_channels=1, n_classes=2)
    state = torch.random.get_rng_state()
    first, second = (random_networks("scattering_2d", 1, 2, like) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a.classifier.weight, b.classifier.weight) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0].classifier.weight, first[1].classifier.weight)


def test_a_map_that_ignores_the_weights_is_caught() -> None:
    rng = np.random.default_rng(0)
    edges = rng.standard_normal((4, 4))
    assert compare_with_random(edges, [edges, -2 * edges])["randomised_abs_rho"] == pytest.approx(1)
    assert compare_with_random(edges, [edges, -2 * edges])["randomised_rho"] == pytest.approx(0)
    assert compare_with_random(edges, [0 * edges])["randomised_rho"] is None


def test_means_have_intervals_that_draw_patients() -> None:
    values = [0.2] * 4 + [0.8] * 4 + [None]
    patients = ["a"] * 4 + ["b"] * 4 + ["c"]
    clustered, single = mean_over_cases(values, patients), mean_over_cases(values[:8], list("abcdefgh"))
    assert clustered.value == pytest.approx(0.5)
    assert clustered.ci_high - clustered.ci_low > single.ci_high - single.ci_low
    assert not mean_over_cases([None], ["a"]).defined


@pytest.mark.parametrize(
    ("direction", "names", "left_top"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), ("axial", "coronal", "sagittal"), (("R", "A"), ("R", "S"), ("A", "S"))),
        # sagittal slices, as breast MRI often is: i to the back, j down, k to the left
        ((0, 0, 1, 1, 0, 0, 0, -1, 0), ("sagittal", "axial", "coronal"), (("A", "S"), ("R", "A"), ("R", "S"))),
    ],
)
def test_planes_are_named_and_turned_as_radiologists_expect(
    direction: tuple[int, ...], names: tuple[str, ...], left_top: tuple[tuple[str, str], ...]
) -> None:
    """A spot at the patient's left, back and head has to come up at the right, at the bottom and at the top."""
    array = np.zeros((1, 5, 6, 7), np.float32)
    volume = Volume(array, (3.0, 1.0, 2.0), (0.0, 0.0, 0.0), tuple(float(v) for v in direction))
    axes = patient_axes(volume)
    assert axes is not None
    spot = tuple(n - 1 if sign > 0 else 0 for n, (_, sign) in zip(array.shape[1:], axes, strict=True))
    array[(0, *spot)] = 1
    window = (np.zeros(3), np.array(array.shape[1:], float))
    for axis in range(3):
        plane = cut_plane(volume, array[0], None, window, axis, spot[axis])
        assert plane.title.startswith(names[axis])
        assert (plane.left, plane.top) == left_top[axis]
        row, column = np.unravel_index(plane.grey.argmax(), plane.grey.shape)
        assert column == plane.grey.shape[1] - 1  # left, or in a sagittal plane the back
        assert row == (0 if plane.top == "S" else plane.grey.shape[0] - 1)


def test_occlusion_hides_a_place_and_nothing_else() -> None:
    network, x = spots()
    signed = occlusion(network, x, 1, batch_size=7)
    assert signed.shape == (8, 8)
    assert abs(signed[0, 7]) < 0.05 * signed.max()


class Background(torch.nn.Module):
    """Tells the classes by the mean of a corner, in which nothing is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))  # where the network is, is asked of its parameters

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corner = self.weight * x[:, :, :4, :4].mean((1, 2, 3))
        return torch.stack([corner, -corner], dim=1)


def test_occlusion_blames_the_lesion_for_what_the_z_score_writes_around_it() -> None:
    """A bright lesion lowers the z-scored background: hiding the lesion, not the background, has to take that back."""
    raw = (torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2.0 - 1  # texture of mean 0
    raw = raw.expand(1, 1, 32, 32).clone()
    raw[:, :, 12:20, 12:20] += 4.0
    x = (raw - raw.mean()) / raw.std(correction=0)
    blind = occlusion(Background(), x, 1, batch_size=8)
    seeing = occlusion(Background(), x, 1, batch_size=8, zscore=ZScore(1, joint=False, share=1.0))
    inside = np.zeros((8, 8), bool)
    inside[3:5, 3:5] = True
    energy = lambda signed: np.maximum(signed, 0)[inside].sum() / np.maximum(signed, 0).sum()
    assert energy(blind) < 0.1
    assert energy(seeing) > 0.6


def test_a_crop_with_nothing_hidden_is_standardised_as_it_was() -> None:
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    for joint, share in ((True, 1.0), (False, 1.0), (False, 0.3)):
        axes = (1, 2, 3) if joint else (2, 3)
        z = (x - x.mean(axes, keepdim=True)) / x.std(axes, correction=0, keepdim=True)
        torch.testing.assert_close(restandardise(z, z, ZScore(3, joint=joint, share=share)), z, atol=1e-5, rtol=1e-5)
    hidden = z.clone()
    hidden[:, 2] = 0
    again = restandardise(hidden, z, ZScore(2, joint=False, share=1.0))
    assert torch.equal(again[:, 2], hidden[:, 2])  # a derived channel was not z-scored


def test_a_volume_of_one_slice_is_drawn(tmp_path: Path) -> None:
    """Two of its three planes are lines, around which nothing can be outlined."""
    image, mask = np.random.default_rng(0).random((1, 1, 30, 40)).astype(np.float32), np.zeros((1, 30, 40), dtype=bool)
    mask[0, 10:20, 15:25] = True
    window = (np.zeros(3), np.array(mask.shape, float))
    caption = draw.Caption("a", "US", "Grad-CAM", "positive", 0.7, "fold 0", None)
    draw.draw_overlay(tmp_path / "a.png", Volume(image, (5.0, 1.0, 1.0)), image[0], mask, window, caption)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_pictures_of_any_shape_begin_in_one_line() -> None:
    figure, axes = draw._figure(1, 2, 1.7)
    for axis, shape in zip(axes.flat, ((30, 40), (40, 20)), strict=True):
        grey = np.random.default_rng(0).random(shape)
        draw._show(axis, Plane(grey, np.zeros(shape), None, (slice(0, shape[0]), slice(0, shape[1])), 1.0, "a title"))
    draw._legend(figure, "the class", has_mask=False)
    figure.draw_without_rendering()
    tops = [axis.get_position().y1 for axis in axes.flat]
    assert tops[0] == pytest.approx(tops[1])
