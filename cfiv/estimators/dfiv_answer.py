"""From what DFIV has learned to its estimate: weighed against the smooth model, with what the summary says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.data import IVData
from cfiv.estimators.components import NetworkComponent
from cfiv.estimators.dfiv_learning import LearnedPart
from cfiv.estimators.dfiv_settings import last_layers, training_options, unpredicted_penalty
from cfiv.estimators.estimator import Estimate
from cfiv.estimators.nesting import LearnedFunction, Nest
from cfiv.estimators.parameters import several
from cfiv.estimators.smooth_model import SmoothModel
from cfiv.estimators.standardised import StandardisedData
from cfiv.objectives.dfiv_fit import refit_elsewhere
from cfiv.objectives.dfiv_problem import TwoStageFit

if TYPE_CHECKING:
    from cfiv.estimators.dfiv import DFIV


def answer(model: DFIV, data: IVData, learned: LearnedPart) -> Estimate:
    """The answer among the nested models, with its history and facts."""
    functions = tuple(_component(learned.problem, one) for one in learned.fits)
    data = data if learned.part is None else data.take(learned.part)
    nest = _nest(model, data, learned, functions)
    history = [
        {"fit": member.fit, "swapped": member.swapped, **record}
        for member, one in zip(learned.members, learned.fits, strict=True)
        for record in one.history
    ]
    chosen = _chosen(model, learned.fits)
    return Estimate(
        nest.components,
        nest.reduced_form,
        {**_facts(model, learned, chosen), **nest.facts()},
        pd.DataFrame(history),
        chosen,
        learned.interrupted,
        nest.shares,
        nest.trust(data, functions),
    )


def _nest(model: DFIV, data: IVData, learned: LearnedPart, functions: tuple[NetworkComponent, ...]) -> Nest:
    """The learned functions and the smooth model that they are weighed against."""
    problem, part = learned.problem, learned.part
    together = problem.reduced_form(learned.fits)
    smooth = SmoothModel.fit(data, learned.generator, products=model.structure == "product")
    if smooth is None or not model.nested or training_options(model).split is None:
        return Nest.alone(functions, together, smooth)
    penalty, weighed = unpredicted_penalty(model, images=problem.sample.treatment.ndim > 2), []
    for fitted, member in zip(learned.fits, learned.members, strict=True):
        elsewhere = refit_elsewhere(fitted, problem.sample, member.split, unpredicted_penalty=penalty)
        unseen = member.split.stage1.cpu().numpy()
        unseen = unseen if part is None else np.searchsorted(part, unseen)
        weighed.append(LearnedFunction(_component(problem, elsewhere), problem.reduced_form([elsewhere]), unseen))
        problem.release()
    return Nest.of(data, smooth, weighed, learned=functions, reduced_form=together)


def _component(problem: StandardisedData, fitted: TwoStageFit) -> NetworkComponent:
    """``h`` of one fit, in the user's units."""
    return problem.component(
        treatment=fitted.networks.treatment,
        covariate=fitted.networks.covariate,
        structural=fitted.structural,
        structure=fitted.structure,
    )


def _chosen(model: DFIV, fits: list[TwoStageFit]) -> dict[str, tuple[float, ...]]:
    """The ridges of the final V and u, where held-out losses chose them."""
    options = training_options(model)
    if model.report == "current" or not options.refit_ridges or not options.holdout:
        return {}
    return {
        "ridge1": tuple(fitted.first_stage_ridge for fitted in fits),
        "ridge2": tuple(fitted.refit_ridge for fitted in fits),
    }


def _facts(model: DFIV, learned: LearnedPart, chosen: dict[str, tuple[float, ...]]) -> dict[str, Any]:
    heldout = [fitted.heldout_loss for fitted in learned.fits]
    ends = sorted({str(fitted.ended) for fitted in learned.fits} | ({"interrupted"} if learned.interrupted else set()))
    unpredicted = unpredicted_penalty(model, images=learned.problem.sample.treatment.ndim > 2)
    layers = {"Last layers in training": ", ".join(map(repr, vars(last_layers(model)).values()))}
    if model.last_layer is None:
        layers = {
            "Proximal penalties": _listed(model, "lambda1", "lambda2", "lambda12"),
            "Ridge penalties": _listed(model, "ridge1", "ridge2"),
        }
    refitted = model.report == "refit" or model.steps == 0
    return {
        "Functions averaged": len(learned.fits),
        "Held-out stage-2 loss": f"{float(np.mean(heldout)):.4g}{' of the outcome variance' if model.standardise else ''}"
        if np.isfinite(heldout).all()
        else "not held out",
        "Training": f"{learned.steps} steps, {' and '.join(ends)}",
        **layers,
        **({"Unpredicted penalty": f"{unpredicted:g}"} if unpredicted else {}),
        **{f"Final {name}": f"{several(values)} (by held-out loss)" for name, values in chosen.items()},
        "Last layers": "refitted on whole samples" if refitted else "as training left them",
    }


def _listed(model: DFIV, *names: str) -> str:
    return ", ".join(f"{name} {getattr(model, name):g}" for name in names)
