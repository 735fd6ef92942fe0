#!/usr/bin/env bash
# formulaic 1.2.2: exp10(x) in a formula is the tenth power of x, not ten to the power of x. The function is there beside log10,
# exp and exp2, which are what they are called, so a model in exp10 fits without a word, of another regressor.
#
# Seen for x = 1, 2, 3: exp10 gives 1, 1024, 59049 (x ** 10), where 10, 100, 1000 are meant; exp2 gives 2, 4, 8.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check formulaic==1.2.2 pandas==3.1.1 numpy==2.4.6 scipy==1.17.1
env/bin/python - <<'PYTHON'
import numpy as np
import pandas as pd
from formulaic import model_matrix

table = pd.DataFrame({"x": [1.0, 2.0, 3.0]})
matrix = model_matrix("exp10(x) + exp2(x) + log10(x)", table)
print(matrix)
assert np.allclose(matrix["exp10(x)"], table.x**10)
assert not np.allclose(matrix["exp10(x)"], 10**table.x)
assert np.allclose(matrix["exp2(x)"], 2**table.x)
assert np.allclose(matrix["log10(x)"], np.log10(table.x))
PYTHON
