"""Tests of what linear instrumental-variable regression assumes, for the data of any estimator: see :func:`cfiv.diagnose`."""
