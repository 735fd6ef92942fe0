"""Designs with a known truth (``simulate``) and real data sets (``load``), one module each. Installed as ``cfiv.datasets``."""
