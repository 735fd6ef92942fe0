"""Tables that textbooks and manuals print, each by its one-line call: equal to the last printed digit, errors included."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pytest

from cfiv import LIML, LeastSquares, TwoStageLeastSquares
from tests.published import data

#: What textbooks print: Stata's ``regress`` and ``ivregress, small``; with ``vce(robust)``; ``ivregress`` without ``small``.
PLAIN: dict[str, Any] = {"covariance": "unadjusted", "debiased": True}
HC1: dict[str, Any] = {"covariance": "robust", "debiased": True}
LARGE: dict[str, Any] = {"covariance": "unadjusted"}
HC0: dict[str, Any] = {"covariance": "robust"}

CARD = "exper + expersq + black + smsa + south + smsa66 + " + " + ".join(f"reg{i}" for i in range(662, 670))
FERTILITY = "age + agesq + black + east + northcen + west + farm + othrural + town + smcity + y74 + y76 + y78 + y80 + y82 + y84"
PARTICIPATION = "inlf ~ nwifeinc + exper + expersq + age + kidslt6 + kidsge6 + [educ ~ motheduc]"
HEALTH = "ldrugexp ~ totchr + age + female + blhisp + linc + [hi_empunion ~ ssiratio]"
EXPENDITURE = "AVGEXP ~ AGE + OWNRENT + INCOMESQ + [INCOME ~ row]"
RENT = "rent ~ pcturban + [hsngval ~ faminc + C(region)]"
CONSUMPTION = "C ~ P_1 + [P + W ~ G + T + Wg + A + K_1 + X_1]"
INVESTMENT = "I ~ P_1 + K_1 + [P ~ G + T + Wg + A + X_1]"
WAGES = "Wp ~ X_1 + A + [X ~ G + T + Wg + P_1 + K_1]"
INTRODUCTION = "Wooldridge, Introductory Econometrics, example"
HILL = "Hill, Griffiths and Lim, Principles of Econometrics, chapter 10, wages of married women"
STOCK = "Stock and Watson, Introduction to Econometrics, 2nd edition,"
TRIVEDI = "Cameron and Trivedi, Microeconometrics Using Stata, section 6.3,"
SAS = "SAS/ETS User's Guide, PROC SYSLIN, Klein's model I estimated with LIML,"


@dataclass(frozen=True)
class Table:
    """What was printed, and the call that gives it. Least squares does not use the instruments that its formula names."""

    source: str
    load: Callable[[], pd.DataFrame]
    model: Any
    rows: int
    printed: str


TABLES = [
    Table(
        f"{INTRODUCTION} 15.1, least squares",
        data.workers,
        LeastSquares("lwage ~ [educ ~ fatheduc]", **PLAIN),
        428,
        "Intercept -.185 (.185) educ .109 (.014)",
    ),
    Table(
        f"{INTRODUCTION} 15.1",
        data.workers,
        TwoStageLeastSquares("lwage ~ [educ ~ fatheduc]", **PLAIN),
        428,
        "Intercept .441 (.446) educ .059 (.035)",
    ),
    Table(
        f"{INTRODUCTION} 15.3",
        data.births,
        TwoStageLeastSquares("lbwght ~ [packs ~ cigprice]", **PLAIN),
        1388,
        "Intercept 4.45 (.91) packs 2.99 (8.70)",
    ),
    Table(
        f"{INTRODUCTION} 15.4, table 15.1, least squares",
        data.men,
        LeastSquares(f"lwage ~ {CARD} + [educ ~ nearc4]", **PLAIN),
        3010,
        "educ .075 (.003) exper .085 (.007) expersq -.0023 (.0003) black -.199 (.018) smsa .136 (.020) south -.148 (.026)",
    ),
    Table(
        f"{INTRODUCTION} 15.4, table 15.1; Card (1995), table 3",
        data.men,
        TwoStageLeastSquares(f"lwage ~ {CARD} + [educ ~ nearc4]", **PLAIN),
        3010,
        "educ .132 (.055) exper .108 (.024) expersq -.0023 (.0003) black -.147 (.054) smsa .112 (.032) south -.145 (.027)",
    ),
    Table(
        f"{INTRODUCTION} 15.5; Econometric Analysis of Cross Section and Panel Data, example 5.3",
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]", **PLAIN),
        428,
        "Intercept .048 (.400) educ .061 (.031) exper .044 (.013) expersq -.0009 (.0004)",
    ),
    Table(
        f"{INTRODUCTION} 15.8",
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc + huseduc]", **PLAIN),
        428,
        "educ .080 (.022) exper .043 (.013) expersq -.0009 (.0004)",
    ),
    Table(
        f"{INTRODUCTION} 15.9",
        data.fertilities,
        TwoStageLeastSquares(f"kids ~ {FERTILITY} + [educ ~ meduc + feduc]", **PLAIN),
        1129,
        "educ -.153 (.039)",
    ),
    Table(
        f"{INTRODUCTION} 15.10",
        data.firms,
        TwoStageLeastSquares("clscrap ~ [chrsemp ~ cgrant]", **PLAIN),
        45,
        "Intercept -.033 (.127) chrsemp -.014 (.008)",
    ),
    Table(
        f"{INTRODUCTION} 16.5, hours, least squares",
        data.workers,
        LeastSquares("hours ~ educ + age + kidslt6 + nwifeinc + [lwage ~ exper + expersq]", **PLAIN),
        428,
        "lwage -2.05 (54.88)",
    ),
    Table(
        f"{INTRODUCTION} 16.5, hours",
        data.workers,
        TwoStageLeastSquares("hours ~ educ + age + kidslt6 + nwifeinc + [lwage ~ exper + expersq]", **PLAIN),
        428,
        "Intercept 2225.66 (574.56) lwage 1639.56 (470.58) educ -183.75 (59.10) age -7.81 (9.38) kidslt6 -198.15 (182.93) "
        "nwifeinc -10.17 (6.61)",
    ),
    Table(
        f"{INTRODUCTION} 16.5, wages",
        data.workers,
        TwoStageLeastSquares("lwage ~ educ + exper + expersq + [hours ~ age + kidslt6 + nwifeinc]", **PLAIN),
        428,
        "Intercept -.656 (.338) hours .00013 (.00025) educ .110 (.016) exper .035 (.019) expersq -.00071 (.00045)",
    ),
    Table(
        f"{INTRODUCTION} 8.8, participation, usual errors",
        data.women,
        LeastSquares(PARTICIPATION, **PLAIN),
        753,
        "Intercept .586 (.154) nwifeinc -.0034 (.0014) educ .038 (.007) exper .039 (.006) expersq -.00060 (.00018) "
        "age -.016 (.002) kidslt6 -.262 (.034) kidsge6 .0130 (.0132)",
    ),
    Table(
        f"{INTRODUCTION} 8.8, participation, robust errors",
        data.women,
        LeastSquares(PARTICIPATION, **HC0),
        753,
        "Intercept .586 (.151) nwifeinc -.0034 (.0015) educ .038 (.007) exper .039 (.006) expersq -.00060 (.00019) "
        "age -.016 (.002) kidslt6 -.262 (.032) kidsge6 .0130 (.0135)",
    ),
    Table(
        f"{INTRODUCTION} 13.1, as Stata prints it",
        data.fertilities,
        LeastSquares(f"kids ~ {FERTILITY} + [educ ~ meduc + feduc]", **PLAIN),
        1129,
        "educ -.1284268 (.0183486) age .5321346 (.1383863) agesq -.005804 (.0015643) black 1.075658 (.1735356) "
        "east .217324 (.1327878) northcen .363114 (.1208969) west .1976032 (.1669134) farm -.0525575 (.14719) "
        "othrural -.1628537 (.175442) town .0843532 (.124531) smcity .2118791 (.160296) y74 .2681825 (.172716) "
        "y76 -.0973795 (.1790456) y78 -.0686665 (.1816837) y80 -.0713053 (.1827707) y82 -.5224842 (.1724361) "
        "y84 -.5451661 (.1745162) Intercept -7.742457 (3.051767)",
    ),
    Table(
        f"{INTRODUCTION} 14.4, table 14.2, pooled least squares",
        data.young_men,
        LeastSquares("lwage ~ educ + black + hisp + exper + expersq + married + C(year) + [union ~ hours]", **PLAIN),
        4360,
        "educ .091 (.005) black -.139 (.024) hisp .016 (.021) exper .067 (.014) expersq -.0024 (.0008) married .108 (.016) "
        "union .182 (.017)",
    ),
    Table(
        f"{HILL}, least squares",
        data.workers,
        LeastSquares("lwage ~ exper + expersq + [educ ~ motheduc]", **PLAIN),
        428,
        "Intercept -.5220 (.1986) educ .1075 (.0141) exper .0416 (.0132) expersq -.0008 (.0004)",
    ),
    Table(
        f"{HILL}, one instrument",
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc]", **PLAIN),
        428,
        "Intercept .1982 (.4729) educ .0493 (.0374) exper .0449 (.0136) expersq -.0009 (.0004)",
    ),
    Table(
        f"{HILL}, two instruments",
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]", **PLAIN),
        428,
        "Intercept .0481 (.4003) educ .0614 (.0314) exper .0442 (.0134) expersq -.0009 (.0004)",
    ),
    Table(
        f"{STOCK} equation 12.11",
        data.cigarettes,
        TwoStageLeastSquares("packs ~ [price ~ salestax]", **HC1),
        48,
        "Intercept 9.72 (1.53) price -1.08 (.32)",
    ),
    Table(
        f"{STOCK} equation 12.15",
        data.cigarettes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax]", **HC1),
        48,
        "Intercept 9.43 (1.26) price -1.14 (.37) income .21 (.31)",
    ),
    Table(
        f"{STOCK} equation 12.16",
        data.cigarettes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax + cigtax]", **HC1),
        48,
        "Intercept 9.89 (.96) price -1.28 (.25) income .28 (.25)",
    ),
    Table(
        f"{STOCK} table 12.1, column 1",
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax]", **HC1),
        48,
        "price -.94 (.21) income .53 (.34) Intercept -.12 (.07)",
    ),
    Table(
        f"{STOCK} table 12.1, column 2",
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ cigtax]", **HC1),
        48,
        "price -1.34 (.23) income .43 (.30) Intercept -.02 (.07)",
    ),
    Table(
        f"{STOCK} table 12.1, column 3",
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax + cigtax]", **HC1),
        48,
        "price -1.20 (.20) income .46 (.31) Intercept -.05 (.06)",
    ),
    Table(
        f"{TRIVEDI} least squares",
        data.elderly,
        LeastSquares(HEALTH, **HC1),
        10089,
        "hi_empunion .0738788 (.0259848) totchr .4403807 (.0093633) age -.0035295 (.001937) female .0578055 (.0253651) "
        "blhisp -.1513068 (.0341264) linc .0104815 (.0137126) Intercept 5.861131 (.1571037)",
    ),
    Table(
        f"{TRIVEDI} two-stage least squares",
        data.elderly,
        TwoStageLeastSquares(HEALTH, **HC0),
        10089,
        "hi_empunion -.8975913 (.2211268) totchr .4502655 (.0101969) age -.0132176 (.0029977) female -.020406 (.0326114) "
        "blhisp -.2174244 (.0394944) linc .0870018 (.0226356) Intercept 6.78717 (.2688453)",
    ),
    Table(
        "Greene, Econometric Analysis, 7th edition, example 9.2, least squares",
        data.cards,
        LeastSquares(EXPENDITURE, **PLAIN),
        72,
        "Intercept -237.15 (199.35) AGE -3.0818 (5.5147) OWNRENT 27.941 (82.922) INCOME 234.35 (80.366) "
        "INCOMESQ -14.997 (7.4693)",
    ),
    Table(
        "Greene, Econometric Analysis, 7th edition, example 9.2, White's errors",
        data.cards,
        LeastSquares(EXPENDITURE, **HC0),
        72,
        "Intercept -237.15 (212.99) AGE -3.0818 (3.3017) OWNRENT 27.941 (92.188) INCOME 234.35 (88.866) "
        "INCOMESQ -14.997 (6.9446)",
    ),
    Table(
        "Greene, Econometric Analysis, Klein's model I, consumption",
        data.klein,
        TwoStageLeastSquares(CONSUMPTION, **LARGE),
        21,
        "Intercept 16.6 (1.32) P .017 (.118) P_1 .216 (.107) W .810 (.040)",
    ),
    Table(
        "Greene, Econometric Analysis, Klein's model I, wages",
        data.klein,
        TwoStageLeastSquares(WAGES, **LARGE),
        21,
        "Intercept 1.50 (1.15) X .439 (.036) X_1 .147 (.039) A .130 (.029)",
    ),
    Table(
        f"{SAS} consumption",
        data.klein,
        LIML(CONSUMPTION, **PLAIN),
        21,
        "Intercept 17.14765 (2.045374) P -.22251 (.224230) P_1 .396027 (.192943) W .822559 (.061549)",
    ),
    Table(
        f"{SAS} investment",
        data.klein,
        LIML(INVESTMENT, **PLAIN),
        21,
        "Intercept 22.59083 (9.498146) P .075185 (.224712) P_1 .680386 (.209145) K_1 -.16826 (.045345)",
    ),
    Table(
        f"{SAS} wages",
        data.klein,
        LIML(WAGES, **PLAIN),
        21,
        "Intercept 1.526187 (1.320838) X .433941 (.075507) X_1 .151321 (.074527) A .131593 (.035995)",
    ),
    Table(
        "Kmenta's demand and supply of food, by tsls of R's sem: demand",
        data.food,
        TwoStageLeastSquares("Q ~ D + [P ~ F + A]", **PLAIN),
        20,
        "Intercept 94.6333 (7.92084) P -.24356 (.09648) D .31399 (.04694)",
    ),
    Table(
        "Kmenta's demand and supply of food, by tsls of R's sem: supply",
        data.food,
        TwoStageLeastSquares("Q ~ F + A + [P ~ D]", **PLAIN),
        20,
        "Intercept 49.5324 (12.01053) P .24008 (.09993) F .25561 (.04725) A .25292 (.09966)",
    ),
    Table(
        "Stata Base Reference Manual, ivregress 2sls",
        data.states,
        TwoStageLeastSquares(RENT, **LARGE),
        50,
        "hsngval .0022398 (.0003284) pcturban .081516 (.2987652) Intercept 120.7065 (15.22839)",
    ),
    Table(
        "Stata Base Reference Manual, ivregress liml",
        data.states,
        LIML(RENT, **LARGE),
        50,
        "hsngval .0026686 (.0004173) pcturban -.1827391 (.3571132) Intercept 117.6087 (17.22625)",
    ),
]


def rounded(number: float, printed: str) -> str:
    """With as many decimals as were printed, and no zero before the point where there was none."""
    _, _, decimals = printed.partition(".")
    text = f"{number:.{len(decimals)}f}"
    return text.replace("0.", ".", 1) if printed.lstrip("-").startswith(".") else text


@pytest.mark.oracle
@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.source)
def test_estimates_and_standard_errors_are_those_printed(table: Table) -> None:
    model = table.model.fit(table.load())
    assert model.n_rows_ == table.rows
    found = model.coefficients_
    printed = re.findall(r"(\w+) (-?[\d.]+) \(([\d.]+)\)", table.printed)
    assert len(printed) == table.printed.count("(")
    ours = [
        (name, rounded(found.loc[name, "coefficient"], value), rounded(found.loc[name, "std_error"], error))
        for name, value, error in printed
    ]
    assert ours == printed


#: A model, what to ask of its results, and what was printed.
STATISTICS: dict[str, tuple[Callable[[], pd.DataFrame], Any, Callable[[Any], float], str]] = {
    f"{INTRODUCTION} 15.1, R-squared": (
        data.workers,
        TwoStageLeastSquares("lwage ~ [educ ~ fatheduc]"),
        lambda r: r.rsquared,
        ".093",
    ),
    f"{INTRODUCTION} 15.1, first stage": (
        data.workers,
        TwoStageLeastSquares("lwage ~ [educ ~ fatheduc]", **PLAIN),
        lambda r: r.first_stage.individual["educ"].std_errors["fatheduc"],
        ".029",
    ),
    f"{INTRODUCTION} 15.4, first stage": (
        data.men,
        TwoStageLeastSquares(f"lwage ~ {CARD} + [educ ~ nearc4]", **PLAIN),
        lambda r: r.first_stage.individual["educ"].params["nearc4"],
        ".320",
    ),
    f"{INTRODUCTION} 15.5, R-squared": (
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]"),
        lambda r: r.rsquared,
        ".136",
    ),
    f"{HILL}, first-stage F": (
        data.workers,
        TwoStageLeastSquares("lwage ~ exper + expersq + [educ ~ motheduc + fatheduc]", **PLAIN),
        lambda r: r.first_stage.diagnostics.loc["educ", "f.stat"],
        "55.40",
    ),
    f"{STOCK} table 12.1, F of column 1": (
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax]", **HC1),
        lambda r: r.first_stage.diagnostics.loc["price", "f.stat"],
        "33.7",
    ),
    f"{STOCK} table 12.1, F of column 2": (
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ cigtax]", **HC1),
        lambda r: r.first_stage.diagnostics.loc["price", "f.stat"],
        "107.2",
    ),
    f"{STOCK} table 12.1, F of column 3": (
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax + cigtax]", **HC1),
        lambda r: r.first_stage.diagnostics.loc["price", "f.stat"],
        "88.6",
    ),
    f"{STOCK} table 12.1, J": (
        data.cigarette_changes,
        TwoStageLeastSquares("packs ~ income + [price ~ salestax + cigtax]", **HC1),
        lambda r: r.basmann.stat,
        "4.93",
    ),
    "Stata, estat endogenous, Durbin": (data.states, TwoStageLeastSquares(RENT), lambda r: r.durbin().stat, "12.8473"),
    "Stata, estat endogenous, Wu and Hausman": (
        data.states,
        TwoStageLeastSquares(RENT),
        lambda r: r.wu_hausman().stat,
        "15.9067",
    ),
    "Stata, estat overid, Sargan": (data.states, TwoStageLeastSquares(RENT), lambda r: r.sargan.stat, "11.2877"),
    "Stata, estat overid, Basmann": (data.states, TwoStageLeastSquares(RENT), lambda r: r.basmann.stat, "12.8294"),
    "Stata, estat firststage, F": (
        data.states,
        TwoStageLeastSquares(RENT, **PLAIN),
        lambda r: r.first_stage.diagnostics.loc["hsngval", "f.stat"],
        "13.2978",
    ),
    "Stata, estat firststage, partial R-squared": (
        data.states,
        TwoStageLeastSquares(RENT),
        lambda r: r.first_stage.diagnostics.loc["hsngval", "partial.rsquared"],
        "0.5473",
    ),
}


@pytest.mark.oracle
@pytest.mark.parametrize("name", STATISTICS)
def test_statistics_are_those_printed(name: str) -> None:
    load, model, ask, printed = STATISTICS[name]
    assert rounded(float(ask(model.fit(load()).results_)), printed) == printed
