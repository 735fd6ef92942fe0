"""What a solution operator is learned from: functions that go in and functions that come out, on one grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class FunctionPairs:
    """Values of ``n`` functions and of what an operator makes of them.

    Parameters
    ----------
    inputs : array (n, points) or (n, points, points)
        The functions that go in. Axis 1 is x, axis 2, if there is one, y.
    outputs : array of the same shape
        What comes out, at the same places.
    grid : array (points,)
        The coordinates of an axis, the same for both if there are two.
    """

    inputs: FloatArray
    outputs: FloatArray
    grid: FloatArray

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.inputs)
