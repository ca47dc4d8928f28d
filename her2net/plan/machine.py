"""What this machine can do: the device, and how fast it trains a candidate network.

A plan that ignores the machine is useless without a GPU, so `auto` measures a few
training steps. Speeds are rounded down to half an octave before any rule sees them,
recorded in the plan, and reused when the same machine plans again.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from her2net.artefact import Artefact, load_json
from her2net.errors import PlanError
from her2net.memory import GIB, total_memory

WARMUP_STEPS = 3
TIMED_STEPS = 6
PLANNED_VIEWS = 2
"""What a solved network is planned to see of a case: as it is, and mirrored left-right."""


class Machine(Artefact):
    """A recorded measurement.

    Attributes:
        device: `cpu`, `cuda` or `mps`.
        name: processor or card.
        n_threads: threads torch computes with.
        memory_gb: memory of the device, or of the container or batch job if that is less, in GiB, rounded.
        bf16: whether bfloat16 arithmetic is native.
        samples_per_s: `network|size|channels|batch` -> training speed, rounded.
    """

    REMEDY: ClassVar[str] = "Correct the file, or leave --machine out to measure anew."

    device: Annotated[str, Field(pattern="^(cpu|cuda|mps)$")]
    name: str
    n_threads: Annotated[int, Field(ge=1)]
    memory_gb: Annotated[int, Field(ge=1)]
    bf16: bool
    samples_per_s: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)


def read_machine(path: Path) -> Machine:
    """Read a recorded machine, from its own file or from a plan that holds one.

    Raises:
        MissingArtefactError: no such file.
        PlanError: neither a machine nor a plan with one.
    """
    found = load_json(path)
    if isinstance(found, dict) and "machine" in found:
        if found["machine"] is None:
            raise PlanError(f"{path}: this plan holds no machine measurement. Take a plan made with --preset auto.")
        return Machine.parse(json.dumps(found["machine"]), where=f"{path}: machine", remedy=Machine.REMEDY)
    return Machine.load(path)


def inspect_machine(device: str) -> Machine:
    """Describe the device without measuring any speed."""
    import torch

    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        return Machine(device="cuda", name=card.name, n_threads=torch.get_num_threads(),
                       memory_gb=round(card.total_memory / 2**30), bf16=torch.cuda.is_bf16_supported())
    return Machine(device=device, name=_processor_name(), n_threads=torch.get_num_threads(),
                   memory_gb=max(1, round(total_memory() / GIB)), bf16=device == "cpu" and cpu_has_bf16())


def choose_device(wanted: str) -> str:
    """Resolve `auto` to cuda, mps or cpu; refuse a device that is not there.

    Raises:
        PlanError: the device asked for is absent.
    """
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if not there[wanted]:
        raise PlanError(f"--device {wanted}: torch finds no such device here. Use --device auto or --device cpu.")
    return wanted


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively; emulated, it would be slower than float32."""
    import torch

    capabilities = getattr(torch.backends.cpu, "get_cpu_capability", lambda: "")()
    flags = _cpu_flags()
    return "AVX512" in capabilities and bool({"avx512_bf16", "amx_bf16"} & flags)


def _cpu_flags() -> set[str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return set()
    line = next((x for x in path.read_text(errors="replace").splitlines() if x.startswith("flags")), "")
    return set(line.split())


def _processor_name() -> str:
    import platform

    return platform.processor() or platform.machine()


def round_speed(samples_per_s: float) -> float:
    """Round down to half an octave: 1, 1.41, 2, 2.83, 4 ...

    Example:
        >>> round_speed(7.9), round_speed(8.1)
        (5.657, 8.0)
    """
    return round(2 ** (math.floor(2 * math.log2(samples_per_s)) / 2), 3)


def speed_key(network: str, input_vox: list[int], n_channels: int, batch_size: int) -> str:
    """Name of one measurement."""
    return f"{network}|{'x'.join(map(str, input_vox))}|{n_channels}|{batch_size}"


def measure_speed(network: str, input_vox: list[int], n_channels: int, batch_size: int, machine: Machine) -> float:
    """Time forward, backward and optimizer step on random tensors; samples per second, rounded.

    The fastest of six steps counts: other programs can only make a step slower.
    """
    import torch

    from her2net.networks.build import build_network
    from her2net.train.loop import make_optimizer, training_step

    device = torch.device(machine.device)
    generator = torch.Generator().manual_seed(0)
    model = build_network(network, n_channels=n_channels, n_classes=2).to(device)
    model = model.to(memory_format=torch.channels_last if len(input_vox) == 2 else torch.channels_last_3d).train()
    optimizer = make_optimizer(model, learning_rate=1e-4, weight_decay=0.0)
    x = torch.randn((batch_size, n_channels, *input_vox), generator=generator).to(device)
    targets = torch.full((batch_size, 2), 0.5, device=device)
    precision = "bf16" if machine.bf16 else "fp32"
    times = []
    for _ in range(WARMUP_STEPS + TIMED_STEPS):
        start = time.perf_counter()
        training_step(model, optimizer, x, targets, precision=precision, gradient_clip=1.0, scaler=None)
        _synchronize(torch, device)
        times.append(time.perf_counter() - start)
    return round_speed(batch_size / min(times[WARMUP_STEPS:]))


def estimate_gb(network: str, input_vox: list[int], n_channels: int, batch_size: int, n_cases: int) -> float:
    """Estimate the memory for training a network on this many cases, in GiB, without taking it."""
    from her2net.train.footprint import estimate_footprint, images_bytes

    images = images_bytes([n + n // 4 for n in input_vox], n_channels, n_cases)
    need = estimate_footprint(network, tuple(input_vox), n_channels)
    return (need.total(batch_size) + need.solving(PLANNED_VIEWS * n_cases) + images) / GIB


def _synchronize(torch: Any, device: Any) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
