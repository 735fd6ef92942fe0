#!/usr/bin/env bash
# neuraloperator 2.0.0 with torch 2.13.0: SpectralConv with `complex_data=True` keeps the wrong modes. In one dimension it keeps the
# frequencies 0 to m - 1 of n_modes=(m,) and drops all negative ones, which complex data has on their own. In two it keeps, of the last
# dimension, the m most negative of the grid and drops the lowest (a constant is gone), and what it keeps comes out at other frequencies,
# since the last dimension is shifted and never shifted back. Those around zero are meant, as for real data. Nothing is said.
#
# Seen with weights of one, n_modes 6 each and exp(ikx) on 32 points, in the share of it that comes back: 1 for k = 0 to 5 and 0 for
# k = -3 to -1 in one dimension; 0 for each k from -3 to 2 along the last of two dimensions. exp(-16ix) comes back as exp(0ix).
# The same layer for real data, in two dimensions, has 1 for cos(kx), k = 0 to 2, along either.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 neuraloperator==2.0.0 numpy==2.4.6
env/bin/python - <<'PYTHON'
import numpy as np
import torch
from neuralop.layers.spectral_convolution import SpectralConv

points, modes = 32, 6
angles = 2 * np.pi * np.arange(points) / points


def spectrum(values, dimensions, axis=-1, kind=True):
    """The output of a layer of ones for values along one axis, as Fourier coefficients by frequency along that axis."""
    layer = SpectralConv(1, 1, (modes,) * dimensions, bias=False, complex_data=kind)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1.0)
        field = values if dimensions == 1 else np.broadcast_to(np.moveaxis(values[None], -1, axis), (points, points)).copy()
        inputs = torch.tensor(field)[None, None]
        output = layer(inputs.to(torch.complex64 if kind else torch.float32))[0, 0].numpy()
    if dimensions == 1:
        found = np.fft.fft(output) / points
    else:
        found = np.moveaxis(np.fft.fft2(output) / points**2, axis, -1)[0]
    return {int(k): complex(c) for k, c in zip(np.fft.fftfreq(points, 1 / points), found)}


wave = {k: np.exp(1j * k * angles) for k in range(-16, 16)}
line = {k: round(abs(spectrum(wave[k], 1)[k]), 3) for k in range(-3, 6)}
plane = {k: round(abs(spectrum(wave[k], 2)[k]), 3) for k in range(-3, 6)}
print("share of exp(ikx) that comes back, one dimension:", line)
print("the same, last of two dimensions:", plane)
assert all(line[k] == (k >= 0) for k in line)
assert not any(plane.values())
lowest = spectrum(wave[-16], 2)
print("exp(-16ix) along the last of two comes back at:", {k: round(abs(c), 3) for k, c in lowest.items() if abs(c) > 1e-3})
assert abs(abs(lowest[0]) - 1) < 1e-3 and abs(lowest[-16]) < 1e-3
real = {(axis, k): round(abs(spectrum(np.cos(k * angles), 2, axis, kind=False)[k]) * (1 if k == 0 else 2), 3) for axis in (0, 1) for k in range(3)}
print("real data, share of cos(kx) by axis and k:", real)
assert all(share == 1 for share in real.values())
PYTHON
