"""Damaged checkpoints: a damaged newest one falls back to the previous, damaged final ones are refused, nothing is executed."""

from __future__ import annotations

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from her2net.paths import DatasetPaths
from mutations.case import ENSEMBLE, PREDICT, TRAIN, TRAIN_ALL, Kind, Mutation
from mutations.tools import Damage, Edit, cut, cut_share, edit_file, flip, replace_file

LATEST = Kind("checkpoint_latest.pt", (TRAIN_ALL,))
BOTH = Kind("checkpoint_latest.pt and checkpoint_previous.pt", (TRAIN_ALL,))
FINAL = Kind("checkpoint_final.pt", (ENSEMBLE, PREDICT))
RUN = "US/fold_all/checkpoint_latest.pt"
WEIGHTS = "US/fold_0/checkpoint_final.pt"


class Bomb:
    """What must never be unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, ("echo EXECUTED > executed",)


def file(d: DatasetPaths, name: str) -> Path:
    return d.results / name


def raw_bytes(name: str, edit: Edit) -> Damage:
    return lambda d: edit_file(file(d, name), edit)


def state(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """Load a checkpoint, change it, and save it soundly."""

    def damage(d: DatasetPaths) -> None:
        path = file(d, name)
        content = torch.load(path, weights_only=True)
        changed = change(content)
        buffer = io.BytesIO()
        torch.save(content if changed is None else changed, buffer)
        replace_file(path, buffer.getvalue())

    return damage


def legacy(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(compression: int, **members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name.replace('_', '.')}", content)
    return buffer.getvalue()


def first(content: dict[str, Any], key: str, change: Callable[[torch.Tensor], object]) -> None:
    """Replace the first tensor of a state dict."""
    name = next(k for k, v in content[key].items() if isinstance(v, torch.Tensor) and v.is_floating_point() and v.numel() > 1)
    content[key][name] = change(content[key][name])


def clear(content: dict[str, Any], key: str) -> None:
    content[key] = {}


def bytes_ways(name: str) -> dict[str, Damage]:
    """Ways to damage the file itself."""
    become = lambda content: lambda d: replace_file(file(d, name), content)
    return {
        "0 bytes": raw_bytes(name, cut(0)),
        **{f"cut to {n} bytes": raw_bytes(name, cut(n)) for n in (1, 4, 100)},
        **{f"cut to {share:.0%}": raw_bytes(name, cut_share(share)) for share in (0.1, 0.5, 0.9, 0.99)},
        "last byte missing": raw_bytes(name, cut(-1)),
        **{f"byte flipped at {share:.0%}": raw_bytes(name, flip(share)) for share in (0.1, 0.3, 0.5, 0.7, 0.9)},
        "one bit flipped": raw_bytes(name, flip(0.5, 1)),
        "text file": become(b"epoch,loss\n"),
        "pickle that executes": become(pickle.dumps(Bomb())),
        "old format that executes": become(legacy({"made_from": Bomb()})),
        "new format that executes": become(zipped(zipfile.ZIP_STORED, data_pkl=pickle.dumps({"made_from": Bomb()}), version=b"3\n")),
        "zip of something else": become(zipped(zipfile.ZIP_STORED, readme_txt=b"hello")),
        "zip bomb": lambda d: become(zipped(zipfile.ZIP_DEFLATED, data_pkl=pickle.dumps({}), data_0=bytes(1 << 26)))(d),
        "empty zip": become(zipped(zipfile.ZIP_STORED)),
    }


def of_state(name: str, key: str, kinds: tuple[str, ...]) -> dict[str, Damage]:
    """Ways to change what a sound file says."""
    return {
        "a list": state(name, lambda c: [1, 2]),
        "a tensor": state(name, lambda c: torch.zeros(3)),
        "no digests": state(name, lambda c: (c.pop("made_from"), c)[1]),
        "digests a list": state(name, lambda c: c.update(made_from=[])),
        "weights missing": state(name, lambda c: (c.pop(key), c)[1]),
        "weights a list": state(name, lambda c: c.update({key: []})),
        "weights empty": state(name, lambda c: clear(c, key)),
        "weights of another shape": state(name, lambda c: first(c, key, lambda t: torch.zeros(7, 7))),
        "weights of NaN": state(name, lambda c: first(c, key, lambda t: torch.full_like(t, float("nan")))),
        "weights infinite": state(name, lambda c: first(c, key, lambda t: torch.full_like(t, float("inf")))),
        "weights of integers": state(name, lambda c: first(c, key, lambda t: t.long())),
        "weight a text": state(name, lambda c: first(c, key, lambda t: "x")),
        "weight that claims a terabyte": state(name, lambda c: first(c, key, lambda t: torch.zeros(1).expand(1 << 38))),
        "weight too many": state(name, lambda c: c[key].update(stranger=torch.zeros(2))),
        **{f"{kind} missing": state(name, lambda c, kind=kind: (c.pop(kind), c)[1]) for kind in kinds},
        **{f"{kind} a pair": state(name, lambda c, kind=kind: c.update({kind: (1, 2)})) for kind in kinds},
    }


RUN_WAYS, PREVIOUS_WAYS, FINAL_WAYS = (bytes_ways(name) for name in (RUN, RUN.replace("latest", "previous"), WEIGHTS))
PARTS = ("optimizer", "average", "epochs_done", "history", "best", "duration_s", "n_parts", "initialisation", "scaler")
FITS = ("network", "n_channels", "n_classes")

MUTATIONS: list[Mutation] = [
    *(LATEST.repaired(name, damage, "the previous one is taken", RUN, "Falling back to the previous checkpoint")
      for name, damage in RUN_WAYS.items()),
    *(LATEST.repaired(name, damage, "the previous one is taken", RUN, "Falling back to the previous checkpoint")
      for name, damage in of_state(RUN, "model", PARTS).items() if name != "digests a list"),
    LATEST.accepted("made from something else", state(RUN, lambda c: c.update(made_from={"a": "1"})),
                    "it is of another run, which a fold that was never finished starts anew", "made from other inputs"),
    LATEST.repaired("missing", lambda d: file(d, RUN).unlink(), "the previous one is taken"),
    LATEST.refused("folder instead", lambda d: (file(d, RUN).unlink(), file(d, RUN).mkdir()), RUN),
    *(
        BOTH.repaired(name, lambda d, name=name: (RUN_WAYS[name](d), PREVIOUS_WAYS[name](d)),
                      "training starts anew", RUN, "checkpoint_previous.pt", "Training starts anew")
        for name in ("0 bytes", "cut to 50%", "byte flipped at 50%", "pickle that executes")
    ),
    LATEST.accepted("0 bytes, but the fold is finished", raw_bytes("US/fold_0/checkpoint_latest.pt", cut(0)),
                    "the final weights are whole", commands=(TRAIN,)),
    *(FINAL.refused(name, damage, WEIGHTS) for name, damage in FINAL_WAYS.items()),
    *(FINAL.refused(name, damage, WEIGHTS) for name, damage in of_state(WEIGHTS, "weights", FITS).items() if name != "digests a list"),
    FINAL.refused("of another network", state(WEIGHTS, lambda c: c.update(network="resnet10t")), WEIGHTS, "resnet10t"),
    FINAL.refused("three classes", state(WEIGHTS, lambda c: c.update(n_classes=3)), WEIGHTS, "n_classes"),
    FINAL.refused("of a fold trained from something else", state(WEIGHTS, lambda c: c.update(made_from={"a": "1"})), WEIGHTS, "run.json"),
    FINAL.refused("missing", lambda d: file(d, WEIGHTS).unlink(), "folds [0] are not trained"),
    FINAL.refused("folder instead", lambda d: (file(d, WEIGHTS).unlink(), file(d, WEIGHTS).mkdir()), WEIGHTS),
    *(FINAL.repaired(f"{name}, trained again", FINAL_WAYS[name], "the newest checkpoint has the same weights", commands=(TRAIN,))
      for name in ("0 bytes", "cut to 50%", "byte flipped at 50%", "pickle that executes")),
]  # fmt: skip
