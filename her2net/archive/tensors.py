"""Tensors as safetensors: a JSON header and plain numbers, nothing that could be executed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from her2net.archive.manifest import MAX_HEADER_BYTES
from her2net.errors import ArchiveError, describe, join_problems

Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name -> type (in the header's words) and shape."""
TYPES = {torch.float16: "F16", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}


def dump_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors as the bytes of a safetensors file."""
    import safetensors.torch

    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})


def layout_of(tensors: Mapping[str, torch.Tensor]) -> Layout:
    """Return what a file of these tensors has to hold."""
    return {name: (TYPES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items()}


def load_tensors(content: bytes, layout: Layout, *, where: object) -> dict[str, torch.Tensor]:
    """Read tensors whose names, types and shapes are known beforehand.

    Raises:
        ArchiveError: not safetensors, or other tensors than these; NaN or infinity among them.
    """
    import safetensors
    import safetensors.torch

    problems = compare_layout(_read_header(content, where), layout)
    if problems:
        raise ArchiveError(join_problems(f"{where}: its tensors are not those of the model.", problems, limit=5))
    try:
        tensors = safetensors.torch.load(content)
    except (safetensors.SafetensorError, ValueError) as error:
        raise ArchiveError(describe("not a sound safetensors file", where=where, found=str(error)[:160])) from None
    infinite = [name for name, tensor in tensors.items() if tensor.is_floating_point() and not tensor.isfinite().all()]
    if infinite:
        raise ArchiveError(describe("tensors hold NaN or infinity", where=where, found=", ".join(infinite[:5])))
    return tensors


def _read_header(content: bytes, where: object) -> dict[str, tuple[object, object]]:
    """Return name -> (type, shape) as the file claims them; the library checks afterwards that the bytes fit."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > min(MAX_HEADER_BYTES, len(content) - 8):
        found = f"{content[:8]!r}"
        raise ArchiveError(describe("not a safetensors file: its first 8 bytes are no length", where=where, found=found))
    try:
        header = json.loads(content[8 : 8 + length])
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ArchiveError(describe("not a safetensors file: its header cannot be read", where=where)) from None


def compare_layout(found: Mapping[str, tuple[object, object]], layout: Layout) -> list[str]:
    """List tensors that are missing, of no use, or of another type or shape."""
    problems = [f"{name} is missing." for name in layout if name not in found]
    problems += [f"{str(name)[:80]!r} is none of the model's." for name in found if name not in layout]
    problems += [
        describe(name, found=" ".join(map(str, found[name])), expected=" ".join(map(str, layout[name])))
        for name in layout
        if name in found and found[name] != layout[name]
    ]
    return problems
