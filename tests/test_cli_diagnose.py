"""``cfiv diagnose``: it prints and writes what the library computes, and refuses on one line."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

import cfiv
from cfiv.cli import main
from tests.diagnostics.problems import table

FORMULA = "y ~ x + [t ~ z + q]"


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["diagnose", *(str(argument) for argument in arguments)])
    said = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, said.out, said.err


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The table that ``train.csv`` holds."""
    monkeypatch.chdir(tmp_path)
    table().to_csv("train.csv", index=False)
    return pd.read_csv("train.csv")


def test_it_prints_and_writes_what_the_library_computes(train: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--weights", "w", "--clusters", "group", "--level", "0.9", "--seed", "3", "--out", "table.csv"]
    code, out, err = run(capsys, "train.csv", FORMULA, *options)
    assert (code, err) == (0, "")
    expected = cfiv.diagnose(train, FORMULA, weights="w", clusters="group", covariance="clustered", level=0.9, random_state=3)
    assert out == f"{expected}\n\nWritten: table.csv\n"
    written = pd.read_csv("table.csv", keep_default_na=False, na_values={"statistic": "", "p_value": "", "critical_value": ""})
    pd.testing.assert_frame_equal(written, expected.table, check_dtype=False)


def test_the_covariance_is_robust_unless_said_otherwise(train: pd.DataFrame, capsys: pytest.CaptureFixture[str]) -> None:
    assert str(cfiv.diagnose(train, FORMULA)) in run(capsys, "train.csv", FORMULA)[1]
    assert "Covariance   unadjusted" in run(capsys, "train.csv", FORMULA, "--covariance", "unadjusted")[1]
    assert (
        str(cfiv.diagnose(train, FORMULA, covariance="kernel"))
        in run(capsys, "train.csv", FORMULA, "--covariance", "kernel")[1]
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--level", "95"], ["level must be > 0 and < 1", "95"]),
        (["--covariance", "clustered"], ["needs groups of rows"]),
        (["--covariance", "robust", "--clusters", "group"], ["does not use them"]),
        (["--weights", "groups"], ["'groups'", "did you mean 'group'"]),
        (["--out", "train.csv"], ["named twice"]),
        (["--out", "table.txt"], [".csv, .parquet, .tex, .md, .html"]),
        (["--covariance", "HC3"], ["'HC3' is not one of"]),
    ],
)
def test_what_is_refused_is_said_on_one_line(
    arguments: list[str], words: list[str], train: pd.DataFrame, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capsys, "train.csv", FORMULA, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("cfiv: error: ")
    assert err.count("\n") == 1
    for word in words:
        assert word in err
