"""Pretrained weights: from the hub, from its cache or from a file, and a report of what fitted.

The rule is that a random initialisation is never silent. `"auto"` may end in one, when there is
no connection or the weights do not fit, and then says why; a file that the user names either fits or is an error.
Fitting means: every tensor before the classifier is found, with the same shape; the first
convolution may differ in its number of input channels and is adapted; the classifier of another
task is left at its random start.
"""

from __future__ import annotations

import os
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from her2net.artefact import Strict, digest_file, digest_json
from her2net.errors import MissingArtefactError, PlanError, join_problems
from her2net.networks.build import NetworkSpec, network_spec

if TYPE_CHECKING:
    from torch import Tensor, nn

HUB_TIMEOUT_S = 3.0
SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model", "network", "weights")


class InitReport(Strict):
    """How a network was initialised; part of `run.json`.

    Attributes:
        source: "none", the name of the file, or "repository/file" on the hub.
        status: whether pretrained weights were loaded.
        matched: number of tensors taken over as they were.
        reshaped: tensors adapted to the number of image channels.
        missing: tensors left at their random start.
        unexpected: tensors of the file that the network has no use for.
        message: one sentence for the log; the reason when the start is from scratch.
    """

    source: str
    status: Literal["pretrained", "scratch"]
    matched: int = 0
    reshaped: list[str] = Field(default_factory=list)
    missing: list[str] = Field(default_factory=list)
    unexpected: list[str] = Field(default_factory=list)
    message: str


@dataclass
class _Fit:
    """What of a state dict fits a network; `problems` is empty if enough of it does."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    reshaped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def load_pretrained(network: nn.Module, name: str, *, source: str | Path, n_channels: int) -> InitReport:
    """Load pretrained weights into a freshly built network, in place; all of them or none.

    Args:
        network: from `build_network`.
        name: its name in `NETWORKS`.
        source: "auto" (hub or its cache, else from scratch), "none" (from scratch), or a weight
            file (.pt, .pth or .bin as `torch.save` writes them, or .safetensors).
        n_channels: image channels of the network.

    Raises:
        MissingArtefactError: the file does not exist.
        PlanError: the file cannot be read or does not fit the network.
    """
    spec = network_spec(name)
    if source == "none":
        return InitReport(source="none", status="scratch", message=_without_weights(spec))
    if source == "auto":
        return _load_from_hub(network, spec, n_channels)
    return _load_from_file(network, spec, Path(source), n_channels)


def _without_weights(spec: NetworkSpec) -> str:
    if spec.solved:
        return f"{spec.name} needs none: its filters are fixed, its last layer is solved from the training cases."
    return f"{spec.name} starts from scratch: no pretrained weights were asked for."


def _require_file(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise PlanError(f"{path}: is not a file.")
    if not path.exists():
        raise MissingArtefactError(f"{path}: no such weight file. Give an existing one, or --pretrained auto or none.")


def digest_source(source: str | None) -> str:
    """Return the digest of what `--pretrained` names: a weight file counts by its content, wherever it lies.

    Raises:
        MissingArtefactError: the file does not exist.
        PlanError: it is not a file.
    """
    if source is None or source in ("auto", "none"):
        return digest_json(source or "")
    _require_file(Path(source))
    return digest_file(Path(source))


def pretrained_at_hand(name: str) -> bool:
    """Say whether the pretrained weights are cached or can be downloaded now.

    Downloads nothing. Takes at most a few seconds without a connection, and those once per process.
    """
    spec = network_spec(name)
    if not spec.weights_repo:
        return False
    return _cached_file(spec) is not None or not _why_not_downloadable(spec.weights_repo, spec.weights_file)


def _load_from_hub(network: nn.Module, spec: NetworkSpec, n_channels: int) -> InitReport:
    source = f"{spec.weights_repo}/{spec.weights_file}"

    def scratch(reason: str) -> InitReport:
        message = f"{spec.name} starts from scratch: {reason}"
        return InitReport(source=source, status="scratch", message=message)

    if not spec.weights_repo:
        return InitReport(source="", status="scratch", message=f"{spec.name} needs no pretrained weights: its filters are fixed.")
    path = _cached_file(spec)
    if path is None:
        reason = _why_not_downloadable(spec.weights_repo, spec.weights_file)
        if reason:
            return scratch(f"{source} is not in the local cache and cannot be downloaded ({reason}).")
        try:
            path = _download(spec)
        except Exception as error:  # whatever stops a download, the run goes on from scratch and says so
            return scratch(f"downloading {source} failed ({_first_line(error)}).")
    try:
        fit = _fit(network, spec, read_weights(path), n_channels)
    except PlanError as error:
        return scratch(str(error).replace(str(path), source))
    if fit.problems:
        return scratch(f"{source} does not fit ({fit.problems[0]}; {len(fit.problems)} problems).")
    return _apply(network, spec, fit, source)


def _load_from_file(network: nn.Module, spec: NetworkSpec, path: Path, n_channels: int) -> InitReport:
    fit = _fit(network, spec, read_weights(path), n_channels)
    if fit.problems:
        headline = (
            f"{path}: these weights do not fit {spec.name} with {n_channels} channel(s): {len(fit.tensors)} tensors "
            f"matched, {len(fit.missing)} missing, {len(fit.unexpected)} unexpected. "
            "Give the weights of this network, or --pretrained none."
        )
        raise PlanError(join_problems(headline, fit.problems, limit=20))
    return _apply(network, spec, fit, path.name)  # not where it lies: reports and run.json are passed on


def _apply(network: nn.Module, spec: NetworkSpec, fit: _Fit, source: str) -> InitReport:
    network.load_state_dict(fit.tensors, strict=False)
    matched = len(fit.tensors) - len(fit.reshaped)
    adapted = f", {len(fit.reshaped)} adapted to the image channels" if fit.reshaped else ""
    message = f"{spec.name} starts from {source}: {matched} tensors matched{adapted}, {len(fit.missing)} start anew."
    return InitReport(
        source=source, status="pretrained", matched=matched, reshaped=fit.reshaped,
        missing=fit.missing, unexpected=fit.unexpected, message=message,
    )  # fmt: skip


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict on the CPU, without wrapper and without the prefix of DataParallel.

    Raises:
        MissingArtefactError: no such file.
        PlanError: another kind of file, or no state dict in it.
    """
    import torch

    _require_file(path)
    if path.suffix not in SUFFIXES:
        raise PlanError(f"{path}: not a weight file; expected {', '.join(SUFFIXES)}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            _refuse_damage(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways, one per reader and format
        raise PlanError(f"{path}: cannot be read as weights ({_first_line(error)}).") from error
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not any(isinstance(value, torch.Tensor) for value in content.values()):
        raise PlanError(f"{path}: holds no state dict (names -> tensors).")
    tensors = {str(key): value for key, value in content.items() if isinstance(value, torch.Tensor)}
    return {key.removeprefix("module."): value for key, value in tensors.items()}


def _refuse_damage(path: Path) -> None:
    """Compare the checksums of a zip file, which torch does not do; older files have none."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            if broken := file.testzip():
                raise ValueError(f"checksum of {broken}")


def _fit(network: nn.Module, spec: NetworkSpec, weights: dict[str, Tensor], n_channels: int) -> _Fit:
    own = network.state_dict()
    weights = _as_timm(weights, network, spec)
    encoder = {key.split(".")[0] for key in own if not _is_head(key, spec)}
    fit = _Fit(unexpected=[key for key in weights if key not in own])
    first = f"{spec.first_conv}.weight"
    for key, tensor in own.items():
        found = weights.get(key)
        if found is not None and found.shape == tensor.shape:
            fit.tensors[key] = found
            if not found.isfinite().all():
                fit.problems.append(f"{key}: holds NaN or infinity")
        elif found is not None and key == first and _differs_in_channels_only(found, tensor):
            fit.tensors[key] = adapt_channels(found, n_channels)
            fit.reshaped.append(key)
        else:
            fit.missing.append(key)
            if not _is_head(key, spec) and not key.endswith("num_batches_tracked"):
                fault = "missing" if found is None else f"found shape {tuple(found.shape)}"
                fit.problems.append(f"{key}: {fault}, expected {tuple(tensor.shape)}")
    strangers = [key for key in fit.unexpected if key.split(".")[0] in encoder and not _is_head(key, spec)]
    fit.problems += [f"{key}: unexpected, of a deeper or another network" for key in strangers]
    return fit


def _is_head(key: str, spec: NetworkSpec) -> bool:
    return key.startswith(f"{spec.classifier}.")


def _differs_in_channels_only(found: Tensor, own: Tensor) -> bool:
    return found.ndim == own.ndim and found.shape[0] == own.shape[0] and found.shape[2:] == own.shape[2:]


def adapt_channels(weight: Tensor, n_channels: int) -> Tensor:
    """Adapt a first convolution to another number of image channels.

    Every new channel gets the sum over the old ones, divided by the new number: an image whose channels
    are all alike gives the same response as before. The order of RGB means nothing to medical channels.

    Args:
        weight: (planes, old channels, *kernel).
        n_channels: new channels, at least 1.

    Returns:
        (planes, n_channels, *kernel) in the dtype given.

    Source:
        The grey-scale rule of timm's `adapt_input_conv` (sum over RGB), extended to any number.
    """
    each = weight.float().sum(1, keepdim=True) / n_channels
    return each.repeat_interleave(n_channels, 1).to(weight.dtype)


def _as_timm(weights: dict[str, Tensor], network: nn.Module, spec: NetworkSpec) -> dict[str, Tensor]:
    """Translate the names of the authors' own ConvNeXt files into those of timm."""
    if "downsample_layers.0.0.weight" not in weights or not spec.name.startswith("convnext"):
        return weights
    from timm.models.convnext import checkpoint_filter_fn

    try:
        return checkpoint_filter_fn(weights, network)
    except (KeyError, RuntimeError):  # of another size: let the comparison of names report it
        return weights


def _cached_file(spec: NetworkSpec) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(spec.weights_repo, spec.weights_file)
    return Path(found) if isinstance(found, str) else None


def _offline() -> bool:
    from huggingface_hub import constants

    # The hub reads the variable when it is imported; it may have been set since.
    return constants.HF_HUB_OFFLINE or os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}


def _why_not_downloadable(repo: str, file: str) -> str:
    """Return why the file cannot be downloaded now, or "" if it can; at most two small requests, remembered."""
    if _offline():
        return "HF_HUB_OFFLINE is set"
    return _why_hub_unreachable() or _why_file_unreachable(repo, file)


@lru_cache(maxsize=1)
def _why_hub_unreachable() -> str:
    # Asked beforehand because `hf_hub_download` retries for 23 s without a connection, and in a
    # thread because no timeout of a request covers a name server that does not answer.
    from huggingface_hub import constants, get_session

    outcome = [f"no answer from {constants.ENDPOINT} within {HUB_TIMEOUT_S:.0f} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=HUB_TIMEOUT_S)
            outcome[0] = ""
        except Exception as error:  # proxy, certificate, name, connection: each is a reason, none a failure
            outcome[0] = f"{constants.ENDPOINT}: {_first_line(error)}"

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S + 0.5)
    return outcome[0]


@lru_cache(maxsize=64)
def _why_file_unreachable(repo: str, file: str) -> str:
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    try:
        get_hf_file_metadata(hf_hub_url(repo, file), timeout=HUB_TIMEOUT_S)
    except Exception as error:  # moved, gated or gone, or a connection that just broke
        return _first_line(error)
    return ""


def _download(spec: NetworkSpec) -> Path:
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(spec.weights_repo, spec.weights_file, etag_timeout=HUB_TIMEOUT_S))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]
