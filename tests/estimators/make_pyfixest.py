"""Makes pyfixest.json, beside this file: ``python -m tests.estimators.make_pyfixest`` where pyfixest is installed."""

import json
import warnings
from itertools import product
from pathlib import Path

from tests.estimators.panel import panel

ERRORS = {
    "unadjusted": "iid",
    "robust": "hetero",
    "firm": {"CRV1": "firm"},
    "region": {"CRV1": "region"},
    "firm + year": {"CRV1": "firm + year"},
}


def records() -> list[list[object]]:
    """Fixed effects, whether instruments are used, errors, weights; and t's coefficient, both errors, p-value, rows."""
    import pyfixest as pf

    warnings.simplefilter("ignore")
    found: list[list[object]] = []
    for effects, instrumented, errors, weights in product(
        ("", "firm", "firm + year", "firm + year + region"), (False, True), ERRORS, (None, "weight")
    ):
        formula = f"y ~ x{'' if instrumented else ' + t'}{f' | {effects}' * bool(effects)}{' | t ~ z' * instrumented}"
        demeaner = {"demeaner": pf.MapDemeaner(fixef_tol=1e-13)} if effects else {}
        fit = pf.feols(formula, panel(), vcov=ERRORS[errors], weights=weights, **demeaner)
        numbers = (fit.coef()["t"], fit.se()["x"], fit.se()["t"], fit.pvalue()["t"])
        found.append([effects, instrumented, errors, weights, *map(float, numbers), int(fit._N)])
    return found


if __name__ == "__main__":
    import pyfixest

    made = {"made by": f"pyfixest {pyfixest.__version__}, tests/estimators/make_pyfixest.py", "records": records()}
    lines = json.dumps(made).replace("[[", "[\n[").replace("], [", "],\n[").replace("]]", "]\n]")
    Path(__file__).with_name("pyfixest.json").write_text(lines + "\n")
