"""What a fresh process pays for before its first fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.contract

FITS = """
import sys, numpy as np, pandas as pd, torch
from torch import nn
import cfiv

def dropping(inputs):
    return nn.Sequential(nn.Linear(inputs, 8), nn.SiLU(), nn.Dropout(0.2), nn.Linear(8, 2))

r = np.random.default_rng(0)
rows = pd.DataFrame(r.normal(size=(200, 3)), columns=["z", "x", "u"])
rows["t"] = rows.z + rows.u
rows["y"] = rows.t + rows.x + rows.u
rows.to_csv("rows.csv", index=False)
formula, quick = "y ~ x + [t ~ z]", {"steps": 3, "progress": False, "random_state": 0}
networks = {"treatment_network": dropping, "instrument_network": dropping, "covariate_network": dropping}
module = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))
x = torch.linspace(-1, 1, 50)[:, None]
for name, fit in {
    "DFIV": lambda: cfiv.DFIV(formula, **quick).fit(rows),
    "dropout": lambda: cfiv.DFIV(formula, **networks, **quick).fit(rows),
    "KernelIV": lambda: cfiv.KernelIV(formula).fit(rows),
    "NetworkRegression": lambda: cfiv.NetworkRegression(formula, **quick).fit(rows),
    "AGMM": lambda: cfiv.AGMM(formula, **quick).fit(rows),
    "DeepIV": lambda: cfiv.DeepIV(formula, **quick).fit(rows),
    "trainer": lambda: cfiv.LastLayerTrainer(module, batch_size=10).fit((x, x.sin()), steps=3),
    "infer": lambda: cfiv.infer(rows, cfiv.KernelIV(formula).fit(rows)).average_derivative(),
}.items():
    fitted = fit()
    if name in {"DFIV", "KernelIV", "NetworkRegression", "AGMM", "DeepIV"}:
        fitted.save("model.safetensors")
        cfiv.load("model.safetensors").predict(rows)
    assert not {"torch._dynamo", "sympy"} & set(sys.modules), name
"""
COMMAND = """
import sys
from cfiv.cli import main
try:
    main(["fit", "rows.csv", "y ~ x + [t ~ z]", "--steps", "3", "--out", "model.safetensors"])
except SystemExit as end:
    assert end.code == 0
assert not {"torch._dynamo", "sympy"} & set(sys.modules)
"""


def test_no_fit_or_load_imports_the_compiler_of_torch_or_its_symbols(tmp_path: Path) -> None:
    for program in (FITS, COMMAND):
        ran = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", program], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert ran.returncode == 0, ran.stderr
