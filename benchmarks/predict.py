"""Predict new cases from their files: four folds of both modalities, against MONAI transforms, one fold after the other.

    python benchmarks/predict.py [--cases 100] [--rounds 2] [--networks small solved]

The rival reads and prepares every case anew for each fold, as a loop over checkpoints does, and computes in float32.
All three work in this one process: her2net's workers would divide the wall clock, not the work.
The floor reads the files with SimpleITK or Pillow and runs the networks on tensors that lie in memory. The networks have
random weights, which cost the same as trained ones: small ResNets, the solved networks that her2net plans for few cases,
or (`large`) those of the training benchmark.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
import torch
from cohorts import NETWORKS, make_large_images, make_paths, plan_cohort
from harness import Row, compare, finish, refuse, take_turns
from monai import transforms as t
from PIL import Image

from her2net.inference import predict_files
from her2net.networks import scattering
from her2net.networks.build import build_network
from her2net.new_case import prepare
from her2net.plan.schema import ModalityPlan
from her2net.preprocess.cache import CaseFiles
from her2net.train.loop import channels_last

N_FOLDS = 4
Networks = dict[str, list[torch.nn.Module]]


def make_networks(sections: dict[str, ModalityPlan]) -> Networks:
    """Return four networks of each modality with running statistics of noise."""
    networks: Networks = {}
    for name, section in sections.items():
        networks[name] = []
        for k in range(N_FOLDS):
            torch.manual_seed(k)
            model = channels_last(build_network(section.training.network, n_channels=section.n_inputs, n_classes=2), section.ndim)
            with torch.no_grad():
                model(torch.randn(4, section.n_inputs, *section.preprocessing.input_vox))
            networks[name].append(model.eval())
    return networks


def her2net_predict(networks: Networks, sections: dict[str, ModalityPlan], files: dict[str, list[CaseFiles]]) -> dict[str, np.ndarray]:
    """Each case read and prepared once, shown to every fold."""
    scattering._described.clear()
    return {name: predict_files(networks[name], section, files[name], tta=False, n_workers=1, quiet=True)[0]
            for name, section in sections.items()}  # fmt: skip


def plain_predict(networks: Networks, sections: dict[str, ModalityPlan], files: dict[str, list[CaseFiles]]) -> dict[str, np.ndarray]:
    """Fold by fold, case by case, MONAI's dictionary transforms."""
    means = {}
    for name, section in sections.items():
        mode = "bilinear" if section.ndim == 2 else "trilinear"
        chain = t.Compose([
            t.LoadImaged(["image", "mask"]), t.EnsureChannelFirstd(["image", "mask"]),
            t.CropForegroundd(["image", "mask"], source_key="mask", margin=50, allow_smaller=True),
            t.NormalizeIntensityd("image"), t.Resized("image", section.preprocessing.input_vox, mode=mode),
        ])  # fmt: skip
        folds = []
        for model in networks[name]:
            scattering._described.clear()  # one fold after the other, each by itself
            probs = []
            for case in files[name]:
                image = chain({"image": [str(p) for p in case.images], "mask": str(case.mask)})["image"].as_tensor()
                with torch.no_grad():
                    probs.append(model(image[None, : section.n_inputs].float()).softmax(1).numpy()[0])
            folds.append(probs)
        means[name] = np.mean(folds, axis=0)
    return means


def floor(networks: Networks, sections: dict[str, ModalityPlan], files: dict[str, list[CaseFiles]]) -> Callable[[], object]:
    """Read the files, and run the networks on tensors in memory; nothing between."""
    inputs = {name: torch.randn(s.inference.batch_size, s.n_inputs, *s.preprocessing.input_vox).contiguous(
        memory_format=torch.channels_last if s.ndim == 2 else torch.channels_last_3d) for name, s in sections.items()}  # fmt: skip

    def read(paths: Sequence[Path]) -> None:
        for path in paths:
            if path.name.endswith(".png"):
                np.asarray(Image.open(path))
            else:
                sitk.GetArrayFromImage(sitk.ReadImage(path))

    def run() -> None:
        for name, models in networks.items():
            for case in files[name]:
                read(case.paths)
            with torch.inference_mode():
                for model in models:
                    for rows in torch.arange(len(files[name])).split(len(inputs[name])):
                        scattering._described.clear()  # the same tensors stand for other cases
                        model(inputs[name][: len(rows)])

    return run


def check(networks: Networks, sections: dict[str, ModalityPlan], files: dict[str, list[CaseFiles]]) -> None:
    """The inputs agree but for their interpolation, and the same input gives the same probabilities."""
    few = {name: cases[:3] for name, cases in files.items()}
    ours, theirs = her2net_predict(networks, sections, few), plain_predict(networks, sections, few)
    for name, section in sections.items():
        apart = float(np.abs(ours[name] - theirs[name]).max())
        margin = [(s - i) // 2 for s, i in zip(section.preprocessing.stored_vox, section.preprocessing.input_vox, strict=True)]
        x = torch.from_numpy(np.stack([prepare(case, section, None).image for case in few[name]])).float()
        for axis, (m, n) in enumerate(zip(margin, section.preprocessing.input_vox, strict=True), start=2):
            x = x.narrow(axis, m, n)
        with torch.no_grad():
            plain = np.mean([model(x).double().softmax(1).numpy() for model in networks[name]], axis=0)
        same = float(np.abs(plain - ours[name]).max())
        if same > 1e-4 or apart > 0.1:
            refuse(f"{name}: probabilities differ by {same:.2g} on the same input, by {apart:.2g} with MONAI's")
        print(f"  {name}: same input, probabilities agree to {same:.0e}; with the rival's input to {apart:.3f}")


def main(n_cases: int, rounds: int, which: str) -> list[Row]:
    """Time her2net, the loop and the floor in turns."""
    settings = NETWORKS[which]
    with tempfile.TemporaryDirectory() as name:
        paths = make_paths(Path(name))
        make_large_images(paths, 24, n_cases)
        project = plan_cohort(paths, settings)
        sections = project.plan.modalities
        files = {m: project.files(m, project.test(m)) for m in sections}
        networks = make_networks(sections)
        check(networks, sections, files)
        cost = take_turns({
            "ours": lambda: her2net_predict(networks, sections, files),
            "plain": lambda: plain_predict(networks, sections, files),
            "floor": floor(networks, sections, files),
        }, rounds, warm_up=False)  # fmt: skip
    what = ", ".join(f"{m} {s[0]} {'x'.join(map(str, s[1]))}, {len(files[m])} cases" for m, s in settings.items())
    row = f"predict from files, 4 folds, {which} networks"
    return [
        compare(f"{row}: MONAI, one fold after the other", cost["ours"], cost["plain"], target=2.5, note=what),
        compare(f"{row}: reading and forward alone", cost["ours"], cost["floor"], target=1.2, at_least=False, note=what),
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=["small", "solved"], choices=tuple(NETWORKS))
    args = parser.parse_args()
    raise SystemExit(finish([row for which in args.networks for row in main(args.cases, args.rounds, which)]))
