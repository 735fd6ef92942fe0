"""Designs with a known truth and pairs of functions (``simulate``), and real data sets (``load``), one module each.

In the package as ``cfiv.datasets``, by a link. Modules are imported when they are first used: for ``cfiv.datasets.demand`` it
takes ``import cfiv`` alone.
"""

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = ["burgers", "card1995", "cifar", "darcy", "demand", "digits", "dsprites", "gratings"]

if TYPE_CHECKING:
    from cfiv.datasets import burgers, card1995, cifar, darcy, demand, digits, dsprites, gratings
else:
    # Out of the type checker's sight, or it would take any attribute for a known one.
    def __getattr__(name: str) -> object:
        """Import a module when it is first asked for (PEP 562)."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}: there are {', '.join(__all__)}")
        return import_module(f"{__name__}.{name}")

    def __dir__() -> list[str]:
        return sorted(__all__)
