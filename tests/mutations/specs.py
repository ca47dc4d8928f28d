"""Damaged dataset.json."""

from __future__ import annotations

import codecs
import json
import os
from collections.abc import Callable
from typing import Any

from mutations.case import PLAN, VERIFY, Kind, Mutation
from mutations.tools import become, cut, cut_share, link, raw, set_spec

SPEC = Kind("dataset.json", (VERIFY, PLAN))
FILE = "dataset.json"


def bad(name: str, change: Callable[[dict[str, Any]], object], *says: str) -> Mutation:
    return SPEC.refused(name, lambda d: set_spec(d, change), *says)


def content(name: str, text: bytes, *says: str) -> Mutation:
    return SPEC.refused(name, become(FILE, text), FILE, *says)


def modality(name: str, **values: object) -> Callable[[dict[str, Any]], object]:
    """Declare one more modality."""
    return lambda s: s["modalities"].update({name: {"channels": {"0": "x"}, "file_ending": ".png"} | values})


def text(change: Callable[[str], str]):  # type: ignore[no-untyped-def]
    return raw(FILE, lambda b: change(b.decode()).encode())


MODALITIES, LABELS = "dataset.json modalities", "dataset.json labels"
MUTATIONS: list[Mutation] = [
    SPEC.refused("missing", lambda d: (d.raw / FILE).unlink(), FILE, "no such file"),
    content("0 bytes", b"", "not JSON"),
    SPEC.refused("cut to 1 byte", raw(FILE, cut(1)), FILE, "not JSON"),
    SPEC.refused("cut to half", raw(FILE, cut_share(0.5)), FILE, "not JSON"),
    SPEC.refused("last bracket missing", raw(FILE, cut(-1)), FILE, "not JSON"),
    content("NUL bytes", bytes(100), "not JSON"),
    content("no text", b"\x80\xff\xfe", "not UTF-8"),
    SPEC.refused("UTF-16", raw(FILE, lambda b: b.decode().encode("utf-16")), FILE, "not UTF-8"),
    content("YAML instead", b"name: Tiny\nlabels:\n  negative: 0\n", "not JSON"),
    content("comment", b'// labels of the pathology\n{"name": "x"}', "not JSON"),
    SPEC.refused("comment inside", text(lambda t: t.replace('"labels"', '/* see paper */ "labels"')), FILE, "not JSON"),
    SPEC.refused("comma too many", text(lambda t: t[:-1] + ",}"), FILE, "not JSON"),
    SPEC.refused("single quotes", text(lambda t: t.replace('"', "'")), FILE, "not JSON"),
    SPEC.refused("typographic quotes", text(lambda t: t.replace('"', "\u201d")), FILE, "not JSON"),
    SPEC.refused("text after the end", text(lambda t: t + "{}"), FILE, "not JSON"),
    SPEC.refused("key twice", text(lambda t: t[:-1] + ', "name": "y"}'), FILE, "'name' occurs twice"),
    SPEC.refused("key twice, deep", text(lambda t: t.replace('"negative": 0', '"negative": 0, "negative": 0')), FILE,
                 "'negative' occurs twice"),
    SPEC.refused("NaN", text(lambda t: t.replace('"negative": 0', '"negative": NaN')), FILE, "NaN is not allowed"),
    SPEC.refused("infinity", text(lambda t: t.replace('"negative": 0', '"negative": -Infinity')), FILE, "Infinity is not allowed"),
    content("100000 brackets", b"[" * 100_000, "nested too deeply"),
    content("100000 objects", b'{"a":' * 100_000, "nested too deeply"),
    SPEC.refused("nested 900 deep inside a key", text(lambda t: t[:-1] + ', "description": ' + "[" * 900 + "]" * 900 + "}"), FILE),
    content("number of 5000 digits", b'{"name": ' + b"9" * 5000 + b"}", "cannot be read"),
    SPEC.refused("label of 400 digits", text(lambda t: t.replace('"positive": 1', '"positive": ' + "1" * 400)), LABELS),
    content("list", b"[]", "dictionary"),
    content("text", b'"dataset"', "dictionary"),
    content("null", b"null", "dictionary"),
    SPEC.refused("half a surrogate in the name", text(lambda t: t.replace('"Tiny"', '"\\ud800"')), FILE, "\\ud800 is half a character"),
    SPEC.refused("half a surrogate in a modality", text(lambda t: t.replace('"US"', '"U\\ud800"')), FILE, "\\ud800 is half a character"),
    bad("name missing", lambda s: s.pop("name"), "dataset.json name", "is missing"),
    bad("name is a number", lambda s: s.update(name=7), "dataset.json name"),
    bad("unknown key", lambda s: s.update(lables={}), "dataset.json lables", "unknown key"),
    bad("key of another toolkit", lambda s: s.update(channel_names={"0": "US"}), "dataset.json channel_names", "unknown key"),
    bad("labels missing", lambda s: s.pop("labels"), LABELS, "is missing"),
    bad("labels a list", lambda s: s.update(labels=["negative", "positive"]), LABELS),
    bad("one label", lambda s: s.update(labels={"a": 0}), LABELS, "at least two"),
    bad("labels from 1", lambda s: s.update(labels={"a": 1, "b": 2}), LABELS, "numbered from 0"),
    bad("labels with a gap", lambda s: s.update(labels={"a": 0, "b": 2}), LABELS, "numbered from 0"),
    bad("two labels of one number", lambda s: s.update(labels={"a": 0, "b": 0, "c": 1}), LABELS, "numbered from 0"),
    bad("label numbers as text", lambda s: s.update(labels={"a": "0", "b": "1"}), LABELS, "valid integer"),
    bad("label number true", lambda s: s.update(labels={"a": 0, "b": True}), LABELS, "valid integer"),
    bad("label number 1.0", lambda s: s.update(labels={"a": 0, "b": 1.0}), LABELS, "valid integer"),
    bad("labels alike but for case", lambda s: s.update(labels={"a": 0, "A": 1}), LABELS, "upper and lower case"),
    bad("label name empty", lambda s: s.update(labels={"": 0, "b": 1}), LABELS, "empty"),
    bad("label name with a line break", lambda s: s.update(labels={"a\nb": 0, "c": 1}), LABELS, "not printable"),
    bad("label names are numbers exchanged", lambda s: s.update(labels={"1": 0, "0": 1}), LABELS, "other than its own"),
    bad("class that no case has", lambda s: s["labels"].update(rare=2), "class rare", "0 training patient(s)"),
    bad("modalities missing", lambda s: s.pop("modalities"), MODALITIES, "is missing"),
    bad("no modality", lambda s: s.update(modalities={}), MODALITIES, "at least one modality"),
    bad("modality null", lambda s: s["modalities"].update(US=None), MODALITIES + ".US"),
    bad("modality named like a folder of results", modality("fusion"), MODALITIES, "taken"),
    bad("modality with a space", modality("U S"), MODALITIES, "space"),
    bad("modality that leads elsewhere", modality("../x"), MODALITIES, "'/'"),
    bad("modality of dots", modality(".."), MODALITIES, "begins with a dot"),
    bad("modality that Windows reserves", modality("nul"), MODALITIES, "reserved"),
    bad("modality alike but for case", modality("us"), MODALITIES, "upper and lower case"),
    bad("modality of 300 letters", modality("x" * 300), MODALITIES, "longer than"),
    bad("modality without images", modality("MG"), "imagesTr/MG", "no training case has this modality"),
    bad("channels from 1", modality("US", channels={"1": "x"}), MODALITIES + ".US.channels", 'numbered "0"'),
    bad("channels empty", modality("US", channels={}), MODALITIES + ".US.channels", 'numbered "0"'),
    bad("channels a list", modality("US", channels=["x"]), MODALITIES + ".US.channels"),
    bad("channel numbers padded", modality("US", channels={"0000": "x"}), MODALITIES + ".US.channels", 'numbered "0"'),
    bad("channel number in other digits", modality("US", channels={"٠": "x"}), MODALITIES + ".US.channels", 'numbered "0"'),
    bad("1001 channels", modality("US", channels={str(i): "x" for i in range(1001)}), MODALITIES + ".US.channels", "at most 1000"),
    bad("more channels than files", modality("US", channels={"0": "x", "1": "y"}), "imagesTr/US/"),
    bad("unknown ending", modality("US", file_ending=".dcm"), MODALITIES + ".US.file_ending", "one of .png"),
    bad("ending without its dot", modality("US", file_ending="png"), MODALITIES + ".US.file_ending", "one of .png"),
    bad("ending in capitals", modality("US", file_ending=".PNG"), MODALITIES + ".US.file_ending", "one of .png"),
    bad("ending of the other modality", modality("US", file_ending=".nii.gz"), "imagesTr/US", "no training case"),
    bad("covariate of unknown kind", lambda s: s["covariates"].update(age="float"), "dataset.json covariates.age", "continuous"),
    bad("covariate without a column", lambda s: s["covariates"].update(bmi="continuous"), "cases.csv header", "'bmi'"),
    bad("covariate that is the label", lambda s: s["covariates"].update(label="binary"), FILE, "cannot be a covariate"),
    bad("covariate that is the patient", lambda s: s["covariates"].update(Patient_ID="categorical"), FILE, "cannot be a covariate"),
    bad("site without a column", lambda s: s.update(site="hospital"), "cases.csv header", "'hospital'"),
    bad("site that is the label", lambda s: s.update(site="label"), FILE, "name another column"),
    bad("patient without a column", lambda s: s.update(patient="mrn"), "cases.csv header", "'mrn'"),
    bad("patient that is the case", lambda s: s.update(patient="case_id"), FILE, "name another column"),
    bad("patient empty", lambda s: s.update(patient=""), "cases.csv header"),
    SPEC.refused("link to itself", link(FILE, FILE), FILE),
    SPEC.refused("link to a device without end", link(FILE, "/dev/zero"), FILE, "is not a file"),
    SPEC.refused("folder instead", lambda d: ((d.raw / FILE).unlink(), (d.raw / FILE).mkdir()), FILE, "is not a file"),
    SPEC.refused("named pipe", lambda d: ((d.raw / FILE).unlink(), os.mkfifo(d.raw / FILE)), FILE, "is not a file"),
    SPEC.refused("four gigabytes of nothing", lambda d: os.truncate(d.raw / FILE, 4 << 30), FILE, "larger than 1024 MiB"),
    SPEC.accepted("byte-order mark", raw(FILE, lambda b: codecs.BOM_UTF8 + b), "editors write it"),
    SPEC.accepted("keys in another order", lambda d: (d.raw / FILE).write_text(json.dumps(
        dict(reversed(list(json.loads((d.raw / FILE).read_text()).items()))))), "order means nothing"),
    SPEC.accepted("indented, with line ends of Windows", lambda d: (d.raw / FILE).write_text(json.dumps(
        json.loads((d.raw / FILE).read_text()), indent=4), newline="\r\n"), "space means nothing"),
    SPEC.accepted("unicode in the description", lambda d: set_spec(d, lambda s: s.update(description="乳腺癌 \u202e é")), "it is text"),
]  # fmt: skip
