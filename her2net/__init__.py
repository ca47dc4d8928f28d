"""her2net: self-configuring classification of medical images.

`Predictor` is loaded on first use, so that `import her2net` stays instant.
"""

from typing import Any

from her2net.version import __version__

__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "Predictor":
        from her2net.predict import Predictor

        return Predictor
    raise AttributeError(f"module 'her2net' has no attribute {name!r}")
