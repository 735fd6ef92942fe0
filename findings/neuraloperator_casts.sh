#!/usr/bin/env bash
# neuraloperator 2.0.0 with torch 2.13.0: the ordinary casts of a module leave a Fourier neural operator that cannot run, and say
# so only when it is called, by an error about an einsum. `model.to(torch.float32)`, which changes nothing of a real module in
# single precision, makes the complex weights real (torch warns that imaginary parts are discarded), so that they are lost even if
# it is cast back; `model.double()` makes the real weights double and leaves the complex ones single.
#
# Seen: after .to(torch.float32) "expected scalar type ComplexFloat but found Float", after .double() "expected scalar type
# ComplexDouble but found ComplexFloat"; where each parameter is cast by its kind, outputs agree to single precision's rounding.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 neuraloperator==2.0.0 numpy==2.4.6
env/bin/python - <<'PYTHON'
import copy
import warnings

import torch
from neuralop.models import FNO

torch.manual_seed(0)
model = FNO(n_modes=(4,), in_channels=1, out_channels=1, hidden_channels=8).eval()
inputs = torch.randn(5, 1, 32)


def answer(module, values):
    try:
        with torch.no_grad():
            return module(values)
    except RuntimeError as error:
        return str(error).splitlines()[0]


def cast_by_kind(module):
    for parameter in module.parameters():
        parameter.data = parameter.data.to(torch.complex128 if parameter.is_complex() else torch.float64)
    return module


before = answer(model, inputs)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    single = copy.deepcopy(model).to(torch.float32)
double = copy.deepcopy(model).double()
print("to(float32):", answer(single, inputs), "| warned:", [str(warning.message)[:54] for warning in caught])
print("double():", answer(double, inputs.double()))
right = answer(cast_by_kind(copy.deepcopy(model)), inputs.double())
away = float((right - before).abs().max() / before.abs().max())
print(f"cast by kind: {away:.1g} of the outputs' size away")
assert "ComplexFloat but found Float" in answer(single, inputs) and caught
assert "ComplexDouble but found ComplexFloat" in answer(double, inputs.double())
assert not any(parameter.is_complex() for parameter in single.parameters())
assert away < 1e-5
PYTHON
