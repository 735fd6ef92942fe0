"""The data of published tables: of packages that the tests need anyway, and of three books in small files beside this."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
from linearmodels.datasets import birthweight, card, fertility, jobtraining, meps, mroz, wage_panel

HERE = Path(__file__).parent


def women() -> pd.DataFrame:
    """Mroz (1987): 753 married women; wages of the 428 who work."""
    frame = mroz.load()
    others = (frame["faminc"] - (frame["wage"] * frame["hours"]).fillna(0.0)) / 1000  # the column nwifeinc is off by up to .06
    return frame.assign(nwifeinc=others)


def workers() -> pd.DataFrame:
    """Those of :func:`women` who work."""
    return women().dropna(subset=["lwage"])


def men() -> pd.DataFrame:
    """Card (1995): 3,010 men."""
    return card.load().drop(columns=["IQ", "KWW", "fatheduc", "motheduc", "married", "libcrd14"])


def births() -> pd.DataFrame:
    """Wooldridge's BWGHT: 1,388 births."""
    frame = birthweight.load()
    return frame[["lbwght", "cigprice"]].assign(packs=frame[" cigs"] / 20)  # in the column packs .05 reads 5


def fertilities() -> pd.DataFrame:
    """Sander (1992), Wooldridge's FERTIL1: 1,129 women in seven years of the General Social Survey."""
    return fertility.load()


def firms() -> pd.DataFrame:
    """Holzer, Block, Cheatham and Knott (1993), Wooldridge's JTRAIN: changes from 1987 to 1988 of 45 firms with scrap rates."""
    frame = jobtraining.load().query("year == 1988")
    return frame[["clscrap", "chrsemp", "cgrant"]].dropna()


def young_men() -> pd.DataFrame:
    """Vella and Verbeek (1998), Wooldridge's WAGEPAN: 545 men in eight years."""
    return wage_panel.load()


def elderly() -> pd.DataFrame:
    """Cameron and Trivedi's MEPS extract: 10,089 with income."""
    return meps.load().dropna(subset=["linc"])


def states() -> pd.DataFrame:
    """The census of housing that Stata ships as hsng2: 50 states."""
    with resources.as_file(resources.files("linearmodels") / "tests/iv/results/housing.csv") as path:
        return pd.read_csv(path, index_col=0)


def young_wages() -> pd.DataFrame:
    """Griliches (1976), in the sample of Blackburn and Neumark that Hayashi and the help of Stata's ivreg2 use: 758 men."""
    with resources.as_file(resources.files("statsmodels") / "sandbox/regression/tests/griliches76.dta") as path:
        frame = pd.read_stata(path).astype(float)
    return frame.assign(year=frame["year"].astype(int))


def cards() -> pd.DataFrame:
    """Greene's credit cards: 72 that are used."""
    import statsmodels.api as sm

    frame: pd.DataFrame = sm.datasets.ccard.load_pandas().data
    return frame.assign(row=np.arange(len(frame)))


def cigarettes(year: int = 1995) -> pd.DataFrame:
    """Stock and Watson's cigarettes: 48 states; logs of packs a head, real price and income, and real taxes."""
    frame = pd.read_csv(HERE / "cigarettes.csv")
    real = {
        "packs": np.log(frame["packs"]),
        "price": np.log(frame["price"] / frame["cpi"]),
        "income": np.log(frame["income"] / frame["population"] / frame["cpi"]),
        "salestax": (frame["taxs"] - frame["tax"]) / frame["cpi"],
        "cigtax": frame["tax"] / frame["cpi"],
    }
    return pd.DataFrame(real).assign(year=frame["year"], state=frame["state"]).query("year == @year").set_index("state")


def cigarette_changes() -> pd.DataFrame:
    """Those of :func:`cigarettes` from 1985 to 1995."""
    return cigarettes(1995).drop(columns="year") - cigarettes(1985).drop(columns="year")


def klein() -> pd.DataFrame:
    """Klein's (1950) model I: 1921 to 1941, with lags."""
    frame = pd.read_csv(HERE / "klein.csv")
    lags = {f"{name}_1": frame[name].shift() for name in ("P", "X")}
    return frame.assign(**lags, W=frame["Wp"] + frame["Wg"], A=frame["Year"] - 1931).iloc[1:]


def food() -> pd.DataFrame:
    """Kmenta's (1986) demand and supply of food: 20 years."""
    return pd.read_csv(HERE / "kmenta.csv")
