"""Files that the user hands to a command: own folds, a recorded machine, pretrained weights; and lock files left behind."""

from __future__ import annotations

import io
import json
import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path

import torch

from her2net import locks
from her2net.networks.build import build_network
from her2net.paths import DatasetPaths
from mutations.case import PLAN, STATUS, TRAIN, TRAIN_ALL, Command, Kind, Mutation
from mutations.checkpoints import Bomb
from mutations.good import FOLDS
from mutations.json_files import broken, text
from mutations.tools import Damage, cut_share, edit_file, flip, replace_file

MINE: Command = ("plan", "-p", "mine", "--no-preprocess", "--num-workers", "1", "--quiet")
SPLITS = Kind("plan --splits", ((*MINE, "--machine", "{root}/machine.json", "--splits", "{root}/own.json"),))
MACHINE = Kind("plan --machine", ((*MINE, "--machine", "{root}/machine.json"),))
WEIGHTS = Kind("train --pretrained", (("train", "MG", "all", "--pretrained", "{root}/w.pt", "--device", "cpu", "--quiet"),))
LOCKS = Kind("lock file", (TRAIN_ALL,))
JSON_WAYS = ("0 bytes", "cut to half", "NUL bytes", "no text", "UTF-16", "key twice", "NaN", "100000 brackets", "folder instead", "named pipe",
             "link to a device without end", "unreadable")  # fmt: skip


def root_of(d: DatasetPaths) -> Path:
    return d.roots.raw.parent


def own(d: DatasetPaths) -> Path:
    return root_of(d) / "own.json"


def machine(d: DatasetPaths) -> Path:
    return root_of(d) / "machine.json"


def folds(value: object) -> Damage:
    return lambda d: replace_file(own(d), json.dumps(value).encode())


A, B = FOLDS


def bad(name: str, value: object, *says: str) -> Mutation:
    return SPLITS.refused(name, folds(value), "own.json", *says)


def measured(name: str, change: Callable[[dict], object], *says: str) -> Mutation:
    def damage(d: DatasetPaths) -> None:
        content = json.loads(machine(d).read_text())
        change(content)
        replace_file(machine(d), json.dumps(content).encode())

    return MACHINE.refused(name, damage, "machine.json", *says)


def weights(content: object, ending: str = ".pt") -> Damage:
    """Save something as the weight file."""

    def damage(d: DatasetPaths) -> None:
        buffer = io.BytesIO()
        torch.save(content() if callable(content) else content, buffer)
        (root_of(d) / f"w{ending}").write_bytes(buffer.getvalue())

    return damage


def good_weights() -> dict[str, torch.Tensor]:
    return build_network("scattering_2d", n_channels=1, n_classes=2).state_dict()


def weight_bytes(content: bytes | Callable[[bytes], bytes]) -> Damage:
    def damage(d: DatasetPaths) -> None:
        weights(good_weights)(d)
        edit_file(root_of(d) / "w.pt", content if callable(content) else lambda _: content)

    return damage


def spoiled(change: Callable[[torch.Tensor], object]) -> Damage:
    """Change the tensors of floating-point numbers of a fitting file."""
    return weights(lambda: {k: change(v) if v.is_floating_point() else v for k, v in good_weights().items()})


def lock(content: bytes, *, old: bool = True) -> Damage:
    """Leave a lock file beside the fold that is to be trained, written an hour ago."""

    def damage(d: DatasetPaths) -> None:
        path = locks.lock_beside(d.fold("US", "all"))
        path.write_bytes(content)
        if old:
            os.utime(path, (time.time() - 3600,) * 2)

    return damage


def holder(**changes: object) -> bytes:
    return json.dumps(locks._describe_self(Path("x")).model_dump() | {"path": ""} | changes).encode()


def special(make: Callable[[Path], object]) -> Damage:
    return lambda d: make(locks.lock_beside(d.fold("US", "all")))


CLEARED = "nobody holds it"
MUTATIONS: list[Mutation] = [
    *(SPLITS.refused(name, broken(own)[name][0], "own.json", broken(own)[name][1]) for name in JSON_WAYS
      if name not in ("key twice", "NaN")),
    SPLITS.refused("key twice", lambda d: replace_file(own(d), b'{"folds": [], "folds": []}'), "own.json",
                   "'folds' occurs twice"),
    SPLITS.refused("NaN", lambda d: replace_file(own(d), b"[NaN, []]"), "own.json", "NaN is not allowed"),
    SPLITS.refused("missing", lambda d: own(d).unlink(), "own.json", "no such file"),
    bad("null", None, "list of at least two folds"),
    bad("a number", 5, "list of at least two folds"),
    bad("a text", "P000", "list of at least two folds"),
    bad("no fold", [], "list of at least two folds"),
    bad("one fold", [A + B], "list of at least two folds"),
    bad("folds by name", {"0": A, "1": B}, "list of at least two folds"),
    bad("a fold null", [A, None], "fold 1"),
    bad("a fold a number", [A, 5], "fold 1"),
    bad("a fold a text", [A, "P004"], "fold 1"),
    bad("a fold of lists", [A, [B]], "fold 1"),
    bad("a patient a number", [A, [4, *B[1:]]], "fold 1", "4"),
    bad("a patient true", [A, [True, *B]], "fold 1", "True"),
    bad("a patient a dictionary", [A, [{"id": "P004"}]], "fold 1"),
    bad("validation patients a number", [{"train": B, "val": 5}, {"train": A, "val": B}], "fold 0"),
    bad("training patients null", [{"train": None, "val": A}, {"train": A, "val": B}], "fold 0"),
    bad("validation patients missing", [{"train": B}, {"train": A}], "fold 0"),
    bad("unknown key", [{"training": B, "val": A}, {"val": B}], "fold 0", "training"),
    bad("patient on both sides", [{"train": [*B, A[0]], "val": A}, {"train": A, "val": B}], "fold 0", "P000"),
    bad("patient in two folds", [A, [*B, A[0]]], "two folds", "P000"),
    bad("patient missing", [A, B[:-1]], "P007"),
    bad("training patient missing", [{"train": B[:-1], "val": A}, {"train": A, "val": B}], "fold 0", "P007"),
    bad("unknown patient", [A, [*B, "P999"]], "fold 1", "P999"),
    bad("test patient", [A, [*B, "P008"]], "fold 1", "P008"),
    bad("empty fold", [A + B, []], "fold 1"),
    bad("fold of one class left", [["P000", "P002", "P004", "P006"], ["P001", "P003", "P005", "P007"]], "no training case of class"),
    SPLITS.accepted("byte-order mark", lambda d: edit_file(own(d), lambda b: b"\xef\xbb\xbf" + b), "editors write it"),
    SPLITS.accepted("cases instead of patients", folds([[p.replace("P", "C") for p in fold] for fold in FOLDS]), "a case names its patient"),
    SPLITS.accepted("both sides", folds({"folds": [{"train": B, "val": A}, {"train": A, "val": B}]}), "other tools write it"),

    *(MACHINE.refused(name, broken(machine)[name][0], "machine.json", broken(machine)[name][1])
      for name in (*JSON_WAYS, "a list", "null", "unknown key", "key missing", "newer schema") if name != "key missing"),
    MACHINE.refused("missing", lambda d: machine(d).unlink(), "machine.json", "no such file"),
    measured("device unknown", lambda c: c.update(device="tpu"), "device"),
    measured("device absent", lambda c: c.pop("device"), "device", "field required"),
    measured("threads as text", lambda c: c.update(n_threads="2"), "n_threads"),
    measured("threads 0", lambda c: c.update(n_threads=0), "n_threads"),
    measured("memory -8", lambda c: c.update(memory_gb=-8), "memory_gb"),
    measured("memory 0", lambda c: c.update(memory_gb=0), "memory_gb"),
    measured("speeds a list", lambda c: c.update(samples_per_s=[1.0]), "samples_per_s"),
    measured("speed 0", lambda c: [c["samples_per_s"].update({k: 0.0}) for k in list(c["samples_per_s"])], "samples_per_s"),
    measured("speed -1", lambda c: [c["samples_per_s"].update({k: -1.0}) for k in list(c["samples_per_s"])], "samples_per_s"),
    MACHINE.refused("speed infinite", text(machine, lambda t: t.replace("1000000.0", "1e999")), "machine.json", "samples_per_s"),
    MACHINE.refused("plan without a machine", lambda d: replace_file(machine(d), b'{"machine": null}'), "machine.json", "no machine"),
    MACHINE.refused("plan with a bad machine", lambda d: replace_file(machine(d), b'{"machine": {"device": 5}}'), "machine.json", "device"),
    MACHINE.refused("plan with a text for a machine", lambda d: replace_file(machine(d), b'{"machine": "laptop"}'), "machine.json", "machine"),

    WEIGHTS.refused("missing", lambda d: None, "w.pt", "no such weight file"),
    WEIGHTS.refused("folder", lambda d: (root_of(d) / "w.pt").mkdir(), "w.pt"),
    WEIGHTS.refused("named pipe", lambda d: os.mkfifo(root_of(d) / "w.pt"), "w.pt"),
    WEIGHTS.refused("0 bytes", weight_bytes(b""), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("text", weight_bytes(b"hello"), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("cut to half", weight_bytes(cut_share(0.5)), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("byte flipped", weight_bytes(flip(0.5)), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("pickle that executes", weight_bytes(pickle.dumps(Bomb())), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("state dict that executes", weights({"state_dict": Bomb()}), "w.pt", "cannot be read as weights"),
    WEIGHTS.refused("a list", weights([1, 2]), "w.pt", "no state dict"),
    WEIGHTS.refused("empty", weights({}), "w.pt", "no state dict"),
    WEIGHTS.refused("numbers for tensors", weights({"a": 1.0}), "w.pt", "no state dict"),
    WEIGHTS.refused("other names", weights({"a": torch.zeros(2)}), "w.pt", "do not fit scattering_2d"),
    WEIGHTS.refused("other shapes", spoiled(lambda t: torch.zeros(3, 3)), "w.pt", "do not fit scattering_2d"),
    WEIGHTS.refused("NaN", spoiled(lambda t: torch.full_like(t, float("nan"))), "w.pt", "NaN or infinity"),
    WEIGHTS.refused("keys that are no text", weights({7: torch.zeros(2)}), "w.pt", "do not fit"),

    LOCKS.accepted("0 bytes, old", lock(b""), CLEARED, "has ended"),
    LOCKS.accepted("text, old", lock(b"locked by me"), CLEARED, "has ended"),
    LOCKS.accepted("no text, old", lock(b"\xff\xfe"), CLEARED, "has ended"),
    LOCKS.accepted("JSON of something else, old", lock(b"[]"), CLEARED, "has ended"),
    LOCKS.accepted("process that has ended", lock(holder(pid=999_999_999)), CLEARED, "has ended"),
    LOCKS.accepted("process of another start", lock(holder(started="1")), CLEARED, "has ended"),
    LOCKS.accepted("process number beyond any system", lock(holder(pid=10**30)), CLEARED, "has ended"),
    LOCKS.accepted("process number 0", lock(holder(pid=0)), CLEARED, "has ended"),
    LOCKS.accepted("process number -1", lock(holder(pid=-1)), CLEARED, "has ended"),
    LOCKS.accepted("process number a text", lock(holder(pid="1")), CLEARED, "has ended"),
    LOCKS.accepted("another machine, an hour ago", lock(holder(machine="other")), CLEARED, "has ended"),
    LOCKS.refused("text, new", lock(b"locked by me", old=False), "in use by another process", ".fold_all.lock", code=1),
    LOCKS.refused("another machine, now", lock(holder(machine="other", host="ward7"), old=False), "in use by", "ward7", code=1),
    LOCKS.refused("folder", special(Path.mkdir), ".fold_all.lock", code=1),
    LOCKS.refused("named pipe", special(os.mkfifo), ".fold_all.lock", code=1),
    LOCKS.accepted("text, asked for the state", lock(b"locked by me"), "her2net_status only looks", commands=(STATUS,)),
    LOCKS.accepted("of another fold", lock(b"locked by me", old=False), "it is another fold", commands=(TRAIN,)),
    LOCKS.accepted("of a fold, planned meanwhile", lock(b"locked by me", old=False), "planning needs another lock", commands=(PLAN,)),
]  # fmt: skip
