"""One member of a DFIV fit: what is kept of it while it trains, how it ends, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cfiv.errors import DataError, DivergenceError, SingularError
from cfiv.file_values import choice, fields, listed, number, tensor_of, whole
from cfiv.learning.dfiv_judge import Judge
from cfiv.learning.dfiv_problem import DFIVProblem, TwoStageFit
from cfiv.learning.dfiv_step import MemberNetworks
from cfiv.learning.early_stopping import Checkpoint, EarlyStopping
from cfiv.learning.loop import DIVERGED, DivergedError, Ended
from cfiv.learning.networks import Networks
from cfiv.learning.whole_sample import CHECK_ROWS, refit_last_layers, with_treatment_features
from cfiv.tensor_file import short

ADVICE = "lower learning_rate, raise lambda1, lambda2 and lambda12 or the ridges"
LOSSES = ("stage1_loss", "stage2_loss")
NOTES = ("stage1_heldout_loss", "heldout_loss", "refit_ridge")


@dataclass(frozen=True)
class SolvedLayers:
    """V and u as they would be reported, with the ridges that they are (to be) refitted with; nan where they are not."""

    first_stage: Tensor
    structural: Tensor
    first_stage_ridge: float
    ridge: float


class Member:
    """Keeps the best state of one member, and knows why it trains no longer.

    Parameters
    ----------
    problem : DFIVProblem
    networks : MemberNetworks
    place : int
        The member's place among those that train together.
    """

    def __init__(self, problem: DFIVProblem, networks: MemberNetworks, place: int) -> None:
        self._problem, self._networks, self._place = problem, networks, place
        self._split, training = problem.splits[place], problem.training
        self.judge = Judge(problem, networks, place)
        # "current" is what training leaves: no state is given up for an earlier one.
        refits = problem.report == "refit"
        self._stopping: EarlyStopping[SolvedLayers] = EarlyStopping(
            tolerance=training.tolerance if refits else math.inf, patience=training.patience
        )
        self.gives_up = refits and self._split.heldout is not None
        self._limit = DIVERGED * float(problem.sample.outcome[self._split.stage2].square().mean())
        self._history: list[dict[str, Any]] = []
        self._stage1_heldout_loss = math.nan
        self.ended: Ended | None = None
        self.reason = ""

    @property
    def kept_step(self) -> int | None:
        """The step whose state is kept."""
        return None if self._stopping.kept is None else self._stopping.kept.step

    def choose_instrument_features(self) -> Tensor | None:
        """V of the earlier features that it has returned to; see :meth:`Judge.best_instrument_features`."""
        first_stage, self._stage1_heldout_loss = self.judge.best_instrument_features()
        return first_stage

    def look(self, number: int, *, stage1: Tensor, stage2: Tensor, v: Tensor, u: Tensor) -> None:
        """Take the state after a step into account, by the training losses (k,) since the last look and V and u."""
        means = _mean_losses(stage1, stage2, limit=self._limit, first=number - len(stage1) + 1)
        now = self._checkpoint(number, v, u)
        self._stopping.add(now)
        notes = (self._stage1_heldout_loss, now.loss, now.last_layers.ridge)
        self._history.append({"step": number, **means, **dict(zip(NOTES, notes, strict=True))})
        if self._stopping.exhausted:
            self.ended = "stopped early"

    def interrupt(self, number: int, *, v: Tensor, u: Tensor) -> None:
        """End with the state that is kept, at least the present one."""
        if self._stopping.kept is None:
            self._stopping.add(self._checkpoint(number, v, u))
        self.ended, self.reason = "interrupted", f"training was interrupted after step {number} of {self._problem.steps}"

    @contextmanager
    def surviving(self, number: int) -> Iterator[None]:
        """Errors inside end this member alone: rows were finite when training began, so they speak of its features."""
        try:
            yield
        except (SingularError, DataError, DivergedError) as error:
            self.ended, self.reason = "diverged", f"training diverged at step {number} of {self._problem.steps} ({error})"

    def fitted(self) -> TwoStageFit | DivergenceError:
        """The state that is kept (none where there were no steps), with its last layers refitted where asked for."""
        kept, problem, place = self._stopping.kept, self._problem, self._place
        if kept is None and self.ended == "diverged":
            return DivergenceError(f"{self.reason} before any usable state: {ADVICE}, or check the data for extreme values")
        if kept is not None:
            for network, state in zip(self._networks.those(), kept.parameters, strict=True):
                network.put(place, state)
        covariate = self._networks.covariate
        networks = Networks(
            self._networks.treatment.module(place),
            self._networks.instrument.module(place),
            None if covariate is None else covariate.module(place),
        )
        layers = self._final_layers(networks) if problem.report == "refit" or kept is None else kept.last_layers
        return TwoStageFit(
            networks=networks,
            first_stage=layers.first_stage,
            structural=layers.structural,
            structure=problem.structure,
            heldout_loss=math.nan if kept is None else kept.loss,
            first_stage_ridge=layers.first_stage_ridge,
            refit_ridge=layers.ridge,
            history=[record | {"kept": kept is not None and record["step"] == kept.step} for record in self._history],
            ended=self.ended or "finished",
        )

    def _final_layers(self, networks: Networks) -> SolvedLayers:
        kept, sample, problem = self._stopping.kept, self._problem.sample, self._problem
        first_stage_ridge = problem.ridge1 if kept is None else kept.last_layers.first_stage_ridge
        ridge = problem.ridge2 if kept is None else kept.last_layers.ridge
        first_stage, structural = refit_last_layers(
            with_treatment_features(sample.rows(self._split.stage1), networks.treatment),
            replace(sample, treatment=sample.outcome).rows(self._split.sample2),  # no second stage looks at its treatments
            networks,
            structure=problem.structure,
            first_stage_ridge=first_stage_ridge,
            ridge=ridge,
            unpredicted_penalty=problem.unpredicted_penalty,
        )
        return SolvedLayers(first_stage, structural, first_stage_ridge, ridge)

    def _checkpoint(self, number: int, v: Tensor, u: Tensor) -> Checkpoint[SolvedLayers]:
        """The state as it would be reported now, with its held-out losses.

        The ridge of V is the one with the lowest stage-1 loss on sample 2, the ridge of u that with the lowest stage-2 loss on
        the held-out rows. Where nothing is given up, V and u are as training has them.
        """
        problem, judge = self._problem, self.judge
        if not judge.finite():  # no solve below would notice
            raise DivergedError("the networks' weights or features are not finite")
        parameters = [network.state(self._place) for network in self._networks.those()]
        if self.gives_up:
            first_stage, ridges = judge.first_stage(), problem.refit_ridges
            candidates, losses = judge.heldout_losses(first_stage, ridges)
            chosen = int(losses.mean(dim=1).argmin())
            solved = SolvedLayers(first_stage.weights, candidates[chosen], first_stage.ridge, ridges[chosen])
            return Checkpoint(number, parameters, solved, losses[chosen])
        refits = problem.report == "refit"
        solved = SolvedLayers(
            v.clone(), u.clone(), problem.ridge1 if refits else math.nan, problem.ridge2 if refits else math.nan
        )
        losses = v.new_zeros(0) if self._split.heldout is None else judge.squared_errors(v, u[None])[0]
        return Checkpoint(number, parameters, solved, losses)

    def saved(self) -> dict[str, Any]:
        """All that :meth:`restore` needs."""
        return {
            "ended": self.ended,
            "reason": self.reason,
            "history": self._history,
            "best": _plain(self._stopping.best),
            "kept": _plain(self._stopping.kept),
            "risen": self._stopping.risen,
            "instrument_features": self.judge.best_state,
            "stage1_heldout_loss": self._stage1_heldout_loss,
        }

    def restore(self, values: Any, *, looks: Sequence[int], v: torch.Size, u: torch.Size) -> None:
        """Be as saved after looks at these steps, with V and u of these shapes; raises one of ``tensor_file.DAMAGE``."""
        fields(values, *self.saved())
        ended, history = values["ended"], listed(values["history"])
        self.ended = None if ended is None else choice(ended, ("stopped early", "diverged"))
        self.reason = values["reason"]
        if (self.reason != "") != (ended == "diverged") or not isinstance(self.reason, str):
            raise ValueError(f"a member that is {short(ended)} for the reason {short(self.reason)}")
        if len(history) > len(looks) or (ended is None and len(history) < len(looks)):
            raise ValueError(f"{len(history)} records of {len(looks)} checks")
        for at, record in zip(looks, history, strict=False):
            fields(record, "step", *LOSSES, *NOTES)
            whole(record["step"], at, at)
            for name in (*LOSSES, *NOTES):
                number(record[name], finite=name in LOSSES)
        self._history = history
        steps = [record["step"] for record in history]
        best, kept = (self._checked(values[name], steps, v, u) for name in ("best", "kept"))
        self._stopping.best, self._stopping.kept = best, kept
        self._stopping.risen = whole(values["risen"], 0, self._problem.training.patience)
        features = values["instrument_features"]
        self.judge.best_state = None if features is None else self._networks.instrument.check(features)
        self._stage1_heldout_loss = number(values["stage1_heldout_loss"], finite=features is not None)

    def _checked(self, values: Any, steps: list[int], v: torch.Size, u: torch.Size) -> Checkpoint[SolvedLayers] | None:
        """The reverse of :func:`_plain`."""
        if (values is None) != (not steps):
            raise ValueError("a state is kept from the first check on")
        if values is None:
            return None
        step, parameters, solved, losses = listed(values, count=4)
        if step not in steps:
            raise ValueError(f"a state after step {short(step)}")
        networks, device = self._networks.those(), self._problem.sample.outcome.device
        states = [network.check(state) for network, state in zip(networks, listed(parameters), strict=True)]
        first_stage, structural, first_ridge, ridge = listed(solved, count=4)
        held = 0 if self._split.heldout is None else min(len(self._split.heldout), CHECK_ROWS)
        layers = SolvedLayers(
            tensor_of(first_stage, v, torch.float64).to(device),
            tensor_of(structural, u, torch.float64).to(device),
            number(first_ridge, finite=False),
            number(ridge, finite=False),
        )
        return Checkpoint(step, states, layers, tensor_of(losses, (held,), torch.float64).to(device))


def _plain(checkpoint: Checkpoint[SolvedLayers] | None) -> list[Any] | None:
    """Tensors and numbers."""
    if checkpoint is None:
        return None
    layers = checkpoint.last_layers
    plain = [layers.first_stage, layers.structural, layers.first_stage_ridge, layers.ridge]
    return [checkpoint.step, checkpoint.parameters, plain, checkpoint.losses]


def _mean_losses(stage1: Tensor, stage2: Tensor, *, limit: float, first: int) -> dict[str, float]:
    """Of some steps (k,); raises where they are not finite or enormous."""
    bad = ~stage1.isfinite() | ~stage2.isfinite() | (stage2 > limit)
    if bool(bad.any()):
        at = int(bad.int().argmax())
        losses = f"stage1 loss was {float(stage1[at]):.3g} and stage2 loss was {float(stage2[at]):.3g} at step {first + at}"
        singular = (
            "" if math.isfinite(float(stage1[at] + stage2[at])) else ", by a singular system or features that are not finite"
        )
        raise DivergedError(losses + singular)
    return dict(zip(LOSSES, (float(stage1.mean()), float(stage2.mean())), strict=True))
