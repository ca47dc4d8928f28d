"""Checkpoints: written whole or not at all, read without executing anything.

`checkpoint_latest.pt` is what a run continues from; the one before it is kept as
`checkpoint_previous.pt` until training ends, so a damaged newest file costs a few
epochs, not the run. `checkpoint_final.pt` holds the weights that predict.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

from her2net.artefact import write_bytes
from her2net.errors import MissingArtefactError, StaleArtefactError

LATEST, PREVIOUS, FINAL = "checkpoint_latest.pt", "checkpoint_previous.pt", "checkpoint_final.pt"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write tensors and plain values, atomically, and read them back before anything relies on them."""
    import torch

    buffer = io.BytesIO()
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())


def save_latest(folder: Path, state: dict[str, Any]) -> None:
    """Save the state to continue from; the newest so far becomes the previous one."""
    latest = folder / LATEST
    if latest.exists():
        os.replace(latest, folder / PREVIOUS)
    save_checkpoint(latest, state)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True`.

    Raises:
        MissingArtefactError: no such file.
        StaleArtefactError: damaged, or not a checkpoint of her2net.
    """
    import torch

    if not path.exists():
        raise MissingArtefactError(f"{path}: no such file. Run her2net_train first.")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise StaleArtefactError(f"{path}: damaged checkpoint ({reason}). Train the fold again with --restart.") from None
    if not isinstance(state, dict) or "made_from" not in state:
        raise StaleArtefactError(f"{path}: not a checkpoint of her2net. Train the fold again with --restart.")
    return state


def read_latest(folder: Path) -> dict[str, Any] | None:
    """Return the newest sound state, `None` if there is none; a damaged newest one falls back with a warning."""
    for name in (LATEST, PREVIOUS):
        try:
            return read_checkpoint(folder / name)
        except MissingArtefactError:
            continue
        except StaleArtefactError as error:
            print(f"Warning: {error} Falling back to the previous checkpoint.", file=sys.stderr)
    return None
