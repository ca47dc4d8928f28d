"""The mutation corpus: named ways to damage a good dataset or a good artefact, and what her2net must say to each.

`case.py` says what a mutation is, the other modules list them by kind, `good.py` makes what is damaged, and
`worker.py` runs commands in an interpreter that may hang or crash without taking the tests along.
"""

from __future__ import annotations

from mutations.case import Mutation

__all__ = ["Mutation", "raw_mutations", "trained_mutations"]


def raw_mutations() -> list[Mutation]:
    """Return every mutation of the raw dataset, kind by kind."""
    from mutations import columns, ids, layout, masks, pictures, specs, volumes

    modules = (pictures, volumes, masks, layout, ids, columns, specs)
    return [mutation for module in modules for mutation in module.MUTATIONS]


def trained_mutations() -> list[Mutation]:
    """Return every mutation of what was made from it, and of what is given to a command, kind by kind."""
    from mutations import caches, checkpoints, given_files, json_files, new_images, tables

    return [mutation for module in (json_files, caches, checkpoints, tables, given_files, new_images) for mutation in module.MUTATIONS]
