"""The module as it was when a loss was last finite: where a fit goes back to after a step that failed or broke off."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from cfiv.learning.loop import DivergedError
from cfiv.runtime.module_state import put, renew, state_of, tensors_of


class LastFinite:
    """The module as it was before this step and before the one before it.

    A loss that is not finite speaks of the parameters that the step before left; those before that had a finite loss.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._kept = [state_of(module) for _ in range(2)]
        self._taken, self._inside = 0, False

    @contextmanager
    def keep(self) -> Iterator[None]:
        """Keep the present while a step is taken inside; one that Ctrl-C breaks off is taken back."""
        self._kept.reverse()
        renew(self._kept[0], self._module)
        self._taken, self._inside = self._taken + 1, True
        try:
            yield
        except KeyboardInterrupt:
            put(self._module, self._kept[0])
            raise
        self._inside = False

    def check(self) -> None:
        """Raise a DivergedError where the last step has left a parameter that is not finite: no loss will speak of it."""
        if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors_of(self._module).values()):
            raise DivergedError("it left parameters that are not finite")

    def go_back(self) -> bool:
        """Return to the parameters of the last finite loss; False, and to those before this step, where there was none."""
        steps = 1 if self._inside else 0
        put(self._module, self._kept[min(steps, self._taken - 1)])
        return self._taken > steps
