"""Checkpoints: written whole or not at all, read without executing anything.

`checkpoint_latest.pt` is what a run continues from; the one before it is kept as
`checkpoint_previous.pt` until training ends, so a damaged newest file costs a few
epochs, not the run. `checkpoint_final.pt` holds the weights that predict.

A checkpoint is a zip file with a checksum per tensor. torch does not compare them, and would
load a flipped byte as another weight; here they are compared whenever a file is read or replaced.
"""

from __future__ import annotations

import io
import os
import sys
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from her2net.artefact import replacing
from her2net.errors import MissingArtefactError, PlanError, StaleArtefactError, WriteError

LATEST, PREVIOUS, FINAL = "checkpoint_latest.pt", "checkpoint_previous.pt", "checkpoint_final.pt"


def save_checkpoint(path: Path, state: dict[str, Any], *, keep_as: Path | None = None) -> None:
    """Write tensors and plain values, atomically, after the new file has been read back.

    Args:
        keep_as: where the file that is replaced goes, if it is sound.

    Raises:
        WriteError: it cannot be written, or what was read back is not what was written; the former file is untouched.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    with replacing(path) as temporary:
        with temporary.open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        if temporary.stat().st_size != len(buffer.getbuffer()) or find_damage(temporary):
            raise WriteError(f"{path}: what was read back is not what was written. Check the disk; nothing was replaced.")
        if keep_as is not None and path.exists() and not find_damage(path):
            os.replace(path, keep_as)


def save_latest(folder: Path, state: dict[str, Any]) -> None:
    """Save the state to continue from; the newest so far becomes the previous one, unless it is damaged."""
    save_checkpoint(folder / LATEST, state, keep_as=folder / PREVIOUS)


def find_damage(path: Path) -> str:
    """Compare every checksum of a checkpoint; return what is wrong, empty if nothing is."""
    try:
        with zipfile.ZipFile(path) as file:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
                return "compressed, as torch writes none"  # and could unfold to any size
            broken = file.testzip()
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        return str(error).splitlines()[0][:120] if str(error) else type(error).__name__
    return f"checksum of {broken}" if broken else ""


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`.

    Raises:
        MissingArtefactError: no such file.
        PlanError: something else is in its place.
        StaleArtefactError: damaged, or not a checkpoint of her2net.
    """
    import torch

    if not path.exists():
        raise MissingArtefactError(f"{path}: no such file. Run her2net_train first.")
    if not path.is_file():
        raise PlanError(f"{path}: is not a file. Move it away.")
    remedy = "Run her2net_train for this fold again; it continues from what is sound."
    damage = find_damage(path)
    if damage:
        raise StaleArtefactError(f"{path}: damaged checkpoint ({damage}). {remedy}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # the unpickler may fail in any way on a file that somebody made up
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise StaleArtefactError(f"{path}: damaged checkpoint ({reason}). {remedy}") from None
    if not isinstance(state, dict) or not isinstance(state.get("made_from"), dict):
        raise StaleArtefactError(f"{path}: not a checkpoint of her2net. {remedy}")
    return state


def compare_weights(found: Any, own: Mapping[str, Any]) -> list[str]:
    """List in what weights do not fit a network, by their names, shapes and types; NaN and infinity do not fit.

    Args:
        found: as a checkpoint has them, so anything.
        own: state dict of the network.
    """
    import torch

    if not isinstance(found, dict):
        return [f"weights are {type(found).__name__}, expected names and tensors"]
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{str(name)[:80]!r} is none of the network's" for name in found if name not in own]
    for name in [name for name in own if name in found]:
        tensor = found[name]
        if not isinstance(tensor, torch.Tensor):
            problems.append(f"{name} is {type(tensor).__name__}, expected a tensor")
        elif (tensor.shape, tensor.dtype) != (own[name].shape, own[name].dtype):
            kinds = [f"{t.dtype} of shape {tuple(t.shape)}" for t in (tensor, own[name])]
            problems.append(f"{name} is {kinds[0]}, expected {kinds[1]}")
        elif not torch.isfinite(tensor).all():
            problems.append(f"{name} holds NaN or infinity")
    return problems


def read_latest(folder: Path, explain_misfit: Callable[[dict[str, Any]], str] = lambda state: "") -> dict[str, Any] | None:
    """Return the newest sound state, `None` if there is none; what is no good is passed over with a warning.

    Args:
        explain_misfit: says why a state cannot be continued from; empty if it can.
    """
    for name, instead in ((LATEST, "Falling back to the previous checkpoint."), (PREVIOUS, "Training starts anew.")):
        try:
            state = read_checkpoint(folder / name)
            if why := explain_misfit(state):
                raise StaleArtefactError(f"{folder / name}: cannot be continued from ({why}).")
            return state
        except MissingArtefactError:
            continue
        except StaleArtefactError as error:
            print(f"Warning: {error} {instead}", file=sys.stderr)
    return None
