"""What a mutation is, and the commands it is tried on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from her2net.paths import DatasetPaths

VERIFY = ("verify", "--num-workers", "1", "--quiet")
PLAN = ("plan", "--no-preprocess", "--num-workers", "1", "--machine", "{root}/machine.json", "--quiet")
CACHE = ("plan", "--num-workers", "1", "--machine", "{root}/machine.json", "--quiet")
TRAIN = ("train", "US", "0", "--device", "cpu", "--quiet")
ENSEMBLE = ("ensemble", "US", "--device", "cpu", "--quiet")
FUSE = ("fuse", "--quiet")
EVALUATE = ("evaluate", "--quiet")
PREDICT = ("predict", "--device", "cpu", "--quiet")
STATUS = ("status", "--quiet")
REPORT = ("report", "--quiet")
TRAIN_ALL = ("train", "US", "all", "--device", "cpu", "--quiet")

Damage = Callable[[DatasetPaths], object]
Command = tuple[str, ...]


@dataclass(frozen=True)
class Mutation:
    """One way to damage a good dataset, artefact or folder of new images.

    Attributes:
        kind: what is damaged; a row of the summary table.
        name: of the damage; unique within the kind.
        damage: does it, given the paths of a good dataset that may be changed at will.
        says: texts that each command must print, first of all the place (file, row or key); of an accepted mutation,
            texts that the first command must print.
        accepted: why the commands go on all the same; empty if they must refuse.
        restores: where the commands repair the damage: name of the file that they must leave as it was in the good dataset.
        outcome: `refused`, `repaired` or `accepted`.
        code: exit code of a refusal.
        commands: what is run, one after the other, on the same damaged folder; `{root}` stands for the folder
            that holds the three roots.
    """

    kind: str
    name: str
    damage: Damage
    says: tuple[str, ...]
    accepted: str
    commands: tuple[Command, ...]
    outcome: Literal["refused", "repaired", "accepted"]
    restores: str = ""
    code: int = 2

    @property
    def id(self) -> str:
        return f"{self.kind}: {self.name}"


@dataclass(frozen=True)
class Kind:
    """Makes the mutations of one kind."""

    name: str
    commands: tuple[Command, ...]

    def refused(self, name: str, damage: Damage, *says: str, commands: tuple[Command, ...] = (), code: int = 2) -> Mutation:
        """Each command must end with this exit code, print these texts, and leave the disk as it was."""
        assert says, name
        return Mutation(self.name, name, damage, says, "", commands or self.commands, "refused", code=code)

    def accepted(self, name: str, damage: Damage, reason: str, *says: str, commands: tuple[Command, ...] = ()) -> Mutation:
        """Each command must end with exit code 0, for this reason; the first prints these texts (a warning, say)."""
        return Mutation(self.name, name, damage, says, reason, commands or self.commands, "accepted")

    def repaired(
        self, name: str, damage: Damage, reason: str, *says: str, restores: str = "", commands: tuple[Command, ...] = ()
    ) -> Mutation:
        """As `accepted`, and afterwards the files named `restores` are as they were before the damage."""
        return Mutation(self.name, name, damage, says, reason, commands or self.commands, "repaired", restores)
