"""Simulation studies: designs x methods x replications, in a ledger that survives a kill, as tables and figures."""

from cfiv.studies.design import Design, PointwiseTruth
from cfiv.studies.method import Method
from cfiv.studies.metrics import AverageEffect, Band, Coefficient, Doubted, Estimate, Fit, Interval, error, score
from cfiv.studies.report import Report
from cfiv.studies.study import Study

__all__ = [
    "AverageEffect",
    "Band",
    "Coefficient",
    "Design",
    "Doubted",
    "Estimate",
    "Fit",
    "Interval",
    "Method",
    "PointwiseTruth",
    "Report",
    "Study",
    "error",
    "score",
]
