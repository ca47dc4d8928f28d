"""The wavelet scattering transform, the network on it, and how its classifier is solved."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from her2net.networks import scattering
from her2net.networks.build import SCATTERING_WINDOWS as WINDOWS
from her2net.networks.build import build_network
from her2net.networks.scattering import (
    LOG_OFFSET,
    GaussianFeatures,
    OrthogonalProjection,
    ScatteringNetwork,
    Summary,
    look,
)
from her2net.networks.wavelets import N_DIRECTIONS, N_SCALES, POOLED_VOX, Scattering
from her2net.plan.augmentation import mirrors_only
from her2net.plan.schema import TrainingPlan
from her2net.train.footprint import n_views
from her2net.train.solve import describe_views, solve_classifier


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("size", "pooled"), [((32, 32), (4, 4)), ((8, 24, 24), (2, 4, 4))])
def test_shapes_and_signs(size: tuple[int, ...], pooled: tuple[int, ...]) -> None:
    transform = Scattering(len(size))
    maps = transform(images(2, 3, *size))
    assert maps.shape == (2, 3, transform.n_coefficients, *pooled)
    assert (maps[:, :, 1:] >= 0).all()


def test_a_flat_image_has_no_texture() -> None:
    maps = Scattering(2)(torch.full((1, 1, 64, 64), 3.0))
    assert torch.allclose(maps[:, :, 0], torch.full((1, 1, 4, 4), 3.0))
    assert maps[:, :, 1:].abs().max() < 1e-4


def test_a_grating_answers_at_its_own_scale_and_direction() -> None:
    columns = torch.cos(3 * math.pi / 16 * torch.arange(64.0))  # centre frequency of the wavelets of scale 2
    first = Scattering(2)(columns.expand(1, 1, 64, 64))[0, 0, 1:, 1, 1]
    by_scale = [1 + scale * N_DIRECTIONS + _before(scale) for scale in range(N_SCALES)]
    energy = torch.stack([first[start - 1 : start - 1 + N_DIRECTIONS] for start in by_scale])
    assert np.unravel_index(energy.argmax().item(), energy.shape) == (2, 0)


def _before(scale: int) -> int:
    """Number of second-order maps that stand before the first-order maps of a scale."""
    return sum(N_SCALES - 1 - fine for fine in range(scale)) * N_DIRECTIONS**2


def test_small_shifts_change_little_and_noise_changes_much() -> None:
    transform = Scattering(2)
    smooth = torch.nn.functional.avg_pool2d(images(1, 1, 70, 70), 7, stride=1)
    here, shifted = transform(smooth[..., :64, :64]), transform(smooth[..., :64, 1:])
    other = transform(torch.nn.functional.avg_pool2d(images(1, 1, 70, 70, seed=1), 7, stride=1))
    assert (here - shifted).norm() < 0.25 * (here - other).norm()


def test_coarse_grids_hold_what_fine_grids_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    x = images(1, 1, 64, 64)
    quick = Scattering(2)(x)
    monkeypatch.setattr(Scattering, "_step", lambda self, shape, scale: (1,) * len(shape))
    exact = Scattering(2)(x)
    assert (quick - exact).abs().max() < 0.05 * exact.abs().max()


def texture(n: int, size: tuple[int, ...], n_classes: int = 2) -> tuple[torch.Tensor, np.ndarray]:
    """Noise of the same mean and SD in every class, but of another grain."""
    x, labels = images(n, 1, *size), torch.arange(n) % n_classes
    for grain in range(1, n_classes):
        x[labels == grain] = (x[labels == grain] + x[labels == grain].roll(grain, -1)) / math.sqrt(2)
    return x, labels.numpy()


def training_plan(ndim: int, n_classes: int = 2) -> TrainingPlan:
    """What the preset `auto` plans for a solved network."""
    return TrainingPlan(
        network=f"scattering_{ndim}d", initialisation="scratch", epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0,
        warmup_epochs=0, ema_decay=0, label_smoothing=0, drop_path=0, gradient_clip=1, loss_weights=[1.0] * n_classes,
        precision="fp32", augmentation=mirrors_only(ndim), checkpoint="last", seed=0,
    )  # fmt: skip


def solve(network: ScatteringNetwork, x: torch.Tensor, labels: np.ndarray, patients: list[str] | None = None) -> float:
    plan = training_plan(x.ndim - 2, len(set(labels)))
    views = describe_views(network, x, plan, x.shape[2:])
    return solve_classifier(network, views, labels, patients or [str(i) for i in range(len(x))], plan)


@pytest.mark.parametrize(("ndim", "n_classes"), [(2, 2), (3, 2), (2, 3)])
def test_the_solved_network_knows_a_texture_from_forty_cases(ndim: int, n_classes: int) -> None:
    x, labels = texture(60, (24, 24) if ndim == 2 else (8, 16, 16), n_classes)
    network = build_network(f"scattering_{ndim}d", n_channels=1, n_classes=n_classes).eval()
    loss = solve(network, x[:40], labels[:40])
    with torch.no_grad():
        probs = network(x[40:]).softmax(1).numpy()
    assert (probs.argmax(1) == labels[40:]).mean() >= 0.9
    assert probs.max() < 0.9999  # forty cases are not enough to be certain
    assert loss < 0.5 * math.log(n_classes)
    assert -np.log(probs[np.arange(20), labels[40:]]).mean() < math.log(n_classes)


@pytest.mark.filterwarnings("error")
def test_a_class_of_one_patient_does_not_take_tuning_from_the_others() -> None:
    x, labels = texture(66, (24, 24), 3)
    kept = (labels < 2) | (np.cumsum(labels == 2) == 1)
    network = build_network("scattering_2d", n_channels=1, n_classes=3).eval()
    loss = solve(network, x[:45][kept[:45]], labels[:45][kept[:45]])
    assert loss < 0.5 * math.log(3)
    with torch.no_grad():
        probs = network(x[45:]).softmax(1).numpy()
    others = labels[45:] < 2
    assert (probs.argmax(1) == labels[45:])[others].mean() >= 0.9
    assert probs[np.arange(21), labels[45:]][others].mean() > 0.6


def test_two_classes_of_which_one_has_one_patient_are_learned_without_an_inner_loop() -> None:
    x, labels = texture(20, (24, 24))
    kept = (labels == 0) | (np.cumsum(labels == 1) == 1)
    network = build_network("scattering_2d", n_channels=1, n_classes=2).eval()
    assert solve(network, x[kept], labels[kept]) == math.inf
    assert torch.isfinite(network.classifier.weight).all()


def test_the_same_cases_give_the_same_bits() -> None:
    x, labels = texture(20, (24, 24))
    first, again = (build_network("scattering_2d", n_channels=1, n_classes=2).eval() for _ in range(2))
    solve(first, x, labels)
    solve(again, x, labels)
    assert torch.equal(first.classifier.weight, again.classifier.weight)
    assert torch.equal(first.classifier.bias, again.classifier.bias)


@pytest.mark.parametrize("size", [(40, 40), (8, 24, 20)])
def test_an_image_is_described_alike_in_every_batch_and_only_once(size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """So folds may share what they know of a case, and a resumed run equals one that was not interrupted."""
    monkeypatch.setattr(scattering, "_described", {})
    network = ScatteringNetwork(len(size), 2, 2)
    x = images(5, 2, *size)
    together = network.coefficients(x)
    torch.testing.assert_close(network._describe(x), together, rtol=0, atol=0)
    assert len(scattering._described) == 5
    monkeypatch.setattr(ScatteringNetwork, "_describe", lambda self, image: pytest.fail("this image is known"))
    with torch.inference_mode():
        assert torch.equal(network.coefficients(x.flip(0)), together.flip(0))
    with torch.no_grad():
        assert torch.equal(network.coefficients(x.clone().requires_grad_()), together)
    assert torch.equal(ScatteringNetwork(len(size), 2, 3).coefficients(x[1:3]), together[1:3]), "another network, the same wavelets"


def test_no_more_is_remembered_than_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scattering, "_described", {})
    network, x = ScatteringNetwork(2, 1, 2), images(4, 1, 16, 16)
    monkeypatch.setattr(scattering, "MEMO_BYTES", 2 * network.coefficients(x[:1]).nbytes)
    every = network.coefficients(x)
    assert len(scattering._described) == 2
    assert torch.equal(network.coefficients(x), every)


def test_mirrored_cases_belong_together() -> None:
    """Each case is shown as it is and mirrored; both views carry the case's label."""
    x = images(3, 1, 24, 24)
    network = build_network("scattering_2d", n_channels=1, n_classes=2)
    views = describe_views(network, x, training_plan(2), (24, 24))
    assert views.shape[:2] == (3, 2)
    torch.testing.assert_close(views[:, 1], network.coefficients(x.flip(-1)))


def test_an_axis_that_is_never_flipped_is_not_mirrored_either() -> None:
    plan = training_plan(2)
    never = plan.model_copy(update={"augmentation": plan.augmentation.model_copy(update={"flip_probability": 0.0})})
    network = build_network("scattering_2d", n_channels=1, n_classes=2)
    assert describe_views(network, images(3, 1, 24, 24), never, (24, 24)).shape[:2] == (3, 1)
    assert (n_views(plan), n_views(never)) == (2, 1)
    assert (plan.augmentation.mirrored_axes, never.augmentation.mirrored_axes) == ([1], [])


@pytest.mark.parametrize("size", [(48, 48), (8, 24, 24)])
def test_the_second_window_sees_the_middle_alone_at_its_own_contrast(size: tuple[int, ...]) -> None:
    x = images(2, 3, *size)
    whole, middle = (look(x, share) for share in WINDOWS)
    grid = (*size[:-2], *(n * 2 // 3 for n in size[-2:]))
    assert whole.shape == middle.shape == (2, 3, *grid)
    torch.testing.assert_close(middle.mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(look(5 + 3 * x, WINDOWS[1]), middle, rtol=0, atol=1e-4)
    elsewhere = x.clone()
    elsewhere[..., :2] = 9.0
    assert torch.equal(look(elsewhere, WINDOWS[1]), middle)
    assert not torch.equal(look(elsewhere, WINDOWS[0]), whole)
    flat = torch.full((1, 1, *size), 2.0)
    torch.testing.assert_close(look(flat, 1.0), torch.full((1, 1, *grid), 2.0))
    assert look(flat, WINDOWS[1]).abs().max() < 1e-3


def logs_of(x: torch.Tensor) -> torch.Tensor:
    """Logarithms of one window, as a summary reads them."""
    maps = Scattering(x.ndim - 2)(x)
    return torch.cat([maps[:, :, :1], torch.log(maps[:, :, 1:] + LOG_OFFSET)], dim=2)


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_summary_does_not_know_places_within_a_zone(ndim: int) -> None:
    logs, summary = images(2, 3, Scattering(ndim).n_coefficients, *POOLED_VOX[ndim]), Summary(ndim)
    assert summary(logs).shape == (2, 3 * summary.n_outputs)
    turned = logs.rot90(1, (-2, -1))
    torch.testing.assert_close(summary(turned), summary(logs), rtol=0, atol=1e-5)
    inside_out = logs.roll((2, 2), (-2, -1))
    assert (summary(inside_out) - summary(logs)).abs().max() > 0.01


def test_a_summary_keeps_the_direction_of_first_order_alone() -> None:
    """Stripes turned by a right angle change places among the directions; how fine their edges are does not change."""
    stripes = torch.cos(3 * math.pi / 16 * torch.arange(48.0)).expand(1, 1, 48, 48) + 0.3 * images(1, 1, 48, 48)
    upright, lying = (Summary(2)(logs_of(x)).view(-1, 2)[2:] for x in (stripes, stripes.rot90(1, (-2, -1))))
    first = torch.cat([torch.full((size,), size == N_DIRECTIONS) for fine in range(N_SCALES)
                       for size in (N_DIRECTIONS, *[4] * (N_SCALES - 1 - fine))])  # fmt: skip
    assert len(first) == len(upright)
    assert (upright - lying)[first].abs().max() > 1.0
    torch.testing.assert_close(upright[~first], lying[~first], rtol=0, atol=0.05)
    by_scale = upright[first].view(N_SCALES, N_DIRECTIONS, 2)
    torch.testing.assert_close(by_scale.roll(N_DIRECTIONS // 2, 1), lying[first].view_as(by_scale), rtol=0, atol=0.05)


@pytest.mark.parametrize("ndim", [2, 3])
def test_groups_average_each_coefficient_once(ndim: int) -> None:
    summary = Summary(ndim)
    assert summary.groups.shape[1] == Scattering(ndim).n_coefficients - 1
    assert ((summary.groups > 0).sum(0) == 1).all()
    torch.testing.assert_close(summary.groups.sum(1), torch.ones(len(summary.groups)))
    torch.testing.assert_close(summary.zones.sum(1), torch.ones(2))


def test_every_kernel_has_a_say() -> None:
    x, labels = texture(40, (24, 24))
    network = build_network("scattering_2d", n_channels=1, n_classes=2).eval()
    solve(network, x, labels)
    sizes = [kernel.n_features for kernel in network.kernels]
    assert len(sizes) == len(WINDOWS) + 1
    assert all((part.abs() > 0).any() for part in network.classifier.weight.split(sizes, dim=1))
    for kernel, features in zip(network.kernels, network.kernel_features(network.coefficients(x[:3])), strict=True):
        assert features.shape == (3, kernel.n_features)
        torch.testing.assert_close(features.square().sum(1), torch.ones(3))  # the kernel of a case with itself


def test_few_numbers_have_a_faithful_kernel_too() -> None:
    x = images(30, 50)
    kernel = GaussianFeatures(50, (0.3,))
    kernel.width.fill_(0.3)
    features = kernel(x)
    exact = torch.exp(-0.3 / 50 * torch.cdist(x, x) ** 2)
    assert (features @ features.T - exact).abs().max() < 0.05


def test_noise_without_a_class_is_not_called_certain() -> None:
    """Cases whose labels mean nothing: the inner loop must find that out, and the probabilities say so."""
    losses, called_certain = [], []
    for seed in range(3):
        x = images(80, 1, 24, 24, seed=seed)
        labels = np.random.default_rng(seed).integers(0, 2, 80)
        network = build_network("scattering_2d", n_channels=1, n_classes=2).eval()
        losses.append(solve(network, x[:40], labels[:40]))
        with torch.no_grad():
            probs = network(x[40:]).softmax(1)[:, 1]
        called_certain.append(((probs < 0.2) | (probs > 0.8)).float().mean())
    assert min(losses) > 0.6
    assert np.mean(called_certain) < 0.1


def test_a_network_without_weights_tells_its_memory() -> None:
    with torch.device("meta"):
        network = build_network("scattering_3d", n_channels=2, n_classes=3)
        assert network(torch.zeros(2, 2, 8, 24, 24)).shape == (2, 3)


def test_the_inner_loop_parts_patients() -> None:
    """Each patient has the same image twice and a label of its own: a loop over cases would find it easy, one over patients cannot."""
    x = images(30, 1, 24, 24).repeat_interleave(2, 0)
    labels = np.random.default_rng(1).integers(0, 2, 30).repeat(2)
    patients = [str(i // 2) for i in range(60)]
    network = build_network("scattering_2d", n_channels=1, n_classes=2).eval()
    assert solve(network, x, labels, patients) > 0.6
    assert solve(network, x, labels) < 0.5


def test_projections_behave_like_a_gaussian_kernel() -> None:
    projection = OrthogonalProjection(300)
    x = images(40, 300)
    angle = projection(x) * math.sqrt(2 / 300)
    features = torch.cat([angle.cos(), angle.sin()], 1) / math.sqrt(projection.n_outputs)
    exact = torch.exp(-torch.cdist(x, x) ** 2 / 300)
    assert (features @ features.T - exact).abs().max() < 0.15
    assert (features @ features.T - exact).abs().mean() < 0.03


def test_the_gradient_reaches_the_image() -> None:
    """Also after a prediction, whose filters must not be bound to inference."""
    network = build_network("scattering_2d", n_channels=1, n_classes=2).eval()
    with torch.inference_mode():
        network(images(2, 1, 16, 16))
    x = images(2, 1, 16, 16).requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
