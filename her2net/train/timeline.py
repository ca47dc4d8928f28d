"""Where the time of training goes, phase by phase; kept in `run.json`, shown by `her2net_status --timing`.

On a graphics card the work is queued, so phases are told by events in its queue, read once an epoch: nobody waits for
them, and a phase is the time the card spent on it or idle before it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

PHASES = ("data", "augment", "forward", "backward", "optimizer", "solve", "validation", "checkpoint")
"""A network that is trained by steps never solves; one that is solved neither augments nor steps."""


class Timeline:
    """Seconds per phase, summed over epochs and resumed sessions; a class because a lap begins where the last ended.

    Attributes:
        seconds: phase -> seconds.
    """

    def __init__(self, device: torch.device, seconds: Mapping[str, float] | None = None) -> None:
        """Go on from the seconds of earlier sessions."""
        self.seconds = dict.fromkeys(PHASES, 0.0) | dict(seconds or {})
        self._queued = device.type == "cuda"
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._last = time.perf_counter()

    def start(self) -> None:
        """Begin a lap; what came before belongs to no phase."""
        self._mark("")

    def lap(self, phase: str) -> None:
        """Count the time since the last mark to this phase."""
        self._mark(phase)

    def settle(self) -> None:
        """Read the events of a graphics card; once an epoch."""
        if self._events:
            torch.cuda.synchronize()
            for (_, before), (phase, after) in zip(self._events, self._events[1:], strict=False):
                if phase:
                    self.seconds[phase] += before.elapsed_time(after) / 1e3
            self._events.clear()

    def _mark(self, phase: str) -> None:
        if self._queued:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self._events.append((phase, event))
            return
        now = time.perf_counter()
        if phase:
            self.seconds[phase] += now - self._last
        self._last = now
