"""Fuzz the parsers with coverage guidance: what libFuzzer makes of good files must be read, or refused by name.

    pip install atheris                                   (Linux)
    python benchmarks/fuzz.py --minutes 60
    python benchmarks/fuzz.py --minutes 2 --targets nifti folds
    python benchmarks/fuzz.py --replay FILE --targets nifti

Each target starts from a few good files. Half of the changes to JSON and to tables keep the syntax and put strange values
into it. A finding is any exception that is no `Her2netError`, an error whose message does not name the file, a hang of
20 s, more than 2 GiB of memory, or the end of the interpreter. One input is kept for each place in the code at fault, and
fuzzing goes on.
"""

from __future__ import annotations

import argparse
import csv
import importlib
import io
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

try:
    import atheris
except ImportError:
    sys.exit("Fuzzing needs atheris: pip install atheris")

TIMEOUT_S, MEMORY_MB, MAX_BYTES = 20, 2048, 1 << 16
RESTARTS = 5
FORMULA = '=HYPERLINK("http://example.org")'
STRANGE: list[Any] = [
    None, True, False, 0, -1, 1, 2**31, -(2**63), 10**400, 0.5, -0.0, 1e308, 5e-324, float("nan"), float("inf"), "", " ", "0",
    "1", "1.0", "nan", "1e999", "\x00", "\u202e", "\ud800", "é", "e\u0301", "..", "../../x", "C:\\x", "con", FORMULA, "a" * 300, [],
    [[]], {}, {"": 0}, [None], [True], ["a", "a"], {"a": {"a": {}}},
]  # fmt: skip
"""What takes the place of a value."""

Reader = Callable[[Path], object]


def make_reader(name: str, seeds: Path) -> Reader:
    """Return what reads the files of a target, importing no more than it needs."""
    from her2net.raw.dataset import read_dataset
    from her2net.raw.spec import load_spec

    raw = seeds / "raw" / "Dataset001_Fuzzed"
    if name in PICTURES or name in VOLUMES:
        from her2net.raw.images import _read_file

        return _read_file
    if name in ARTEFACTS:
        module, kind = ARTEFACTS[name]
        artefact = getattr(importlib.import_module(f"her2net.{module}"), kind)
        return lambda path: getattr(artefact.load(path), "edited", None)
    if name in FUNCTIONS:
        module, function = FUNCTIONS[name]
        return getattr(importlib.import_module(f"her2net.{module}"), function)
    if name == "spec":
        return lambda path: load_spec(path.replace(path.with_name("dataset.json")).parent)
    if name == "cases":
        from her2net.raw.rows import load_rows

        spec, _ = load_spec(raw)
        assert spec is not None
        return lambda path: load_rows(path.parent, spec, name=path.name)
    if name in ("folds", "splits"):
        from her2net.plan.parting import read_own_folds
        from her2net.splits import load_splits

        dataset = read_dataset(raw)
        return lambda path: read_own_folds(path, dataset.train) if name == "folds" else load_splits(path, dataset)
    if name == "tensors":
        from her2net.archive.tensors import layout_of, load_tensors

        layout = layout_of(make_tensors())
        return lambda path: load_tensors(path.read_bytes(), layout, where=path)
    return read_archive


def read_archive(path: Path) -> None:
    """Open an archive, and read its manifest and the members that it names."""
    from her2net.archive.container import open_container, read_member
    from her2net.archive.manifest import MANIFEST, MAX_MEMBER_BYTES, Manifest

    with open_container(path) as archive:
        text = read_member(archive, MANIFEST, where=path, member=None, limit=MAX_BYTES)
        manifest = Manifest.parse(text.decode("utf-8", "replace"), where=path)
        for name in set(archive.namelist()) & set(manifest.members):
            read_member(archive, name, where=path, member=manifest.members[name], limit=MAX_MEMBER_BYTES)


def make_tensors() -> dict[str, Any]:
    """Return the tensors that a safetensors file has to hold."""
    import torch

    return {"a": torch.ones(2, 3), "b": torch.zeros(4)}


VOLUMES = {"nifti": ".nii", "nifti-gz": ".nii.gz", "nrrd": ".nrrd", "mha": ".mha"}
PICTURES = {"png": ".png", "tif": ".tif", "jpg": ".jpg", "bmp": ".bmp"}
ARTEFACTS = {"plan": ("plan.schema", "Plan"), "fingerprint": ("fingerprint", "Fingerprint"), "scan": ("raw.scan", "Scan"),
             "thresholds": ("evaluate.thresholds", "Thresholds")}  # fmt: skip
FUNCTIONS = {"labels": ("evaluate.labels", "read_labels"), "predictions": ("predictions", "read_predictions"),
             "sidecar": ("raw.images", "read_spacing"), "machine": ("plan.machine", "read_machine"),
             "checkpoint": ("train.checkpoint", "read_checkpoint")}  # fmt: skip
TARGETS: dict[str, tuple[str, tuple[str, ...]]] = {
    "folds": (".json", ("folds/*.json",)),
    "predictions": (".csv", ("predictions/*.csv",)),
    "cases": (".csv", ("raw/*/cases.csv",)),
    "labels": (".csv", ("raw/*/cases.csv", "labels.csv")),
    "spec": (".json", ("raw/*/dataset.json",)),
    "splits": (".json", ("prepared/splits.json",)),
    "plan": (".json", ("prepared/plans/*.json",)),
    "machine": (".json", ("machine.json", "prepared/plans/*.json")),
    "archive": (".her2net", ("a.her2net",)),
    "tensors": (".safetensors", ("a.safetensors",)),
    "checkpoint": (".pt", ("checkpoint.pt",)),
    "sidecar": (".json", ("sidecar.json",)),
    "thresholds": (".json", ("thresholds.json",)),
    "fingerprint": (".json", ("prepared/fingerprint.json",)),
    "scan": (".json", ("prepared/scan.json",)),
    **{name: (ending, (f"pictures/*{ending}",)) for name, ending in PICTURES.items()},
    **{name: (ending, (f"volumes/*{ending}",)) for name, ending in VOLUMES.items()},
}
"""Target -> ending of its files, and good ones among the seeds."""


def make_seeds(folder: Path) -> None:
    """Make a planned cohort, and small good files of every format."""
    import numpy as np
    import SimpleITK as sitk  # noqa: N813
    import torch
    from PIL import Image

    from her2net.archive.container import write_container
    from her2net.archive.manifest import Manifest
    from her2net.archive.tensors import dump_tensors
    from her2net.paths import DatasetPaths, Roots
    from her2net.plan.machine import Machine
    from her2net.plan.stage import PlanOptions, plan_dataset
    from her2net.predictions import make_predictions, write_predictions
    from her2net.raw.dataset import read_dataset
    from her2net.raw.synthetic import make_synthetic_dataset
    from her2net.train.checkpoint import save_checkpoint

    paths = DatasetPaths(Roots(folder / "raw", folder / "p", folder / "r"), "Dataset001_Fuzzed")
    make_synthetic_dataset(paths.raw, n_train=16, n_test=4, us_size=(64, 72), mri_size=(8, 32, 32))
    Machine(device="cpu", name="recorded", n_threads=1, memory_gb=8, bf16=False, samples_per_s={"resnet10t|64x64|1|8": 2.0}).save(
        folder / "machine.json"
    )
    plan_dataset(paths, PlanOptions(preset="paper", preprocess=False, n_workers=1, quiet=True))
    paths.preprocessed.rename(folder / "prepared")
    patients = sorted({case.patient_id for case in read_dataset(paths.raw).train})
    halves = [patients[::2], patients[1::2]]
    sides = [{"train": halves[0], "val": halves[1]}, {"train": halves[1], "val": halves[0]}]
    for name, folds in {"a": halves, "b": {"folds": sides}}.items():
        (folder / "folds").mkdir(exist_ok=True)
        (folder / f"folds/{name}.json").write_text(json.dumps(folds))
    probs = np.array([[0.25, 0.75], [0.5, 0.5], [1, 0]])
    table = make_predictions(["a", "b", "c"], ["a", "a", "c"], probs, labels=[0, 1, None], folds=["0", "1", "0"])
    write_predictions(folder / "predictions/a.csv", table)
    (folder / "predictions/b.csv").write_bytes(b"case_id;prob_0;prob_1\na;0,25;0,75\n")
    (folder / "labels.csv").write_bytes(b"case_id;label\r\na;1\r\nb;negative\r\n")
    (folder / "sidecar.json").write_text('{"spacing_mm": [0.1, 0.2], "depth": 1}')
    (folder / "thresholds.json").write_text('{"models": {"US": {"value": 0.5, "rule": "given", "chosen_on": "oof", "n": 3}}}')
    (folder / "a.safetensors").write_bytes(dump_tensors(make_tensors()))
    for kind in ("volumes", "pictures"):
        (folder / kind).mkdir()
    for name, array in {"int": np.arange(60, dtype=np.int16), "float": np.linspace(-1, 1, 60, dtype=np.float32)}.items():
        image = sitk.GetImageFromArray(array.reshape(3, 4, 5))
        image.SetSpacing((0.5, 0.5, 2.0))
        for ending in (".nii", ".nii.gz", ".nrrd", ".mha"):
            for compressed in (False, True):
                sitk.WriteImage(image, str(folder / f"volumes/{name}{compressed}{ending}"), compressed)
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8)
    for name, picture in {"grey": grey, "colour": np.stack([grey] * 3, -1), "deep": grey.astype(np.uint16) * 256}.items():
        for ending in (".png", ".tif", ".jpg", ".bmp")[: 2 if name == "deep" else 4]:
            Image.fromarray(picture).save(folder / f"pictures/{name}{ending}")
    write_container(folder / "a.her2net", [("plan.json", b"{}"), ("model_card.md", b"# a\n")],
                    lambda members: Manifest(licence=None, preprocessing_version=1, tta={}, members=members))  # fmt: skip
    save_checkpoint(folder / "checkpoint.pt", {"made_from": {"a": "1"}, "model": {"w": torch.ones(2)}})


# Changes that keep the syntax


def mutate(data: bytes, max_size: int, seed: int) -> bytes:
    """Change JSON or a table within its syntax, half of the time; otherwise as libFuzzer does."""
    rng = random.Random(seed)
    if rng.random() < 0.5:
        try:
            changed = _mutate_json(data, rng) if data.lstrip()[:1] in (b"{", b"[") else _mutate_table(data, rng)
            return changed[:max_size]
        except (ValueError, TypeError, LookupError, csv.Error, RecursionError):
            pass
    return atheris.Mutate(data, max_size)


def _mutate_json(data: bytes, rng: random.Random) -> bytes:
    value = json.loads(data)
    places: list[tuple[Any, Any]] = []
    waiting = [value]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node))
        places += [(node, key) for key in keys]
        waiting += [node[key] for key in keys if isinstance(node[key], dict | list)]
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        node, key = rng.choice(places)
        other, at = rng.choice(places)
        new = rng.choice([*STRANGE, json.loads(json.dumps(other[at]))])
        action = rng.random()
        if isinstance(node, dict) and action < 0.2:
            node[str(new)[:40]] = node.pop(key, None)
        elif isinstance(node, list) and action < 0.2:
            node.insert(rng.randrange(len(node) + 1), new)
        else:
            node[key] = new
    return json.dumps(value).encode()


def _mutate_table(data: bytes, rng: random.Random) -> bytes:
    text = data.decode()
    separator = max(",;\t", key=text.count)
    rows = list(csv.reader(io.StringIO(text), delimiter=separator))
    if separator not in text:
        raise ValueError
    for _ in range(rng.choice((1, 1, 2, 5))):
        row = rng.choice(rows)
        place = rng.randrange(len(row))
        new = rng.choice([str(rng.choice(STRANGE)), rng.choice(rng.choice(rows))])
        action = rng.random()
        if action < 0.1:
            row.insert(place, new)
        elif action < 0.2:
            rows.insert(rng.randrange(len(rows)), list(row))
        else:
            row[place] = new
    buffer = io.StringIO()
    csv.writer(buffer, delimiter=rng.choice((separator, separator, ";"))).writerows(rows)
    return buffer.getvalue().encode("utf-8", "surrogatepass")


# One target, in a process of its own


def fuzz(name: str, seeds: Path, out: Path, seconds: int) -> None:
    """Fuzz one target until the time is over; ends the process."""
    with atheris.instrument_imports(include=["her2net", "zipfile", "csv", "gzip"]):
        ending, read = TARGETS[name][0], make_reader(name, seeds)
    from her2net.errors import Her2netError

    path = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)) / f"input{ending}"
    found: set[str] = set()

    def run(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except Her2netError as error:
            if path.name in str(error) or "dataset.json" in str(error):
                return
            keep(data, "a message without the file", f"{type(error).__name__}: {error}")
        except Exception as error:
            keep(data, _place(error), "".join(traceback.format_exception(error)))

    def keep(data: bytes, place: str, text: str) -> None:
        if place not in found:
            found.add(place)
            stem = out / re.sub(r"\W+", "-", f"{name}-{place}")[:150]
            stem.with_suffix(ending).write_bytes(data)
            stem.with_suffix(".txt").write_text(text, "utf-8", "backslashreplace")
            print(f"FINDING {stem.name}", flush=True)

    with suppress(Her2netError):  # imports that wait for the first call are not to be counted as a hang
        path.write_bytes(next(iter((seeds / "corpus" / name).iterdir())).read_bytes())
        read(path)
    options = [f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}", f"-rss_limit_mb={MEMORY_MB}", f"-max_len={MAX_BYTES}",
               f"-artifact_prefix={out / name}-", "-print_final_stats=1", f"-dict={seeds / 'words' / name}"]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(seeds / "corpus" / name)], run, custom_mutator=mutate)
    atheris.Fuzz()


def _place(error: BaseException) -> str:
    """Name the kind of an error and the last line of her2net that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "her2net/" in frame.filename]
    last = frames[-1] if frames else None
    return f"{type(error).__name__} {Path(last.filename).name if last else ''} {last.lineno if last else ''}"


# All targets, one after the other


def prepare(seeds: Path, names: list[str]) -> None:
    """Lay out the first inputs and the words of each target as libFuzzer wants them."""
    for name in names:
        folder = seeds / "corpus" / name
        folder.mkdir(parents=True, exist_ok=True)
        inputs = [path.read_bytes() for pattern in TARGETS[name][1] for path in sorted(seeds.glob(pattern))]
        assert inputs, name
        for number, content in enumerate(inputs):
            (folder / f"seed{number}").write_bytes(content)
        words = sorted({word for content in inputs for word in re.findall(rb"[A-Za-z_][A-Za-z_ ]{2,30}", content[:MAX_BYTES])})[:300]
        words += [b"NaN", b"Infinity", b"1e999", b"-1", b"null", b"true", b"\xef\xbb\xbf", b"\xff\xfe", b"99999999999999999999"]
        (seeds / "words").mkdir(exist_ok=True)
        escape = lambda word: "".join(f"\\x{byte:02x}" for byte in word)
        (seeds / "words" / name).write_text("".join(f'"{escape(word)}"\n' for word in words))


def run_target(name: str, seeds: Path, out: Path, seconds: float) -> tuple[int, int, int, int]:
    """Fuzz one target, again after the interpreter has died.

    Returns:
        Executions, coverage at the end (edges), places in the code found at fault, and deaths of the interpreter.
    """
    executions = coverage = deaths = 0
    places: set[str] = set()
    end = time.monotonic() + seconds
    while deaths <= RESTARTS and (left := int(end - time.monotonic())) > 0:
        command = [sys.executable, __file__, "--child", "--targets", name, "--seeds", str(seeds), "--out", str(out)]
        command += ["--seconds", str(left)]
        log = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        text = log.stdout + log.stderr
        (out / f"{name}.log").write_text(text[-200_000:])
        counts = [int(n) for n in re.findall(r"^#(\d+)\s", text, re.MULTILINE)]
        executions += max([*counts, *(int(n) for n in re.findall(r"number_of_executed_units: (\d+)", text))], default=0)
        coverage = max([coverage, *(int(n) for n in re.findall(r"cov: (\d+)", text))])
        places |= set(re.findall(r"FINDING (.*)", text))
        if log.returncode == 0:
            break
        deaths += 1
        print(f"{name}: the process ended with {log.returncode}; the input is kept in {out}", flush=True)
    return executions, coverage, len(places), deaths


def main() -> int:
    """Fuzz, or replay one input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60, help="in total, in equal parts")
    parser.add_argument("--targets", nargs="+", help="default: all")
    parser.add_argument("--out", type=Path, default=Path("fuzz_findings"), help="folder for what is found")
    parser.add_argument("--seeds", type=Path, help="folder with good files and the corpus, made if absent; default: a temporary one")
    parser.add_argument("--replay", type=Path, help="read this input once and show the error")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=int, default=60, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        fuzz(args.targets[0], args.seeds, args.out, args.seconds)
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        seeds = args.seeds or Path(temporary) / "seeds"
        if not (seeds / "checkpoint.pt").exists():
            make_seeds(seeds)
        names = args.targets or list(TARGETS)
        if args.replay:
            path = Path(temporary) / f"input{TARGETS[names[0]][0]}"
            path.write_bytes(args.replay.read_bytes())
            print(make_reader(names[0], seeds)(path))
            return 0
        prepare(seeds, names)
        print("| target | executions | edges covered | places at fault | deaths |\n|---|---|---|---|---|", flush=True)
        for name in names:
            counts = run_target(name, seeds.resolve(), args.out.resolve(), 60 * args.minutes / len(names))
            print(f"| {name} | " + " | ".join(f"{count:,}" for count in counts) + " |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
