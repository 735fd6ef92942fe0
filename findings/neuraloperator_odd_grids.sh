#!/usr/bin/env bash
# neuraloperator 2.0.0 with torch 2.13.0: in two dimensions or more SpectralConv, the layer of the Fourier neural operator, moves every
# mode by one frequency where a dimension other than the last has an odd number of points: after the product it undoes numpy's and
# torch's fftshift by fftshift, whose inverse is ifftshift. For even sizes they are the same. So the layer does not carry over between
# grids, which is what it is for, and the output on an odd grid is another function, without a word.
#
# Seen with weights of one, so that the layer is the identity on a function within its modes, as the largest error: below 1e-6 on
# 30 x 30, 60 x 60 and 30 x 31 points, 2.1 on 31 x 30, 31 x 31 and 61 x 61, where the function itself goes from -.8 to 2.5. In one
# dimension, which is not shifted, below 1e-6 on 31 points too. By hand in numpy, with ifftshift, about 1e-15 everywhere.
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

torch.manual_seed(0)


def function(*sizes):
    """One of the lowest frequencies, at the points 0, 1 / n, 2 / n and so on of each dimension."""
    x, *rest = np.meshgrid(*[2 * np.pi * np.arange(size) / size for size in sizes], indexing="ij")
    y = rest[0] if rest else 0.0
    return 1 + np.cos(x) + 0.5 * np.sin(x + y) + 0.3 * np.cos(2 * y)


def layer_of_ones(dimensions):
    layer = SpectralConv(1, 1, (6,) * dimensions, bias=False)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.fill_(1.0)
    return layer


def away(*sizes):
    values = function(*sizes)
    with torch.no_grad():
        output = layer_of_ones(len(sizes))(torch.tensor(values, dtype=torch.float32)[None, None])[0, 0].numpy()
    return float(np.abs(output - values).max())


def by_hand(height, width, back):
    """Modes -3 to 2 of the first dimension and 0 to 3 of the second, kept; `back` undoes the shift."""
    modes = np.fft.fftshift(np.fft.rfft2(function(height, width)), axes=0)
    kept, middle = np.zeros_like(modes), height // 2
    kept[middle - 3:middle + 3, :4] = modes[middle - 3:middle + 3, :4]
    return float(np.abs(np.fft.irfft2(back(kept, axes=0), s=(height, width)) - function(height, width)).max())


print(f"the function goes from {function(60, 60).min():.1f} to {function(60, 60).max():.1f}")
for sizes in ((30, 30), (60, 60), (30, 31), (31, 30), (31, 31), (61, 61)):
    seen, right, wrong = away(*sizes), by_hand(*sizes, np.fft.ifftshift), by_hand(*sizes, np.fft.fftshift)
    print(f"{sizes[0]} x {sizes[1]}: largest error {seen:.2g}; by hand with ifftshift {right:.2g}, with fftshift {wrong:.2g}")
    assert right < 1e-12 and np.isclose(seen, wrong, atol=1e-5)
    assert seen > 0.5 if sizes[0] % 2 else seen < 1e-5
line = {size: away(size) for size in (30, 31)}
print("one dimension:", {size: f"{error:.2g}" for size, error in line.items()})
assert max(line.values()) < 1e-5
PYTHON
