"""How good a DFIV member is, on rows that taught it nothing: what early stopping, final ridges and phi are chosen by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfiv.learning.early_stopping import standard_errors_above_zero
from cfiv.learning.samples import CHECK_ROWS, Sample, Split
from cfiv.learning.whole_sample import chunk_rows
from cfiv.numerics.least_squares import with_intercept
from cfiv.numerics.moments import Moments, accumulate, moments, predict_with_each, ridge_path
from cfiv.numerics.two_stage import structural_features, unpredicted_features
from cfiv.objectives.dfiv_problem import DFIVProblem
from cfiv.objectives.dfiv_step import MemberNetworks

#: How many times ``tolerance`` standard errors worse instrument features may predict before they are given up.
CLEARLY = 4


@dataclass(frozen=True, kw_only=True)
class InstrumentFeatures:
    """Instrument features as they were at some step: what is needed to return to them, and what they say of rows judged.

    Parameters
    ----------
    state : of the instrument network
    stage1, stage2 : Tensor (n1, d + 1), (n2, d + 1)
        ``[phi, 1]`` on the rows of both samples.
    """

    state: Any
    stage1: Tensor
    stage2: Tensor


@dataclass(frozen=True, kw_only=True)
class FirstStage:
    """V with the ridge that has the lowest stage-1 loss on sample 2, and its losses there.

    Parameters
    ----------
    weights : Tensor (d + 1, m), float64
    ridge : float
    losses : Tensor (n2,)
        Squared errors, summed over the treatment features, each in units of its variance in sample 2, so that features of any
        scale count alike and losses compare while the features change; their plain mean is the weighted mean.
    phi_stage2 : Tensor (n2, d + 1)
    """

    weights: Tensor
    ridge: float
    losses: Tensor
    phi_stage2: Tensor


class Judge:
    """Judges one member of a fit, on the first ``CHECK_ROWS`` rows of each sample.

    Parameters
    ----------
    problem : DFIVProblem
    networks : MemberNetworks
    member : int
    """

    def __init__(self, problem: DFIVProblem, networks: MemberNetworks, member: int) -> None:
        self._problem, self._networks, self._member = problem, networks, member
        split: Split = problem.splits[member]
        self._stage1, self._stage2 = split.stage1[:CHECK_ROWS], split.stage2[:CHECK_ROWS]
        self._rows = torch.cat([self._stage1, self._stage2])
        self._heldout = None if split.heldout is None else split.heldout[:CHECK_ROWS]
        self._best: InstrumentFeatures | None = None
        self._psi: tuple[Tensor, Tensor] | None = None
        self._first_stage: FirstStage | None = None

    @property
    def best_state(self) -> Any:
        """The best instrument features so far, for a run file."""
        return None if self._best is None else self._best.state

    @best_state.setter
    def best_state(self, state: Any) -> None:
        self._best = None
        if state is not None:
            phi_stage1, phi_stage2 = self._phi(state)
            self._best = InstrumentFeatures(state=state, stage1=phi_stage1, stage2=phi_stage2)

    def forget(self) -> None:
        """What was seen is of the step before."""
        self._psi = self._first_stage = None

    def best_instrument_features(self) -> tuple[Tensor | None, float]:
        """Go back to earlier instrument features where the present ones predict clearly worse in sample 2.

        Stage 1 learns from sample 1 alone, so all rows of sample 2 are unseen by it. A first stage that fits the noise of its
        sample predicts little of the treatment in the other one, and stage 2 is left with a weak instrument of its own making,
        which biases the structural function towards a constant; a held-out stage-2 loss, in which the outcome's noise drowns
        everything, does not notice. Both states of phi are judged on the present psi, by their own V. Clearly is by more than
        ``CLEARLY`` times ``tolerance`` standard errors of the paired difference.

        Returns
        -------
        first_stage : Tensor (d + 1, m), optional
            V of the earlier features where training goes on from them; None where it goes on as it was.
        loss : float
            The stage-1 loss on sample 2 of the features in place.

        References
        ----------
        Ours. Angrist and Krueger (JBES 1995) for the bias of split-sample estimates; Singh, Sahani and Gretton (NeurIPS 2019)
        choose the penalty of a kernel first stage by the same out-of-sample loss.
        """
        phi_stage1, phi_stage2 = self._phi()
        state = self._networks.instrument.state(self._member)
        present = InstrumentFeatures(state=state, stage1=phi_stage1, stage2=phi_stage2)
        now = self._first_stage = self._solve_first_stage(phi_stage1=phi_stage1, phi_stage2=phi_stage2)
        if self._best is None:
            self._best = present
            return None, float(now.losses.mean())
        earlier = self._solve_first_stage(phi_stage1=self._best.stage1, phi_stage2=self._best.stage2)
        if standard_errors_above_zero(now.losses - earlier.losses) > CLEARLY * self._problem.training.tolerance:
            self._networks.instrument.put(self._member, self._best.state)
            self._first_stage = earlier
            return earlier.weights, float(earlier.losses.mean())
        if now.losses.mean() < earlier.losses.mean():
            self._best = present
        return None, float(now.losses.mean())

    def first_stage(self) -> FirstStage:
        """Of the features in place."""
        if self._first_stage is None:
            phi_stage1, phi_stage2 = self._phi()
            self._first_stage = self._solve_first_stage(phi_stage1=phi_stage1, phi_stage2=phi_stage2)
        return self._first_stage

    def heldout_losses(self, first_stage: FirstStage, ridges: tuple[float, ...]) -> tuple[Tensor, Tensor]:
        """u for each ridge (r, p, 1), and their squared errors on held-out rows (r, n); plain means are weighted means."""
        candidates = ridge_path(self._second_stage_moments(first_stage), ridges)
        return candidates, self.squared_errors(candidates, first_stage=first_stage.weights)

    def squared_errors(self, candidates: Tensor, *, first_stage: Tensor) -> Tensor:
        """Squared stage-2 errors (r, n) of several u (r, p, 1) on the held-out rows."""
        assert self._heldout is not None
        errors = []
        for rows in self._chunks(self._heldout):
            phi = with_intercept(self._networks.instrument.evaluate(self._member, rows.instruments))
            features = self._structural(phi.double() @ first_stage, rows)
            errors.append((rows.outcome - predict_with_each(candidates, features=features))[..., 0].square())
        weights = self._weights(self._heldout)
        together = torch.cat(errors, dim=1)
        return together if weights is None else together * (weights / weights.mean())

    def finite(self) -> bool:
        """Whether the features that the networks give on some rows are."""
        networks, member = self._networks, self._member
        rows = self._problem.sample.rows(self._stage1[:256])
        features = [
            networks.treatment.evaluate(member, rows.treatment),
            networks.instrument.evaluate(member, rows.instruments),
            self._covariate_features(rows),
        ]
        return all(part is None or bool(part.isfinite().all()) for part in features)

    def _phi(self, state: Any = None) -> tuple[Tensor, Tensor]:
        """``[phi, 1]`` in both samples, in a state other than the present one where given."""
        instruments = self._problem.sample.instruments[self._rows]
        phi = with_intercept(self._networks.instrument.evaluate(self._member, instruments, state=state))
        return phi[: len(self._stage1)], phi[len(self._stage1) :]

    def _treatment_features(self) -> tuple[Tensor, Tensor]:
        """``psi(T)`` of both samples; an image goes through its network once, however many solves and losses ask."""
        if self._psi is None:
            network, treatment = self._networks.treatment, self._problem.sample.treatment
            psi = torch.cat([network.evaluate(self._member, treatment[rows]) for rows in torch.split(self._rows, self._size)])
            self._psi = psi[: len(self._stage1)], psi[len(self._stage1) :]
        return self._psi

    def _solve_first_stage(self, *, phi_stage1: Tensor, phi_stage2: Tensor) -> FirstStage:
        psi_stage1, psi_stage2 = self._treatment_features()
        ridges = self._problem.first_stage_ridges
        total = _summed(phi_stage1, targets=psi_stage1, weights=self._weights(self._stage1))
        candidates = ridge_path(total, ridges)
        targets = psi_stage2.double()
        variance = targets.var(dim=0, correction=0)
        scaled = (targets - predict_with_each(candidates, features=phi_stage2.double())).square_()
        scaled /= variance.clamp_min(torch.finfo(variance.dtype).tiny)
        losses = scaled[..., variance > 0].sum(dim=2)
        weights = self._weights(self._stage2)
        if weights is not None:
            losses = losses * (weights / weights.mean())
        best = int(losses.mean(dim=1).argmin())
        return FirstStage(weights=candidates[best], ridge=ridges[best], losses=losses[best], phi_stage2=phi_stage2)

    def _second_stage_moments(self, first_stage: FirstStage) -> Moments:
        """Moments of ``f_2`` with the outcome as target, and ``gamma`` times those of ``f(T_1) - f_1`` with target zero."""
        problem, gamma = self._problem, self._problem.unpredicted_penalty
        predicted = first_stage.phi_stage2.double() @ first_stage.weights
        seen = accumulate(
            moments(features=self._structural(part, rows), targets=rows.outcome, weights=rows.weights)
            for part, rows in zip(torch.split(predicted, self._size), self._chunks(self._stage2), strict=True)
        )
        if not gamma:
            return seen
        psi, _ = self._treatment_features()
        unseen = accumulate(
            moments(
                features=unpredicted_features(
                    treatment_features=part.double(),
                    predicted_treatment_features=with_intercept(
                        self._networks.instrument.evaluate(self._member, rows.instruments)
                    ).double()
                    @ first_stage.weights,
                    covariate_features=self._covariate_features(rows),
                    structure=problem.structure,
                ),
                targets=torch.zeros_like(rows.outcome),
                weights=rows.weights,
            )
            for part, rows in zip(torch.split(psi, self._size), self._chunks(self._stage1), strict=True)
        )
        return replace(seen, gram=seen.gram + unseen.gram * (gamma * seen.mass / unseen.mass))

    def _structural(self, treatment_features: Tensor, rows: Sample) -> Tensor:
        return structural_features(
            treatment_features=treatment_features,
            covariate_features=self._covariate_features(rows),
            structure=self._problem.structure,
        )

    def _covariate_features(self, rows: Sample) -> Tensor | None:
        network = self._networks.covariate
        if network is None or rows.covariates is None:
            return None
        return network.evaluate(self._member, rows.covariates)

    @property
    def _size(self) -> int:
        return chunk_rows(self._problem.sample.treatment.shape[1:])

    def _chunks(self, rows: Tensor) -> Iterator[Sample]:
        return (self._problem.sample.rows(part) for part in torch.split(rows, self._size))

    def _weights(self, rows: Tensor) -> Tensor | None:
        weights = self._problem.sample.weights
        return None if weights is None else weights[rows]


def _summed(features: Tensor, *, targets: Tensor, weights: Tensor | None) -> Moments:
    """Moments, a chunk of rows in float64 at a time."""
    size = chunk_rows(targets.shape[1:])
    parts = [None] * len(features) if weights is None else torch.split(weights, size)
    return accumulate(
        moments(features=phi, targets=psi, weights=w)
        for phi, psi, w in zip(torch.split(features, size), torch.split(targets, size), parts, strict=False)
    )
