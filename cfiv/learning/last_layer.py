"""Last layers as pieces: previous weights in, new weights out. Penalties act on the mean squared error.

A :class:`ClosedForm` takes what the layer remembers and a batch, and gives what it remembers next. The trainer takes any of
:class:`Adaptive`, which has no penalty to set, :class:`Ridge`, :class:`Proximal`, :class:`Kalman`, :class:`MovingAverage`, or
:class:`Gradient`, which is not solved at all.
"""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from cfiv.checks import check_flag, check_number
from cfiv.errors import ParameterError
from cfiv.learning.optimisers import OptimizerFactory, check_optimizer
from cfiv.numerics.drifting_weights import Track, track_weights
from cfiv.numerics.kalman import kalman_update
from cfiv.numerics.least_squares import solve_step
from cfiv.numerics.moments import Moments, moments, solve_moments


@dataclass(frozen=True)
class Memory:
    """What a last layer hands to its next solve.

    Parameters
    ----------
    weights : Tensor (d, k), float64
        W; the last row belongs to the constant where there is one.
    more : tuple of Tensor
        What else the layer remembers; empty before its first solve.
    pull : float
        The share of its final pull to these weights that a layer is to have at its next solve, by the schedule of the run;
        without unit. A layer that has no such penalty passes it over.
    """

    weights: Tensor
    more: tuple[Tensor, ...] = ()
    pull: float = 1.0

    def detached(self) -> Memory:
        """Without the graph of what it was solved from."""
        return Memory(self.weights.detach(), tuple(part.detach() for part in self.more))


class ClosedForm(Protocol):
    """A last layer that is solved on every batch: of the trainer, of NetworkRegression, and of both stages of DFIV.

    Any class with this method is one. It may have ``side_by_side = True``, if its tensors may have leading axes for problems of
    their own; otherwise fits that train together ask it one after another.
    """

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """What it remembers after a batch: features (n, d), targets (n, k), row weights (n,).

        Parameters
        ----------
        memory : Memory or None
            What it gave for the batch before, with the present ``pull``; or, before the first one, the module's own last layer,
            and None where there is none (DFIV and NetworkRegression begin without).
        features : Tensor (n, d)
            Without a graph; the last column is the constant.
        targets : Tensor (n, k)
            In the second stage of DFIV live in the treatment features: there the weights given have to be differentiable in
            them, or nothing would be learned of the treatment.
        weights : Tensor (n,), optional
        """
        ...


#: What :class:`Adaptive` remembers besides the weights.
TRACKED = ("information", "step", "log_noise", "log_drift", "batches", "outcome", "astray", "ridge")


@dataclass(frozen=True)
class Adaptive:
    """No penalty to set: how far a batch moves the weights follows from its noise, beside how far they drift.

    The filter of :class:`Kalman`, whose two standard deviations are found as training runs: the noise from how parts of a batch
    disagree, the drift in proportion to the weights (:func:`cfiv.numerics.drifting_weights.track_weights`). Where batches
    nearly determine the layer it is :class:`Ridge` without a penalty; where they are few noisy rows, it takes small steps.

    Notes
    -----
    As of :class:`Kalman`, W minimises the losses of the last batches, not the one that the backbone descends.
    """

    side_by_side: ClassVar[bool] = True

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Predict and correct; without a past, solve."""
        before: Track | Tensor | None = None if memory is None else memory.weights
        if memory is not None and memory.more:
            before = Track(mean=memory.weights, **dict(zip(TRACKED, memory.more, strict=True)))
        after = track_weights(before, features=features, targets=targets, weights=weights)
        return Memory(after.mean, tuple(getattr(after, name) for name in TRACKED))


@dataclass(frozen=True)
class Proximal:
    """``argmin_W mean |y - W' phi|^2 + beta |W|^2 + lam |W - W_prev|^2``: small steps away from what earlier batches said.

    With ``lam = 0`` it is the ridge layer, which forgets every batch but the last. Without a past there is no pull: one to
    zero would only bias the first batch.

    References
    ----------
    Galashov et al., arXiv 2510.04606, "l2 c.f. proximal" and "l2 c.f. ridge".
    """

    lam: float
    _: KW_ONLY
    beta: float = 0.0
    side_by_side: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _keep_number(self, "lam", least=0.0)
        _keep_number(self, "beta", least=0.0)

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Solve with the pull to the weights remembered."""
        previous, pull = (None, 0.0) if memory is None else (memory.weights, self.lam * memory.pull)
        solution = solve_step(
            features=features, targets=targets, ridge=self.beta, proximal=pull, previous=previous, weights=weights
        )
        return Memory(solution)


@dataclass(frozen=True)
class Ridge:
    """``argmin_W mean |y - W' phi|^2 + beta |W|^2``, the batch's own answer: no memory of earlier ones.

    References
    ----------
    Galashov et al., arXiv 2510.04606, "l2 c.f. ridge".
    """

    beta: float
    side_by_side: ClassVar[bool] = True

    def __post_init__(self) -> None:
        _keep_number(self, "beta", least=0.0)

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Solve, whatever came before."""
        return Memory(solve_step(features=features, targets=targets, ridge=self.beta, weights=weights))


@dataclass(frozen=True)
class Kalman:
    """The posterior mean of weights that walk at random: :func:`cfiv.numerics.kalman.kalman_update` on every batch.

    Parameters
    ----------
    process_noise, observation_noise : float
        Standard deviations of the walk's steps, >= 0, and of the targets, > 0. Their ratio squared, over the rows of a batch,
        is a penalty on the mean squared error.
    reset : bool
        Forget the covariance before every batch, and keep the mean: exactly ``Proximal(lam)`` with
        ``lam = observation_noise^2 / (process_noise^2 n)`` on n rows. Otherwise the covariance is kept, and without process
        noise that is recursive least squares.
    prior : float
        Standard deviation of the weights about those of the module before the first batch, besides the first step of the walk.

    Notes
    -----
    Unless reset, W minimises the losses of all batches so far, not the one that the backbone descends: its gradient at W held
    fixed is then not that of a minimised objective.

    References
    ----------
    Galashov et al., arXiv 2510.04606, appendix A. The prior is ours.
    """

    process_noise: float
    _: KW_ONLY
    observation_noise: float
    reset: bool = False
    prior: float = 0.0

    def __post_init__(self) -> None:
        _keep_number(self, "process_noise", least=0.0)
        _keep_number(self, "observation_noise", above=0.0)
        _keep_number(self, "prior", least=0.0)
        object.__setattr__(self, "reset", check_flag("reset", self.reset))
        if self.process_noise == 0 and (self.prior == 0 or self.reset):
            raise ParameterError(
                "process_noise must be > 0 with reset=True or without a prior, got 0: such weights would never move"
            )

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Predict and correct."""
        if memory is None:
            memory = Memory(features.new_zeros(features.shape[1], targets.shape[1], dtype=torch.float64))
        root = None if self.reset or not memory.more else memory.more[0]
        if root is None and self.prior and not self.reset:
            root = self.prior * torch.eye(memory.weights.shape[0], dtype=torch.float64, device=memory.weights.device)
        mean, new = kalman_update(
            features=features,
            targets=targets,
            mean=memory.weights,
            root=root,
            process_noise=self.process_noise,
            observation_noise=self.observation_noise,
            weights=weights,
        )
        return Memory(mean) if self.reset else Memory(mean, (new,))


@dataclass(frozen=True)
class MovingAverage:
    """An extra, not of the paper: ridge on running moments, in which a batch weighs ``decay`` times as much one step later.

        W = argmin_W  sum_s decay^s [ sum_i w_i |y_i - W' phi_i|^2 ]_(s batches ago) / mass  +  beta |W|^2

    with the features as they were then; the mass is the sum of all weights in front of squares, so the penalty acts on a mean.
    With ``decay = 0`` it is :class:`Ridge`.

    Notes
    -----
    With a decay above 0 the moments are of features that have moved on since, and W does not minimise the loss that the
    backbone descends. Both are small where features move slowly.
    """

    decay: float
    _: KW_ONLY
    beta: float

    def __post_init__(self) -> None:
        _keep_number(self, "decay", least=0.0, below=1.0)
        _keep_number(self, "beta", least=0.0)

    def update(self, memory: Memory | None, *, features: Tensor, targets: Tensor, weights: Tensor | None) -> Memory:
        """Add the batch to the moments and solve."""
        total = moments(features=features, targets=targets, weights=weights)
        if targets.requires_grad:
            phi = features.detach().double() if weights is None else features.detach().double() * weights.double()[:, None]
            total = replace(total, cross=phi.mT @ targets.double())
        if memory is not None and memory.more and self.decay:
            gram, cross, mass = memory.more
            total = Moments(gram=self.decay * gram, cross=self.decay * cross, mass=self.decay * float(mass)) + total
        mass = total.gram.new_tensor(total.mass)
        return Memory(solve_moments(total, ridge=self.beta).weights, (total.gram, total.cross, mass))


@dataclass(frozen=True)
class Gradient:
    """No closed form: the last layer takes gradient steps with everything else. The baseline, in the same loop.

    Parameters
    ----------
    optimizer : callable, optional
        From parameters to an optimiser, for all of the module's; by default the trainer's own.
    """

    optimizer: OptimizerFactory | None = None

    def __post_init__(self) -> None:
        if self.optimizer is not None:
            check_optimizer(self.optimizer)


def remembered_shapes(layer: ClosedForm | Gradient, weights: Tensor) -> list[tuple[int, ...]] | None:
    """Of :attr:`Memory.more` after a step with weights of this shape (d, k); None for a layer that is not of this module."""
    rows, columns = weights.shape
    if isinstance(layer, Kalman):
        return [] if layer.reset else [(rows, rows)]
    if isinstance(layer, Adaptive):
        return [(rows, rows), (rows, columns), (), (), (), (), (), ()]
    if isinstance(layer, MovingAverage):
        return [(rows, rows), (rows, columns), ()]
    return [] if isinstance(layer, (Ridge, Proximal, Gradient)) else None


def _keep_number(layer: object, name: str, **limits: float) -> None:
    """Check a number of a frozen layer, and keep it as Python's own, so that equal layers look the same."""
    object.__setattr__(layer, name, check_number(name, getattr(layer, name), **limits))  # type: ignore[arg-type]
