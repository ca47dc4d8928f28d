"""The table of networks and what may start them."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
import torch
from conftest import make_paths
from small_run import MACHINE, plan_options
from torch import nn

from her2net import pipeline
from her2net.errors import MissingArtefactError, PlanError
from her2net.networks import pretrained
from her2net.networks.build import NETWORKS, build_network
from her2net.networks.depth import layer_scales
from her2net.networks.layers import FoldedConv3d, SafeConv3d
from her2net.networks.pretrained import InitReport, adapt_channels, load_pretrained, pretrained_at_hand
from her2net.project import load_project
from her2net.raw.synthetic import make_synthetic_dataset
from her2net.train.fold import TrainOptions

QUICK = {
    "scattering_2d", "scattering_3d", "convnextv2_atto", "resnet10t",
    "resnet10_3d", "resnet10_3d_s2", "resnet10_3d_s122", "resnet18_3d_s122",
}  # fmt: skip
CASES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in NETWORKS]


def some_images(name: str, n_channels: int, n: int = 2) -> torch.Tensor:
    return torch.randn(n, n_channels, *NETWORKS[name].min_size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty_cache"))


@pytest.mark.parametrize("name", CASES)
def test_every_network_gives_logits_and_gradients(name: str) -> None:
    for n_channels in (1, 2, 3):
        network = build_network(name, n_channels=n_channels, n_classes=3)
        logits = network(some_images(name, n_channels))
        assert logits.shape == (2, 3)
    logits.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize("name", CASES)
def test_the_table_names_existing_layers(name: str) -> None:
    network, spec = build_network(name, n_channels=2, n_classes=4), NETWORKS[name]
    if spec.first_conv:
        assert network.get_submodule(spec.first_conv).weight.shape[1] == 2
    assert network.get_submodule(spec.classifier).weight.shape[0] == 4
    assert len(spec.min_size) == len(spec.stride) == spec.ndim


@pytest.mark.parametrize("name", CASES)
def test_the_table_says_which_networks_cannot_train_on_a_single_case(name: str) -> None:
    network, spec = build_network(name, n_channels=1, n_classes=2), NETWORKS[name]
    assert spec.normalises_batches == any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in network.modules())
    if spec.normalises_batches:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            network.train()(some_images(name, 1, n=1))


@pytest.mark.parametrize("name", ["resnet10_3d_s2", "resnet10_3d_s122", "resnet10_3d"])
def test_the_declared_stride_is_the_stride(name: str) -> None:
    network = build_network(name, n_channels=1, n_classes=2).eval()
    shapes = []
    network.layer4.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape[2:])))
    with torch.inference_mode():
        network(torch.zeros(1, 1, *(2 * step for step in NETWORKS[name].stride)))
    assert shapes == [(2, 2, 2)]


def test_same_seed_same_weights() -> None:
    def weights(seed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        return build_network("resnet10_3d_s2", n_channels=1, n_classes=2, dropout=0.5).state_dict()

    first, second, third = weights(0), weights(0), weights(1)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["fc.weight"], third["fc.weight"])


@pytest.mark.parametrize("name", ["resnet10_3d", "resnet18_3d"])
def test_3d_networks_compute_what_monai_computes(name: str) -> None:
    from monai.networks import nets

    options = {"shortcut_type": "A"} if "18" in name else {"bias_downsample": False}
    reference = getattr(nets, name.removesuffix("_3d"))(spatial_dims=3, n_input_channels=1, num_classes=2, **options)
    network = build_network(name, n_channels=1, n_classes=2)
    network.load_state_dict(reference.state_dict())
    x = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(x), reference.eval()(x), atol=1e-6, rtol=1e-5)


def test_dropout_acts_in_training_only() -> None:
    network = build_network("resnet10_3d_s2", n_channels=1, n_classes=2, dropout=0.5)
    features = torch.ones(1, 512)
    assert not torch.equal(network.fc(features), network.fc(features))
    network.eval()
    assert torch.equal(network.fc(features), network.fc(features))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "resnet19"}, "convnextv2_atto"),
        ({"n_channels": 0}, "n_channels is 0"),
        ({"n_classes": 1}, "n_classes is 1"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"drop_path": 0.1}, "no stochastic depth"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(PlanError, match=words):
        build_network(**({"name": "resnet10_3d", "n_channels": 1, "n_classes": 2} | arguments))


def save_weights(path: Path, name: str, n_channels: int, n_classes: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    weights = build_network(name, n_channels=n_channels, n_classes=n_classes).state_dict()
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(weights, path)
    else:
        torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, path)
    return weights


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("name", ["resnet10t", "convnextv2_atto", "resnet10_3d_s2"])
def test_a_weight_file_is_taken_over(tmp_path: Path, name: str, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    weights = save_weights(path, name, n_channels=3, n_classes=5)
    network = build_network(name, n_channels=2, n_classes=2)
    report = load_pretrained(network, name, source=path, n_channels=2)
    spec, own = NETWORKS[name], network.state_dict()
    head, first = [f"{spec.classifier}.{kind}" for kind in ("weight", "bias")], f"{spec.first_conv}.weight"
    assert (report.status, report.source) == ("pretrained", path.name)
    assert (report.reshaped, sorted(report.missing), report.unexpected) == ([first], sorted(head), [])
    assert report.matched == len(own) - 3
    assert all(torch.equal(own[key], weights[key]) for key in own if key not in [*head, first])
    assert torch.equal(own[first], adapt_channels(weights[first], 2))
    assert InitReport.model_validate_json(report.model_dump_json()) == report


@pytest.mark.parametrize("n_channels", [1, 2, 3, 4])
def test_adapted_channels_answer_a_grey_image_alike(n_channels: int) -> None:
    weight = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    image = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(1))
    before = torch.conv2d(image.expand(-1, 3, -1, -1), weight)
    after = torch.conv2d(image.expand(-1, n_channels, -1, -1), adapt_channels(weight, n_channels))
    torch.testing.assert_close(before, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", ["resnet18_3d_s2", "resnet50_3d", "resnet10t"])
def test_weights_of_another_network_are_refused_and_change_nothing(tmp_path: Path, other: str) -> None:
    path = tmp_path / "weights.pt"
    save_weights(path, other, n_channels=1, n_classes=2)
    network = build_network("resnet10_3d_s2", n_channels=1, n_classes=2)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(PlanError, match=r"do not fit resnet10_3d_s2 .* matched, \d+ missing, \d+ unexpected") as error:
        load_pretrained(network, "resnet10_3d_s2", source=str(path), n_channels=1)
    assert "layer" in str(error.value)
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())


def test_unusable_files_are_named(tmp_path: Path) -> None:
    network = build_network("resnet10t", n_channels=1, n_classes=2)
    for name, content, words in (
        ("a.pth", b"junk", "cannot be read as weights"),
        ("b.safetensors", b"junk", "cannot be read as weights"),
        ("c.txt", b"junk", "not a weight file"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PlanError, match=words):
            load_pretrained(network, "resnet10t", source=tmp_path / name, n_channels=1)
    torch.save([1, 2], tmp_path / "d.pt")
    with pytest.raises(PlanError, match="no state dict"):
        load_pretrained(network, "resnet10t", source=tmp_path / "d.pt", n_channels=1)
    with pytest.raises(MissingArtefactError, match=r"missing\.pth: no such weight file"):
        load_pretrained(network, "resnet10t", source=tmp_path / "missing.pth", n_channels=1)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["resnet10t", "resnet10_3d_s2"])
def test_auto_without_connection_starts_from_scratch_and_says_so(name: str) -> None:
    network = build_network(name, n_channels=1, n_classes=2)
    report = load_pretrained(network, name, source="auto", n_channels=1)
    assert report.status == "scratch"
    assert NETWORKS[name].weights_file in report.source
    assert "cannot be downloaded (HF_HUB_OFFLINE is set)" in report.message
    assert not pretrained_at_hand(name)


def test_auto_takes_the_cached_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    save_weights(tmp_path / "w.pth", "resnet10_3d_s2", n_channels=1, n_classes=400)
    monkeypatch.setattr(pretrained, "_cached_file", lambda spec: tmp_path / "w.pth")
    network = build_network("resnet10_3d_s2", n_channels=1, n_classes=2)
    report = load_pretrained(network, "resnet10_3d_s2", source="auto", n_channels=1)
    assert report.status == "pretrained"
    assert sorted(report.missing) == ["fc.bias", "fc.weight"]
    assert pretrained_at_hand("resnet10_3d_s2")
    other = build_network("resnet18_3d_s2", n_channels=1, n_classes=2)
    report = load_pretrained(other, "resnet18_3d_s2", source="auto", n_channels=1)
    assert report.status == "scratch"
    assert "does not fit" in report.message


@pytest.mark.usefixtures("offline")
def test_a_cache_that_was_carried_here_is_planned_with_and_trained_from(tmp_path: Path) -> None:
    repository = tmp_path / "empty_cache" / "models--timm--convnextv2_atto.fcmae_ft_in1k"
    (repository / "snapshots" / "0123").mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123")
    save_weights(repository / "snapshots" / "0123" / "model.safetensors", "convnextv2_atto", n_channels=3, n_classes=1000)
    speeds = {f"convnextv2_atto|{size}|1|8": speed for size, speed in {"224x224": 1e-3, "128x128": 1e6}.items()}
    MACHINE.model_copy(update={"samples_per_s": MACHINE.samples_per_s | speeds}).save(tmp_path / "machine.json")
    paths = make_paths(tmp_path)
    make_synthetic_dataset(paths.raw, n_train=16, n_test=4, us_size=(64, 80), mri_size=(8, 40, 40))
    with mock.patch("her2net.plan.stage.radiomics_at_hand", return_value=False):
        pipeline.plan(paths, plan_options(tmp_path))
    project = load_project(paths)
    training = project.plan.modalities["US"].training
    assert (training.network, training.initialisation, training.layer_decay) == ("convnextv2_atto", "pretrained", 0.9)
    record = pipeline.train(project, "US", 0, TrainOptions(epochs=1, quiet=True))
    assert record.initialisation.startswith("convnextv2_atto starts from timm/convnextv2_atto.fcmae_ft_in1k/model.safetensors")


def test_a_hub_that_does_not_answer_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise OSError("name server is away")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.get_session", fail)
    monkeypatch.setattr(pretrained, "_cached_file", lambda spec: None)
    pretrained._why_hub_unreachable.cache_clear()
    try:
        network = build_network("resnet10t", n_channels=1, n_classes=2)
        report = load_pretrained(network, "resnet10t", source="auto", n_channels=1)
    finally:
        pretrained._why_hub_unreachable.cache_clear()
    assert report.status == "scratch"
    assert "name server is away" in report.message


@pytest.mark.parametrize("name", [case for case in CASES if not str(case.values[0]).startswith("scattering")])
def test_the_learning_rate_falls_block_by_block_towards_the_image(name: str) -> None:
    network = build_network(name, n_channels=2, n_classes=2)
    scales = layer_scales(network, 0.5)
    assert set(scales) == {parameter for parameter, _ in network.named_parameters()}
    in_order = [scales[parameter] for parameter, _ in network.named_parameters()]
    assert in_order == sorted(in_order), "no layer learns faster than one behind it"
    spec = NETWORKS[name]
    assert scales[f"{spec.classifier}.weight"] == scales[f"{spec.classifier}.bias"] == 1
    n_blocks = sum(type(module).__name__.endswith(("Block", "Bottleneck")) for module in network.modules())
    assert scales[f"{spec.first_conv}.weight"] == 0.5 ** (n_blocks + 1)


def test_none_starts_from_scratch() -> None:
    network = build_network("resnet10t", n_channels=1, n_classes=2)
    report = load_pretrained(network, "resnet10t", source="none", n_channels=1)
    assert (report.status, report.matched) == ("scratch", 0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_bfloat16_gradients_of_3d_convolutions_agree_with_float32(depth: int) -> None:
    """Some CPU kernels return uninitialised memory for inputs two voxels deep (see SafeConv3d)."""
    import torch
    from torch import nn

    from her2net.networks.layers import specialise

    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv3d(64, 64, 3, padding=1))
    specialise(layers)
    x = torch.randn(5, 64, depth, 2, 2)
    target = torch.randn(5, 64, depth, 2, 2)
    gradients = []
    for enabled in (False, True):
        layers.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            y = layers(x)
        (y.float() * target).sum().backward()
        gradients.append(layers[0].weight.grad.clone())
    assert ((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.02



@pytest.mark.parametrize("n_channels", [1, 2])
def test_neighbours_as_channels_are_the_same_convolution(n_channels: int) -> None:
    network = build_network("resnet10_3d", n_channels=n_channels, n_classes=2)
    assert type(network.conv1) is FoldedConv3d
    assert type(build_network("resnet10_3d_s2", n_channels=n_channels, n_classes=2).conv1) is SafeConv3d
    x = torch.randn(2, n_channels, 9, 10, 11)
    found = network.conv1(x)
    expected = nn.functional.conv3d(x, network.conv1.weight, stride=network.conv1.stride, padding=network.conv1.padding)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(found.square().sum(), network.conv1.weight)
    (wanted,) = torch.autograd.grad(expected.square().sum(), network.conv1.weight)
    torch.testing.assert_close(gradient, wanted, atol=1e-2, rtol=1e-3)
