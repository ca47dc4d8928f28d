"""The mutation corpus: named ways to damage a good dataset or a good artefact, and what her2net must say to each.

`case.py` says what a mutation is, the other modules list them by kind, `good.py` makes what is damaged, and
`worker.py` runs commands in an interpreter that may hang or crash without taking the tests along.
"""

from __future__ import annotations

from mutations.case import Mutation

__all__ = ["Mutation", "all_mutations"]


def all_mutations() -> list[Mutation]:
    """Return every mutation, kind by kind."""
    from mutations import columns, ids, layout, masks, pictures, specs, volumes

    modules = (pictures, volumes, masks, layout, ids, columns, specs)
    return [mutation for module in modules for mutation in module.MUTATIONS]
