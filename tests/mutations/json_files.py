"""Damaged JSON artefacts: every plan, splits, record and measurement that a user may open in an editor."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from her2net.paths import DatasetPaths
from mutations.case import (
    ENSEMBLE,
    FUSE,
    PLAN,
    PREDICT,
    REPORT,
    STATUS,
    TRAIN,
    TRAIN_ALL,
    Command,
    Kind,
    Mutation,
)
from mutations.tools import Damage, edit_file, replace_file

Where = Callable[[DatasetPaths], Path]
Change = Callable[[dict[str, Any]], object]


def edited(where: Where, change: Change) -> Damage:
    """Change the values of a JSON file."""

    def damage(d: DatasetPaths) -> None:
        content = json.loads(where(d).read_text(encoding="utf-8"))
        change(content)
        replace_file(where(d), json.dumps(content).encode())

    return damage


def text(where: Where, change: Callable[[str], str]) -> Damage:
    return lambda d: edit_file(where(d), lambda content: change(content.decode()).encode())


def becomes(where: Where, content: bytes) -> Damage:
    return lambda d: replace_file(where(d), content)


def instead(where: Where, make: Callable[[Path], object]) -> Damage:
    """Put something else in the place of a file."""
    return lambda d: (where(d).unlink(), make(where(d)))


def drop_key(content: dict[str, Any]) -> None:
    """Remove all that the kinds of artefacts do not have in common."""
    for key in set(content) - {"schema_version", "her2net_version", "made_from"}:
        del content[key]


def broken(where: Where) -> dict[str, tuple[Damage, str]]:
    """Ways to break any JSON artefact: name -> damage and what must be said of it."""
    first = lambda added: text(where, lambda t: t.replace("{", "{" + added, 1))
    return {
        "0 bytes": (becomes(where, b""), "not JSON"),
        "cut to half": (lambda d: edit_file(where(d), lambda b: b[: len(b) // 2]), "not JSON"),
        "NUL bytes": (becomes(where, bytes(100)), "not JSON"),
        "no text": (becomes(where, b"\x80\xff\xfe"), "not UTF-8"),
        "UTF-16": (lambda d: edit_file(where(d), lambda b: b.decode().encode("utf-16")), "not UTF-8"),
        "comment": (first("// mine\n"), "not JSON"),
        "comma too many": (text(where, lambda t: t.rstrip()[:-1] + ",}"), "not JSON"),
        "key twice": (first('"schema_version": 1, '), "'schema_version' occurs twice"),
        "NaN": (first('"x": NaN, '), "NaN is not allowed"),
        "infinity": (first('"x": -Infinity, '), "Infinity is not allowed"),
        "100000 brackets": (becomes(where, b"[" * 100_000), "nested too deeply"),
        "number of 5000 digits": (first('"x": ' + "9" * 5000 + ", "), "cannot be read"),
        "half a surrogate": (first('"x": "\\ud800", '), "\\ud800 is half a character"),
        "a list": (becomes(where, b"[]"), "not a valid"),
        "null": (becomes(where, b"null"), "not a valid"),
        "unknown key": (first('"mine": 1, '), "mine: extra inputs"),
        "key missing": (edited(where, drop_key), "field required"),
        "newer schema": (edited(where, lambda c: c.update(schema_version=99)), "Upgrade her2net"),
        "schema as text": (edited(where, lambda c: c.update(schema_version="1")), "schema_version: "),
        "version null": (edited(where, lambda c: c.update(her2net_version=None)), "her2net_version: "),
        "digests a list": (edited(where, lambda c: c.update(made_from=[])), "made_from: "),
        "folder instead": (instead(where, Path.mkdir), "is not a file"),
        "named pipe": (instead(where, os.mkfifo), "is not a file"),
        "link to itself": (instead(where, lambda path: path.symlink_to(path.name)), "cannot be read"),
        "link to a device without end": (instead(where, lambda path: path.symlink_to("/dev/zero")), "is not a file"),
        "gigabytes of nothing": (lambda d: os.truncate(where(d), 4 << 30), "larger than 1024 MiB"),
        "unreadable": (lambda d: os.chmod(where(d), 0), "cannot be read"),
    }


SOME = ("0 bytes", "cut to half", "UTF-16", "key twice", "NaN", "100000 brackets", "a list", "unknown key", "key missing", "newer schema",
        "folder instead", "named pipe", "unreadable")  # fmt: skip
"""Enough where the same reader has had all of them elsewhere."""


def refuse_broken(kind: Kind, where: Where, file: str, names: tuple[str, ...] = SOME) -> list[Mutation]:
    ways = broken(where)
    return [kind.refused(name, ways[name][0], file, ways[name][1]) for name in names]


def harmless(kind: Kind, where: Where) -> list[Mutation]:
    """Changes that mean nothing."""
    return [
        kind.accepted("byte-order mark", lambda d: edit_file(where(d), lambda b: codecs.BOM_UTF8 + b), "editors write it"),
        kind.accepted("keys in another order", lambda d: edit_file(where(d), lambda b: json.dumps(
            dict(reversed(list(json.loads(b).items())))).encode()), "order means nothing"),
        kind.accepted("indented, with line ends of Windows", lambda d: edit_file(where(d), lambda b: json.dumps(
            json.loads(b), indent=7).replace("\n", "\r\n").encode()), "space means nothing"),
    ]  # fmt: skip


def fold(name: str) -> Where:
    return lambda d: d.fold("US", 0) / name


def plan_value(path: str, value: object) -> Damage:
    """Put a value at a dotted path of the plan."""

    def change(content: dict[str, Any]) -> None:
        *parents, last = path.split(".")
        for part in parents:
            content = content[part]
        content[last] = value

    return edited(lambda d: d.plan, change)


PLANS = Kind("plan.json", (TRAIN, PLAN))
SPLITS = Kind("splits.json", (TRAIN,))
SCAN = Kind("scan.json", (TRAIN,))
RUN = Kind("run.json", (TRAIN,))
ENSEMBLED = Kind("ensemble.json", (PREDICT,))
FUSION = Kind("fusion.json", (PREDICT,))
METRICS = Kind("metrics.json", (REPORT,))
FINGERPRINT = Kind("fingerprint.json", (PREDICT,))
AUTO = "plans/auto.json"
US = "modalities.US."


def bad(name: str, path: str, value: object, *says: str, commands: tuple[Command, ...] = ()) -> Mutation:
    return PLANS.refused(name, plan_value(path, value), AUTO, *(says or (path,)), commands=commands)


def partition(change: Callable[[list[Any]], object]) -> Damage:
    """Change the folds of the partition in use."""
    return edited(lambda d: d.splits, lambda c: change(c["partitions"]["custom-2"]["folds"]))


def sealed(patients: list[str], fraction: object = 0.2) -> Damage:
    return edited(lambda d: d.splits, lambda c: c.update(holdout={"fraction": fraction, "seed": 0, "patients": patients}))


MUTATIONS: list[Mutation] = [
    *refuse_broken(PLANS, lambda d: d.plan, AUTO, tuple(broken(lambda d: d.plan))),
    *harmless(PLANS, lambda d: d.plan),
    PLANS.refused("missing", lambda d: d.plan.unlink(), AUTO, "Run her2net_plan", commands=(TRAIN,)),
    bad("epochs as text", US + "training.epochs", "2"),
    bad("epochs 2.0", US + "training.epochs", 2.0),
    bad("epochs true", US + "training.epochs", True),
    bad("epochs 0", US + "training.epochs", 0),
    bad("epochs null", US + "training.epochs", None),
    bad("batch -1", US + "training.batch_size", -1),
    bad("learning rate 0", US + "training.learning_rate", 0.0),
    bad("learning rate a list", US + "training.learning_rate", [1e-3]),
    bad("learning rate overflows", US + "training.learning_rate", 10**400),
    bad("unknown network", US + "training.network", "resnet10000", "resnet10000", commands=(TRAIN_ALL,)),
    bad("3D network for flat images", US + "training.network", "resnet10_3d_s122", "resnet10_3d_s122", commands=(TRAIN_ALL,)),
    bad("network that leads elsewhere", US + "training.network", "../../x", "../../x", commands=(TRAIN_ALL,)),
    bad("unknown precision", US + "training.precision", "fp8"),
    bad("seed of the splits too large", "splits.seed", 2**40),
    bad("seed of the splits negative", "splits.seed", -1),
    bad("one loss weight", US + "training.loss_weights", [1.0], "loss_weights"),
    bad("scale turned round", US + "training.augmentation.scale", [1.25, 0.8], "scale"),
    bad("flip axes of a volume", US + "training.augmentation.flip_axes", [True, True, True], "flip_axes"),
    bad("probability above 1", US + "training.augmentation.flip_probability", 1.5),
    bad("odd border", US + "preprocessing.stored_vox", [65, 65], "stored_vox"),
    bad("input larger than stored", US + "preprocessing.input_vox", [640, 640], "input_vox"),
    bad("three sizes for flat images", US + "preprocessing.input_vox", [64, 64, 64], "input_vox"),
    bad("input of 0", US + "preprocessing.input_vox", [0, 0], "input_vox"),
    bad("stored size beyond any memory", US + "preprocessing.stored_vox", [10**6, 10**6], "stored_vox", commands=(TRAIN,)),
    bad("inference batch beyond any memory", US + "inference.batch_size", 10**12, "inference.batch_size", commands=(TRAIN,)),
    bad("derived channels of no series", US + "preprocessing.derived_channels", ["subtraction"], "derived_channels"),
    bad("channel removed", US + "channels", [], "channels"),
    bad("channel added", US + "channels", ["US", "Doppler"], "channels", commands=(TRAIN,)),
    bad("modality removed", "modalities", {}, "modalities"),
    bad("ndim 3", US + "ndim", 3, "input_vox"),
    bad("ndim 4", US + "ndim", 4),
    PLANS.refused("modality that the dataset lacks", edited(lambda d: d.plan, lambda c: c["modalities"].update(
        CT=c["modalities"]["US"])), AUTO, "modalities", commands=(TRAIN,)),
    PLANS.refused("modality renamed", edited(lambda d: d.plan, lambda c: c["modalities"].update(
        {"../x": c["modalities"].pop("US")})), AUTO, commands=(TRAIN,)),
    bad("one fold", "splits.n_folds", 1),
    PLANS.refused("folds that nobody made", plan_value("splits.n_folds", 3), "splits.json", "custom-3", commands=(TRAIN,)),
    bad("unknown scheme", "splits.scheme", "random"),
    bad("one class", "class_names", ["negative"], "class_names"),
    bad("a class more", "class_names", ["negative", "positive", "unsure"], "loss_weights"),
    bad("classes exchanged", "class_names", ["positive", "negative"], "class_names", commands=(TRAIN,)),
    bad("of another dataset", "dataset", "Dataset002_Other", "Dataset002_Other", commands=(TRAIN,)),
    bad("named otherwise", "name", "mine", "name: ", "'mine'", "expected 'auto'"),
    bad("budget -1", "budget_h", -1.0),
    bad("unknown preset", "preset", "best"),
    bad("fusion without strength", "fusion.strength", 0.0),
    bad("fusion of an unknown modality", "fusion.subsets", [["CT"]], "fusion.subsets", commands=(PLAN, FUSE)),
    bad("fusion of nothing", "fusion.subsets", [[]], "fusion.subsets", commands=(FUSE,)),
    bad("fusion lists a modality twice", "fusion.subsets", [["US", "US"]], "fusion.subsets", commands=(FUSE,)),
    bad("machine a text", "machine", "laptop"),
    PLANS.refused("decision about nothing", edited(lambda d: d.plan, lambda c: c["decisions"][0].update(path="training.epochs")), AUTO,
                  "decisions.0", "'training.epochs'"),
    PLANS.refused("decision about an unknown modality", edited(lambda d: d.plan, lambda c: c["decisions"][0].update(
        path="modalities.CT.ndim")), AUTO, "decisions.0", "'modalities.CT.ndim'"),
    PLANS.refused("decisions a dictionary", plan_value("decisions", {}), AUTO, "decisions"),
    PLANS.accepted("decisions removed", plan_value("decisions", []), "they explain and decide nothing", commands=(PLAN,)),
    PLANS.accepted("loss weights edited", plan_value(US + "training.loss_weights", [0.5, 1.5]), "the plan is the user's to edit",
                   "edited by you", commands=(PLAN,)),

    *refuse_broken(SPLITS, lambda d: d.splits, "splits.json"),
    *harmless(SPLITS, lambda d: d.splits),
    SPLITS.refused("0 bytes, planned again", becomes(lambda d: d.splits, b""), "splits.json", "hold-out", commands=(PLAN,)),
    SPLITS.refused("missing", lambda d: d.splits.unlink(), "splits.json", "Run her2net_plan"),
    SPLITS.refused("patient in two folds", partition(lambda f: f[1].append(f[0][0])), "splits.json", "custom-2", "two folds", "P000"),
    SPLITS.refused("patient twice in a fold", partition(lambda f: f[0].append(f[0][0])), "splits.json", "custom-2", "P000"),
    SPLITS.refused("patient missing", partition(lambda f: f[1].pop()), "splits.json", "custom-2", "in no fold", "P007"),
    SPLITS.refused("unknown patient", partition(lambda f: f[1].append("P999")), "splits.json", "custom-2", "P999"),
    SPLITS.refused("test patient in a fold", partition(lambda f: f[1].append("P008")), "splits.json", "custom-2", "P008"),
    SPLITS.refused("empty fold", partition(lambda f: (f[0].extend(f[1]), f[1].clear())), "splits.json", "custom-2", "fold 1"),
    SPLITS.refused("fold added", partition(lambda f: f.append([f[0].pop()])), "splits.json", "custom-2", "3 folds"),
    SPLITS.refused("patient a number", partition(lambda f: f[0].append(7)), "splits.json", "partitions.custom-2.folds.0"),
    SPLITS.refused("folds a dictionary", edited(lambda d: d.splits, lambda c: c["partitions"]["custom-2"].update(folds={"0": []})),
                   "splits.json", "partitions.custom-2.folds"),
    SPLITS.refused("folds moved", partition(lambda f: f.reverse()), "fold_0", "other inputs"),
    SPLITS.refused("partition removed", edited(lambda d: d.splits, lambda c: c.update(partitions={})), "splits.json", "custom-2"),
    SPLITS.refused("of another cohort", edited(lambda d: d.splits, lambda c: c.update(cohort_digest="0" * 16)), "splits.json",
                   "other cases"),
    SPLITS.refused("hold-out of an unknown patient", sealed(["P999"]), "P999", commands=(TRAIN, PLAN)),
    SPLITS.refused("hold-out of a patient in a fold", sealed(["P000"]), "P000"),
    SPLITS.refused("hold-out of a text", sealed(["P000"], "a fifth"), "splits.json", "holdout.fraction"),

    *refuse_broken(SCAN, lambda d: d.scan, "scan.json"),
    *(
        SCAN.repaired(f"{name}, planned again", damage, "her2net_plan looks at the images again", "scan.json", "looked at again",
                      restores="scan.json", commands=(PLAN,))
        for name, (damage, _) in broken(lambda d: d.scan).items()
        if name in ("0 bytes", "cut to half", "key missing", "newer schema", "100000 brackets")
    ),
    SCAN.repaired("missing, planned again", lambda d: d.scan.unlink(), "her2net_plan looks at the images again", restores="scan.json",
                  commands=(PLAN,)),
    SCAN.refused("case left out", edited(lambda d: d.scan, lambda c: c["cases"].pop()), "C009"),
    SCAN.refused("digest of an image changed", edited(lambda d: d.scan, lambda c: c["cases"][0]["images"]["US"].update(
        source_digest="0" * 16)), AUTO, "made for other images"),

    *refuse_broken(FINGERPRINT, lambda d: d.fingerprint, "fingerprint.json"),
    FINGERPRINT.repaired("0 bytes, planned again", becomes(lambda d: d.fingerprint, b""), "her2net_plan writes it at every call",
                         restores="fingerprint.json", commands=(PLAN,)),
    FINGERPRINT.refused("modality removed", edited(lambda d: d.fingerprint, lambda c: c["modalities"].pop("US")), "fingerprint.json", "US"),

    *refuse_broken(RUN, fold("run.json"), "fold_0/run.json"),
    *harmless(RUN, fold("run.json")),
    RUN.repaired("missing", lambda d: fold("run.json")(d).unlink(), "the checkpoint says all that matters"),
    RUN.refused("made from something else", edited(fold("run.json"), lambda c: c["made_from"].update(training_cases="0" * 16)),
                "fold_0", "training_cases"),
    RUN.refused("unknown status", edited(fold("run.json"), lambda c: c.update(status="almost")), "run.json", "status"),
    RUN.refused("unknown status, asked for the state", edited(fold("run.json"), lambda c: c.update(status="almost")), "run.json", "status",
                commands=(ENSEMBLE,)),
    RUN.accepted("0 bytes, asked for the state", becomes(fold("run.json"), b""), "her2net_status reports it", "run.json: line 1",
                 "stale", commands=(STATUS,)),

    *refuse_broken(ENSEMBLED, lambda d: d.model("US") / "ensemble.json", "US/ensemble.json"),
    ENSEMBLED.repaired("0 bytes, made again", becomes(lambda d: d.model("US") / "ensemble.json", b""), "her2net_ensemble writes it",
                       restores="ensemble.json", commands=(ENSEMBLE,)),
    *refuse_broken(FUSION, lambda d: d.model("fusion") / "fusion.json", "fusion/fusion.json"),
    FUSION.repaired("0 bytes, made again", becomes(lambda d: d.model("fusion") / "fusion.json", b""), "her2net_fuse writes it",
                    restores="fusion.json", commands=(FUSE,)),
    *(
        FUSION.refused(name, edited(lambda d: d.model("fusion") / "fusion.json", change), "fusion.json", *says)
        for name, change, says in (
            ("weights of three modalities", lambda c: c["models"][-1].update(weights=[[1.0, 1.0, 1.0]]), ("weights",)),
            ("weights of no class", lambda c: c["models"][-1].update(weights=[]), ("weights",)),
            ("intercepts of three classes", lambda c: c["models"][-1].update(intercepts=[1.0, 1.0]), ("intercepts",)),
            ("weights of unequal length", lambda c: c["models"][-1].update(weights=[[1.0], [1.0, 2.0]]), ("weights",)),
            ("unknown modality", lambda c: c["models"][-1].update(modalities=["US", "CT"]), ("CT",)),
            ("no model", lambda c: c.update(models=[]), ("no model",)),
        )
    ),
    *refuse_broken(METRICS, lambda d: d.evaluation / "metrics.json", "evaluation/metrics.json"),
    METRICS.refused("of other tables", edited(lambda d: d.evaluation / "metrics.json", lambda c: c["made_from"].clear()), "stale"),
    METRICS.accepted("0 bytes, asked for the state", becomes(lambda d: d.evaluation / "metrics.json", b""), "her2net_status reports it",
                     "metrics.json: line 1", "stale", commands=(STATUS,)),
]  # fmt: skip
