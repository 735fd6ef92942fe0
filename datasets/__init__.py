"""Designs with a known truth and pairs of functions (``simulate``), and real data sets (``load``), one module each.

Installed as ``cfiv.datasets``.
"""
