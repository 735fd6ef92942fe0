"""cfiv: nonlinear instrumental-variable regression with learned features and closed-form last layers.

``import cfiv`` is light: torch, pandas and scikit-learn are imported when a name that needs them is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from cfiv.errors import (
    CfivError,
    CfivWarning,
    DataError,
    DivergenceError,
    FewClustersWarning,
    FormulaError,
    FormulaWarning,
    IllConditionedWarning,
    LedgerError,
    MissingPackageError,
    MissingRowsWarning,
    MixedVersionsWarning,
    ModelFileError,
    NotApplicableError,
    NotFittedError,
    OutputError,
    ParameterError,
    PenaltyRangeWarning,
    PictureWarning,
    SingularError,
    StudyError,
    StudyFileError,
    TooLargeError,
    TrainingWarning,
    WeakIdentificationWarning,
)

__version__ = "0.1.0"

__all__ = [
    "DFIV",
    "CfivError",
    "CfivWarning",
    "DataError",
    "DivergenceError",
    "FewClustersWarning",
    "FormulaError",
    "FormulaWarning",
    "Gradient",
    "IVData",
    "IllConditionedWarning",
    "Kalman",
    "KernelIV",
    "LastLayerTrainer",
    "LeastSquares",
    "LedgerError",
    "MissingPackageError",
    "MissingRowsWarning",
    "MixedVersionsWarning",
    "ModelFileError",
    "MovingAverage",
    "NetworkRegression",
    "NotApplicableError",
    "NotFittedError",
    "OutputError",
    "ParameterError",
    "PenaltyRangeWarning",
    "PictureWarning",
    "Proximal",
    "Ridge",
    "SingularError",
    "StructuralFunction",
    "StudyError",
    "StudyFileError",
    "TooLargeError",
    "Training",
    "TrainingWarning",
    "TwoStageLeastSquares",
    "WeakIdentificationWarning",
    "__version__",
    "compare",
    "diagnose",
    "load",
]

if TYPE_CHECKING:
    from cfiv.data import IVData
    from cfiv.diagnostics.diagnose import diagnose
    from cfiv.estimators.comparison import compare
    from cfiv.estimators.dfiv import DFIV
    from cfiv.estimators.kernel_iv import KernelIV
    from cfiv.estimators.least_squares import LeastSquares
    from cfiv.estimators.model_file import load
    from cfiv.estimators.network_regression import NetworkRegression
    from cfiv.estimators.structural import StructuralFunction
    from cfiv.estimators.two_sls import TwoStageLeastSquares
    from cfiv.learning.last_layer import Gradient, Kalman, MovingAverage, Proximal, Ridge
    from cfiv.learning.trainer import LastLayerTrainer
    from cfiv.learning.training import Training
else:
    # Out of the type checker's sight, or it would take any attribute of the package for a known one.
    _HOMES = {
        "DFIV": "cfiv.estimators.dfiv",
        "Gradient": "cfiv.learning.last_layer",
        "IVData": "cfiv.data",
        "Kalman": "cfiv.learning.last_layer",
        "KernelIV": "cfiv.estimators.kernel_iv",
        "LastLayerTrainer": "cfiv.learning.trainer",
        "LeastSquares": "cfiv.estimators.least_squares",
        "MovingAverage": "cfiv.learning.last_layer",
        "NetworkRegression": "cfiv.estimators.network_regression",
        "Proximal": "cfiv.learning.last_layer",
        "Ridge": "cfiv.learning.last_layer",
        "StructuralFunction": "cfiv.estimators.structural",
        "Training": "cfiv.learning.training",
        "TwoStageLeastSquares": "cfiv.estimators.two_sls",
        "compare": "cfiv.estimators.comparison",
        "diagnose": "cfiv.diagnostics.diagnose",
        "load": "cfiv.estimators.model_file",
    }

    def __getattr__(name: str) -> object:
        """Import a public name when it is first asked for (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value  # asked for once
        return value

    def __dir__() -> list[str]:
        return sorted(__all__)
