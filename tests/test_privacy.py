"""What may be passed on names nobody: canaries are planted wherever a hospital leaves names, and looked for in every output."""

from __future__ import annotations

import base64
import getpass
import gzip
import io
import json
import platform
import re
import shutil
import socket
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_paths
from matplotlib.figure import Figure
from PIL import Image, PngImagePlugin
from raw_factory import read_rows, write_dataset, write_table
from small_run import plan_options

from her2net import pipeline
from her2net.cli import explain, export, predict, report, train
from her2net.networks.build import NETWORKS, build_network
from her2net.paths import DatasetPaths
from her2net.project import load_project
from her2net.pseudonyms import load_key, pseudonym
from her2net.train.fold import TrainOptions
from her2net.train.footprint import estimate_footprint

FOLDER = "Dataset001_Canaries"
NAMES = ("QuuxName", "QuuxTag", "QuuxPath", "QuuxUser", "QuuxHost", "1961-02-03", "19610203", "03.02.1961")
"""What nobody asked her2net to keep: names, dates and tags of headers, the path, the user, the machine."""
IDS = ("QuuxCase", "QuuxPatient")
"""What the user typed as ids: prediction tables hold them, what is passed on does not."""
HEADERS = {"descrip": (148, 80), "aux_file": (228, 24), "db_name": (14, 18), "intent_name": (328, 16)}
"""Text fields of a NIfTI header: offset and length."""


def plant_nifti(path: Path) -> None:
    """Write names into every text field of the header, and into that of gzip."""
    content = bytearray(gzip.decompress(path.read_bytes()))
    for name, (offset, length) in HEADERS.items():
        content[offset : offset + length] = f"QuuxTag {name} 19610203"[: length - 1].encode().ljust(length, b"\0")
    with path.open("wb") as file, gzip.GzipFile("QuuxName^Jane.nii", "wb", fileobj=file, mtime=1) as packed:
        packed.write(content)


def plant_png(path: Path) -> None:
    """Write names into text chunks of both kinds."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("PatientName", "QuuxName^Jane")
    texts.add_text("StudyDate", "QuuxTag 1961-02-03", zip=True)
    Image.open(path).save(path, pnginfo=texts)


def plant_tiff(path: Path, pixels: np.ndarray) -> None:
    """Write names into ImageDescription, DateTime, Artist and HostComputer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = {270: "QuuxName^Jane 03.02.1961", 306: "1961-02-03 10:00:00", 315: "QuuxUser", 316: "QuuxHost"}
    Image.fromarray(pixels).save(path, tiffinfo=tags)


def make_cohort(paths: DatasetPaths) -> Path:
    """Write a cohort of PNG, TIFF and NIfTI files full of names; return an own list of folds."""
    raw = write_dataset(paths.raw, n_patients=12, n_test=4, modalities={
        "US": {"channels": {"0": "B-mode"}, "file_ending": ".png"},
        "MG": {"channels": {"0": "view"}, "file_ending": ".tif"},
        "MRI": {"channels": {"0": "pre", "1": "post"}, "file_ending": ".nii.gz"},
    })  # fmt: skip
    for path in sorted(p for p in raw.rglob("C*") if p.is_file()):
        plant_png(path) if path.suffix == ".png" else plant_nifti(path)
        path.rename(path.with_name(path.name.replace("C0", "QuuxCase0")))
    for path in sorted(raw.glob("*/US/*.png")):
        target = Path(str(path).replace("/US/", "/MG/"))
        pixels = np.asarray(Image.open(path).convert("L"))
        if "images" in str(path):
            plant_tiff(target.with_suffix(".tif"), 255 - pixels.T[::-1].T)
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(path, target)
    header, *rows = read_rows(raw)
    named = [["QuuxCase" + r[0][1:], r[1], "QuuxPatient" + r[2][1:], *r[3:], "QuuxName, Jane", "1961-02-03"] for r in rows]
    write_table(raw / "cases.csv", [[*header, "patient_name", "date_of_birth"], *named])
    folds = paths.roots.raw.parent / "folds.json"
    patients = [row[2] for row in named[:12]]
    folds.write_text(json.dumps([[p for i, p in enumerate(patients) if i // 2 % 2 == k] for k in (0, 1)]))
    return folds


@pytest.fixture(scope="module")
def shown() -> list[str]:
    """What the commands printed."""
    return []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, shown: list[str]) -> Iterator[DatasetPaths]:
    """The cohort through every command, by a user and on a machine with telling names."""
    root = tmp_path_factory.mktemp("made") / "QuuxPath"
    paths = make_paths(root, FOLDER)
    folds = make_cohort(paths)
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("USER", "LOGNAME", "USERNAME"):
            patch.setenv(variable, "QuuxUser")
        patch.setenv("HOSTNAME", "QuuxHost")
        patch.setattr(getpass, "getuser", lambda: "QuuxUser")
        for module, name in ((socket, "gethostname"), (platform, "node")):
            patch.setattr(module, name, lambda: "QuuxHost")
        for name in ("raw", "preprocessed", "results"):
            patch.setenv(f"her2net_{name}", str(getattr(paths.roots, name)))
        patch.setattr("her2net.plan.rules.SCATTERING_UP_TO", 0)  # networks that can start from weights
        make_light(patch)
        pipeline.plan(paths, plan_options(root, splits=str(folds)))
        weights = root / "weights.pt"
        network = load_project(paths).plan.modalities["US"].training.network
        torch.save(build_network(network, n_channels=1, n_classes=2).state_dict(), weights)
        streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
        with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
            run_commands(paths, root, weights)
        shown += [stream.buffer.getvalue().decode() for stream in streams]  # type: ignore[attr-defined]
        yield paths
        estimate_footprint.cache_clear()  # of the thin networks


def make_light(patch: pytest.MonkeyPatch) -> None:
    """Give 3D networks few channels, and draw every picture at once and small."""
    for name in [n for n, spec in NETWORKS.items() if spec.library == "monai"]:
        options = {**NETWORKS[name].options, "widen_factor": 0.125}
        patch.setitem(NETWORKS, name, replace(NETWORKS[name], options=options))
    savefig = Figure.savefig

    def save(figure: Figure, *args: object, **options: object) -> None:
        figure.set_layout_engine("none")
        savefig(figure, *args, **{**options, "dpi": 40})

    patch.setattr(Figure, "savefig", save)
    estimate_footprint.cache_clear()


def run_commands(paths: DatasetPaths, root: Path, weights: Path) -> None:
    """Train, evaluate, report, explain, export, predict."""
    assert train.main(["US", "all-folds", "--epochs", "1", "--pretrained", str(weights), "--device", "cpu"]) == 0
    pipeline.run(paths, plan_options(root), TrainOptions(epochs=1, quiet=True))
    shutil.copytree(paths.report.parent, root / "out" / "plain_report")
    assert report.main(["--pseudonymise"]) == 0
    cases = ["--cases", "QuuxCase000", "QuuxCase001"]
    assert explain.main(["US", "MG", "MRI", *cases, "--device", "cpu", "--quiet"]) == 0
    assert explain.main(["US", *cases, "--features", "--device", "cpu", "--quiet"]) == 0
    model = root / "out" / "model.her2net"
    assert export.main(["-o", str(model), "--licence", "CC-BY-4.0"]) == 0
    new = root / "new"
    shutil.copytree(paths.raw / "imagesTs", new)
    (new / "US" / "QuuxName Jane.jpg").write_bytes(b"")
    common = ["--model", str(model), "-i", str(new), "--quiet", "--device", "cpu", "-o"]
    assert predict.main([*common, str(root / "out" / "predicted")]) == 0
    assert predict.main([*common, str(root / "out" / "pseudonymised"), "--pseudonymise"]) == 0


def unfold(content: bytes) -> Iterator[bytes]:
    """Yield a file's bytes and whatever is packed in them: zip, gzip, streams of PDF, text of PNG, pictures in a page."""
    yield content
    if content[:4] == b"PK\x03\x04":
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in archive.infolist():
                yield info.filename.encode()
                yield from unfold(archive.read(info))
    elif content[:2] == b"\x1f\x8b":
        yield gzip.decompress(content)
    elif content[:4] == b"%PDF":
        for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
            try:
                yield zlib.decompress(stream)
            except zlib.error:  # not every stream is compressed; it was yielded as it is
                continue
    elif content[:4] == b"\x89PNG":
        yield repr(Image.open(io.BytesIO(content)).info).encode()
    for packed in re.findall(rb"base64,([\w+/=]{40,})", content):
        yield from unfold(base64.b64decode(packed))


def leaks(folder: Path, words: tuple[str, ...]) -> list[str]:
    """List which words stand in which files of a folder, in 8- or 16-bit letters; names of files count."""
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]:
        name = path.relative_to(folder.parent).as_posix()
        for content in (name.split("/", 1)[-1].encode(), *unfold(path.read_bytes())):
            found += [f"{name}: {word}" for word in words
                      if word.encode() in content or word.encode("utf-16-le") in content]  # fmt: skip
    return found


def test_the_search_finds_what_was_planted(run: DatasetPaths) -> None:
    """Else it would prove nothing."""
    planted = "\n".join(leaks(run.raw, NAMES + IDS))
    for ending, word in ((".png", "QuuxName"), (".png", "QuuxTag"), (".tif", "QuuxHost"), (".gz", "QuuxTag"), (".csv", "QuuxName")):
        assert re.search(rf"{re.escape(ending)}: {word}", planted), (ending, word)
    assert leaks(run.model("US"), IDS)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.pdf", b"%PDF stream\n" + zlib.compress(b"QuuxName") + b"endstream")
    assert any(b"QuuxName" in part for part in unfold(b"x base64," + base64.b64encode(packed.getvalue()) + b"."))


@pytest.mark.parametrize("what", ["preprocessed", "results", "out"])
def test_no_file_repeats_a_header_a_path_a_user_or_a_host(run: DatasetPaths, what: str) -> None:
    folder = run.roots.raw.parent / (what if what == "out" else f"her2net_{what}")
    found = [line for line in leaks(folder, NAMES) if "predicted/warnings.csv: QuuxName" not in line]
    assert found == []
    assert sum(1 for path in folder.rglob("*") if path.is_file()) > 5


def test_an_ignored_file_is_named_to_who_did_not_ask_for_pseudonyms(run: DatasetPaths) -> None:
    out = run.roots.raw.parent / "out"
    assert "QuuxName Jane.jpg" in (out / "predicted" / "warnings.csv").read_text()
    assert "file-ignored" in (out / "pseudonymised" / "warnings.csv").read_text()


def test_what_is_printed_repeats_no_header(run: DatasetPaths, shown: list[str]) -> None:
    """Paths and the user's own files may be named on the screen."""
    assert len(shown) == 2
    assert "OOF" in shown[0] or "oof" in shown[0]
    for word in ("QuuxTag", "QuuxHost", "QuuxUser", "1961", "^Jane"):
        assert not [text for text in shown if word in text], word


def test_what_is_passed_on_holds_no_ids(run: DatasetPaths) -> None:
    results, out = run.results, run.roots.raw.parent / "out"
    for folder in (results / "report", results / "evaluation", out / "model.her2net", out / "pseudonymised"):
        assert folder.exists()
        assert leaks(folder, IDS) == []
    for path in (run.plan, results / "fusion" / "fusion.json", results / "US" / "ensemble.json"):
        assert leaks(path, IDS) == []
    for name in ("run.json", "history.csv", "progress.png", "checkpoint_final.pt", "checkpoint_latest.pt"):
        assert leaks(run.fold("US", 0) / name, IDS) == []


def test_a_report_with_pseudonyms_says_the_same_of_the_same_cases(run: DatasetPaths) -> None:
    out, key = run.roots.raw.parent / "out", load_key(run.pseudonym_key)
    tables = {name: (folder / "tables" / "mistakes.csv").read_text().splitlines()
              for name, folder in (("plain", out / "plain_report"), ("hidden", run.report.parent))}  # fmt: skip
    plain = [line.split(",", 1) for line in tables["plain"][1:] if line.startswith("QuuxCase")]
    hidden = [line.split(",", 1) for line in tables["hidden"][1:] if line.startswith("C-")]
    assert plain
    assert hidden == [[pseudonym(case_id, key), rest] for case_id, rest in plain]
    page = run.report.read_text()
    assert "keyed\nhashes for the names of cases" in page
    assert pseudonym(plain[0][0], key) in page
    assert "QuuxCase" in (out / "plain_report" / "report.html").read_text()


def test_pictures_and_maps_carry_no_comment(run: DatasetPaths) -> None:
    pictures = [*run.results.rglob("*.png")]
    assert len(pictures) > 10
    for path in pictures:
        assert set(Image.open(path).info) <= {"Software", "dpi"}, path.name
    maps = [*run.explain("MRI").rglob("*.nii.gz"), *run.explain("MG").rglob("*.nii.gz")]
    assert len(maps) == 4
    for path in maps:
        header = gzip.decompress(path.read_bytes())[:348]
        texts = {name: header[a : a + n].strip(b"\0 ") for name, (a, n) in HEADERS.items()}
        assert texts == dict.fromkeys(HEADERS, b""), path.name
        assert path.read_bytes()[3] & 0b11100 == 0, "gzip keeps no file name and no comment"
    for path in run.report.parent.rglob("*.pdf"):
        assert not re.search(rb"/(CreationDate|ModDate|Author|Title)", path.read_bytes()), path.name


def test_the_report_on_disk_keeps_its_pseudonyms_when_it_is_made_anew(run: DatasetPaths) -> None:
    from her2net import status

    project = load_project(run)
    assert status.report_choices(project) == {"paper": False, "pseudonymise": True}
    state = status.report_state(project)  # stale where explanations were made after it
    assert state.command == f"her2net_report -d {FOLDER} --pseudonymise"
