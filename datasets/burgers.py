"""The Burgers operator: from a random initial function to the solution of the viscous Burgers equation a while later.

    u_t + u u_x = nu u_xx,    x in (0, 1) periodic,    u(x, 0) = u0(x),    u0 -> u(., time)
    u0 ~ N(0, 625 (-Laplace + 25)^-2)

that is, with independent standard normal ``xi`` and ``eta``,

    u0(x) = sum_{k=1}^{2048} s_k sqrt(2) (xi_k cos 2 pi k x + eta_k sin 2 pi k x),    s_k = 25 / ((2 pi k)^2 + 25).

The sum begins at 1: initial functions have mean zero. Taken to the letter, the measure would add to each a constant of variance
1; a constant ``m`` does nothing but carry the solution along, ``m + u(x - m t, t)``, and the authors' program leaves it out as
well. The sum ends at 2048: what lies beyond, 1e-5 of a function's norm, is left out. In the default problem ``u0`` has standard
deviation 0.59 and ``u(., 1)`` 0.01.

The program in the authors' repository has other constants than their paper, ``49^2 (-Laplace + 49)^-2.5`` and a viscosity of
0.001; with which of them their files were made, it does not say. Errors published for the files need not be those of these
functions.

References
----------
Li et al., "Fourier Neural Operator for Parametric Partial Differential Equations", ICLR 2021, section 5.1 and appendix A.3.1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cfiv.checks import check_whole
from cfiv.datasets.burgers_equation import check_problem, evolve
from cfiv.datasets.function_pairs import FunctionPairs

FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

#: Modes of an initial function.
MODES = 2048
#: Functions drawn and solved at a time: some 30 MB of working memory in the default problem.
BLOCK = 256


def simulate(n: int = 1000, *, points: int = 256, seed: int = 0, viscosity: float = 0.1, time: float = 1.0) -> FunctionPairs:
    """Draw initial functions and solve the equation from each.

    Parameters
    ----------
    n : int
        Functions.
    points : int
        Places ``x_j = j / points``, ``j = 0, ..., points - 1``; x = 1 is x = 0. Values are those of the functions at these
        places, not of their smoothed versions: the functions are the same whatever the grid, and 64 points are every fourth of
        256. A grid of ``points`` tells modes below ``points / 2`` apart.
    seed : int
        Seeds one generator, which draws function after function, of each ``xi_1, eta_1, xi_2, eta_2, ...``: the first functions
        are the same whatever n.
    viscosity : float
        ``nu``, from 0.001 to 10.
    time : float
        When the solution is taken, from 0 (where the outputs are the inputs) to 10.

    Returns
    -------
    FunctionPairs
        ``inputs`` (n, points), ``u0``; ``outputs`` (n, points), ``u(., time)``; ``grid`` (points,). float64.

    Raises
    ------
    ParameterError
        If an argument is out of its range.
    DataError
        If a solution is not resolved.

    Notes
    -----
    1000 functions take 6 s on one core, on 1024 points as on 256: the solution is computed with 128 modes and 512 time steps,
    whatever ``points``. Against the exact solution of Cole and Hopf its relative L2 error is then 1e-11 in the median and 7e-11
    at most, in 1000 functions. Below a viscosity of 0.04 there are more steps, and below 0.0117 more modes: 1000 functions at
    0.01 take a minute, 1000 at 0.001 two hours (errors 2e-11 and 2e-13).
    Beyond the result, memory does not grow with n.

    Examples
    --------
    >>> pairs = simulate(3, points=64)
    >>> pairs.inputs.shape, pairs.outputs.shape, float(pairs.grid[1])
    ((3, 64), (3, 64), 0.015625)
    """
    check_whole("n", n, least=1)
    check_whole("points", points, least=2)
    check_whole("seed", seed, least=0)
    check_problem(viscosity, time)
    generator = np.random.default_rng(seed)
    inputs, outputs = np.empty((n, points)), np.empty((n, points))
    for start in range(0, n, BLOCK):
        rows = slice(start, min(start + BLOCK, n))
        initial = _drawn(rows.stop - rows.start, generator)
        inputs[rows] = _values(initial, points)
        outputs[rows] = inputs[rows] if time == 0 else _values(evolve(initial, viscosity=viscosity, time=time), points)
    return FunctionPairs(inputs, outputs, np.arange(points) / points)


def _drawn(n: int, generator: np.random.Generator) -> ComplexArray:
    """Fourier coefficients c_0, ..., c_2048 of initial functions, (n, 2049)."""
    k = np.arange(1, MODES + 1)
    scale = 25.0 / ((2.0 * np.pi * k) ** 2 + 25.0)
    xi_eta = generator.standard_normal((n, MODES, 2))
    series = np.zeros((n, MODES + 1), dtype=np.complex128)
    series[:, 1:] = scale * (xi_eta[..., 0] - 1j * xi_eta[..., 1]) / np.sqrt(2.0)
    return series


def _values(series: ComplexArray, points: int) -> FloatArray:
    """Real functions (n, points) from coefficients (n, K + 1), for any numbers of points and modes.

    On the grid, modes that differ by a multiple of ``points`` are the same, so their coefficients are added first.
    """
    n, count = series.shape
    folded = np.zeros((n, -(-count // points) * points), dtype=np.complex128)
    folded[:, 0] = series[:, 0]
    folded[:, 1:count] = 2.0 * series[:, 1:]
    values: FloatArray = np.fft.ifft(folded.reshape(n, -1, points).sum(axis=1), axis=1, norm="forward").real
    return values
