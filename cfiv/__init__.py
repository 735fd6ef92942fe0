"""cfiv: nonlinear instrumental-variable regression with learned features and closed-form last layers.

``import cfiv`` is light: torch, pandas and scikit-learn are imported when a name that needs them is first used. So are the
modules ``cfiv.datasets``, ``cfiv.plots`` and ``cfiv.studies``, which need no import of their own.

The errors and warnings here are those that programs catch: all of cfiv's, those of what was given (data, formula, parameter,
an estimator not yet fitted), and the two ways in which training goes wrong. The others are in :mod:`cfiv.errors`.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cfiv import errors
from cfiv.errors import (
    CfivError,
    CfivWarning,
    DataError,
    DivergenceError,
    FormulaError,
    NotFittedError,
    ParameterError,
    TrainingWarning,
)

__version__ = "0.1.0"

__all__ = [
    "AGMM",
    "DFIV",
    "LIML",
    "Adaptive",
    "CfivError",
    "CfivWarning",
    "DataError",
    "DeepIV",
    "DivergenceError",
    "FormulaError",
    "Gradient",
    "IVData",
    "Inference",
    "Kalman",
    "KernelIV",
    "LastLayerTrainer",
    "LeastSquares",
    "MovingAverage",
    "NetworkRegression",
    "NotFittedError",
    "ParameterError",
    "Proximal",
    "Ridge",
    "SieveIV",
    "StructuralFunction",
    "Training",
    "TrainingWarning",
    "TwoStageLeastSquares",
    "__version__",
    "compare",
    "datasets",
    "diagnose",
    "errors",
    "infer",
    "load",
    "plots",
    "several_processes",
    "studies",
]

if TYPE_CHECKING:
    from cfiv import datasets, plots, studies
    from cfiv.comparison.compare import compare
    from cfiv.data import IVData
    from cfiv.diagnostics.diagnose import diagnose
    from cfiv.estimators.agmm import AGMM
    from cfiv.estimators.deep_iv import DeepIV
    from cfiv.estimators.dfiv import DFIV
    from cfiv.estimators.kernel_iv import KernelIV
    from cfiv.estimators.least_squares import LeastSquares
    from cfiv.estimators.liml import LIML
    from cfiv.estimators.model_file import load
    from cfiv.estimators.network_regression import NetworkRegression
    from cfiv.estimators.sieve_iv import SieveIV
    from cfiv.estimators.structural import StructuralFunction
    from cfiv.estimators.two_sls import TwoStageLeastSquares
    from cfiv.inference.infer import infer
    from cfiv.inference.inference import Inference
    from cfiv.learning.last_layer import Adaptive, Gradient, Kalman, MovingAverage, Proximal, Ridge
    from cfiv.learning.training import Training
    from cfiv.runtime.processes import several_processes
    from cfiv.supervised.trainer import LastLayerTrainer
else:
    # Out of the type checker's sight, or it would take any attribute of the package for a known one.
    _HOMES = {
        "AGMM": "cfiv.estimators.agmm",
        "Adaptive": "cfiv.learning.last_layer",
        "DFIV": "cfiv.estimators.dfiv",
        "DeepIV": "cfiv.estimators.deep_iv",
        "Gradient": "cfiv.learning.last_layer",
        "IVData": "cfiv.data",
        "Inference": "cfiv.inference.inference",
        "Kalman": "cfiv.learning.last_layer",
        "KernelIV": "cfiv.estimators.kernel_iv",
        "LIML": "cfiv.estimators.liml",
        "LastLayerTrainer": "cfiv.supervised.trainer",
        "LeastSquares": "cfiv.estimators.least_squares",
        "MovingAverage": "cfiv.learning.last_layer",
        "NetworkRegression": "cfiv.estimators.network_regression",
        "Proximal": "cfiv.learning.last_layer",
        "Ridge": "cfiv.learning.last_layer",
        "SieveIV": "cfiv.estimators.sieve_iv",
        "StructuralFunction": "cfiv.estimators.structural",
        "Training": "cfiv.learning.training",
        "TwoStageLeastSquares": "cfiv.estimators.two_sls",
        "compare": "cfiv.comparison.compare",
        "diagnose": "cfiv.diagnostics.diagnose",
        "infer": "cfiv.inference.infer",
        "load": "cfiv.estimators.model_file",
        "several_processes": "cfiv.runtime.processes",
    }
    _MODULES = ("datasets", "plots", "studies")

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for (PEP 562)."""
        if name in _MODULES:
            return import_module(f"cfiv.{name}")
        if name not in _HOMES:
            found = getattr(errors, name, None)
            rest = f": it is cfiv.errors.{name}" if isinstance(found, type) and found.__module__ == errors.__name__ else ""
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}{rest}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # asked for once
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
