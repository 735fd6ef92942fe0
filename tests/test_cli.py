"""The command line: what it writes is what the library computes, and whatever it refuses it says on one line."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import cfiv
from cfiv.datasets import demand
from cfiv.demonstration import comparison_text
from cfiv.estimators import registry
from cfiv.objectives.dfiv_step import step
from tests.command_line import Answer, Run, runner
from tests.test_terminal import STREAMS

SMALL = ["--steps", "10"]
FIT = ["fit", "train.csv", demand.FORMULA, "--out", "m"]
COMMANDS = ("demo", "simulate", "simulate demand", "fit", "predict", "effect", "dose-response", "plot", "diagnose", "compare")
COMMANDS += ("infer", "study")
LABELS = {registered.name: registered.label for registered in registry.estimators()}
DEMONSTRATED = {registered.name: registered.label for registered in registry.estimators() if registered.demonstrated}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return runner(capsys)


def process(*arguments: str, folder: Path) -> Answer:
    """Run a command line in a process of its own, as a person would."""
    done = subprocess.run(
        [sys.executable, "-m", "cfiv.cli", *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def written(run: Run, *arguments: object) -> str:
    """What a command says that must succeed without a warning."""
    answer = run(*arguments)
    assert (answer.code, answer.err) == (0, "")
    return answer.out


def assert_refused(answer: Answer, *words: str) -> None:
    """Exit code 2 and one line that holds the words."""
    assert answer.code == 2, answer
    assert answer.err.startswith("cfiv: error: "), answer
    assert answer.err.count("\n") == 1, answer
    assert answer.err.endswith("\n"), answer
    for word in words:
        assert word in answer.err, answer


def exact(path: Path | str) -> pd.DataFrame:
    """A CSV file with its numbers as they were written, to the last bit: so reads pandas from 3.1 on, as pinned."""
    return pd.read_csv(path)


@pytest.fixture
def train(run: Run, tmp_path: Path) -> Path:
    """``train.csv`` with 200 rows, and ``grid.csv`` with test points at common prices, in the current folder."""
    written(run, "simulate", "demand", "--n", 200, "--out", "train.csv", "--truth", "grid.csv")
    grid = exact("grid.csv")
    grid[grid["price"].between(15, 20)].to_csv("grid.csv", index=False)
    return tmp_path / "train.csv"


def fitted(run: Run, *options: object, out: str = "model.safetensors") -> str:
    return written(run, "fit", "train.csv", demand.FORMULA, *SMALL, "--out", out, *options)


# What it computes


def test_simulate_writes_the_design_and_its_truth_exactly(run: Run) -> None:
    written(run, "simulate", "demand", "--n", 50, "--rho", -0.3, "--seed", 4, "--out", "a.csv", "--truth", "b.csv")
    data, truth = demand.simulate(50, rho=-0.3, seed=4)
    assert data.frame is not None
    pd.testing.assert_frame_equal(exact("a.csv"), data.frame, check_exact=True)
    pd.testing.assert_frame_equal(exact("b.csv"), truth.grid, check_exact=True)


@pytest.mark.law
def test_a_folder_of_parquet_files_is_fitted_as_the_table_that_they_make(run: Run, train: Path) -> None:
    rows, grid = exact(train), exact("grid.csv")
    Path("rows").mkdir()
    for i in range(2):
        rows[i * 100 : (i + 1) * 100].to_parquet(f"rows/{i}.parquet")
    fitted(run, out="table")
    written(run, "fit", "rows", demand.FORMULA, *SMALL, "--out", "folder")
    np.testing.assert_array_equal(cfiv.load("folder").predict(grid), cfiv.load("table").predict(grid))


@pytest.mark.law
@pytest.mark.parametrize("suffix", ["csv", "parquet"])
@pytest.mark.parametrize("estimator", LABELS)
def test_simulate_fit_predict_equal_the_library_bit_for_bit(run: Run, estimator: str, suffix: str) -> None:
    train, grid, out = f"train.{suffix}", f"grid.{suffix}", f"out.{suffix}"
    written(run, "simulate", "demand", "--n", 200, "--seed", 3, "--out", train, "--truth", grid)
    registered = registry.estimator(estimator)
    options = SMALL if registered.takes("steps") else []
    written(run, "fit", train, demand.FORMULA, "--estimator", estimator, "--seed", 5, *options, "--out", "model.safetensors")
    assert run("predict", "model.safetensors", grid, "--out", out).code == 0
    data, truth = demand.simulate(200, rho=0.5, seed=3)
    arguments: dict[str, Any] = {"steps": 10, "random_state": 5, "progress": False}
    model = registered.make(demand.FORMULA, **{name: value for name, value in arguments.items() if registered.takes(name)})
    model.fit(train if suffix == "parquet" else data)  # which is read in blocks, whose sums are in another order
    expected = truth.grid.assign(estimate=model.predict(truth.grid), supported=model.supported(truth.grid))
    predictions = exact(out) if suffix == "csv" else pd.read_parquet(out)
    pd.testing.assert_frame_equal(predictions, expected, check_exact=True)


def test_a_seed_decides_the_model_file_byte_for_byte(run: Run, train: Path) -> None:
    files = []
    for number, seed in enumerate([1, 1, 2]):
        fitted(run, "--seed", seed, out=f"model{number}")
        files.append((train.parent / f"model{number}").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_fit_prints_the_summary_of_the_model_it_writes(run: Run, train: Path) -> None:
    said = fitted(run)
    assert said.startswith(str(cfiv.load("model.safetensors").summary()))
    assert said.rstrip().endswith("Written: model.safetensors")


def test_quiet_says_nothing_and_changes_no_number(run: Run, train: Path) -> None:
    fitted(run, out="loud")
    assert fitted(run, "--quiet", out="quiet") == ""
    assert (train.parent / "quiet").read_bytes() == (train.parent / "loud").read_bytes()


def test_weights_are_used(run: Run, train: Path) -> None:
    frame = exact(train).assign(w=np.arange(200.0))
    frame.to_csv("weighted.csv", index=False)
    written(run, "fit", "weighted.csv", demand.FORMULA, "--estimator", "2sls", "--weights", "w", "--out", "model")
    model = cfiv.TwoStageLeastSquares(demand.FORMULA, weights="w").fit(frame)
    rows = frame[["price", "time", "emotion"]]
    assert (cfiv.load("model").predict(rows) == model.predict(rows)).all()


def test_predict_leaves_the_columns_of_a_csv_file_as_they_are_written(run: Run, train: Path) -> None:
    fitted(run)
    Path("rows.csv").write_text('id,price,time,emotion,note\n007,10.50,1e0,+3,NA\n008,11,2.0,4.00,"a, b"\n')
    written(run, "predict", "model.safetensors", "rows.csv", "--out", "out.csv")
    before, after = (pd.read_csv(name, dtype=str, na_filter=False) for name in ("rows.csv", "out.csv"))
    pd.testing.assert_frame_equal(after.drop(columns=["estimate", "supported"]), before)
    rows = pd.DataFrame({"price": [10.5, 11.0], "time": [1.0, 2.0], "emotion": [3.0, 4.0]})
    assert exact("out.csv")["estimate"].tolist() == cfiv.load("model.safetensors").predict(rows).tolist()


def test_predict_marks_and_warns_of_prices_in_another_unit(run: Run, train: Path) -> None:
    fitted(run)
    exact(train).assign(price=lambda f: np.where(f.index < 20, 100, 1) * f["price"]).to_csv("rows.csv", index=False)
    answer = run("predict", "model.safetensors", "rows.csv", "--out", "out.csv")
    assert answer.code == 0
    assert answer.err.startswith("cfiv: warning: 20 of 200 rows are outside of what training has seen: 'price' is ")
    assert exact("out.csv")["supported"].tolist() == [False] * 20 + [True] * 180


def test_predict_reads_digits_as_text_where_training_had_text(run: Run, train: Path) -> None:
    """Among other codes pandas read the code 2 as text, alone it would read a number."""
    frame = exact(train).assign(code=pd.Series(["02", "2", "A1", "3"] * 50))
    frame.to_csv("coded.csv", index=False)
    written(run, "fit", "coded.csv", f"{demand.FORMULA} + C(code)", "--estimator", "2sls", "--out", "model")
    rows = frame[:2].drop(columns="sales")
    rows.to_csv("rows.csv", index=False)
    written(run, "predict", "model", "rows.csv", "--out", "out.csv")
    assert exact("out.csv")["estimate"].tolist() == cfiv.load("model").predict(rows).tolist()


def test_predict_reads_one_format_and_writes_the_other(run: Run, train: Path) -> None:
    fitted(run)
    written(run, "predict", "model.safetensors", "grid.csv", "--out", "a.parquet")
    pd.read_parquet("a.parquet").drop(columns=["estimate", "supported"]).to_parquet("grid.parquet")
    written(run, "predict", "model.safetensors", "grid.parquet", "--out", "b.csv")
    pd.testing.assert_frame_equal(exact("b.csv"), pd.read_parquet("a.parquet"), check_exact=True)


def test_the_named_index_of_a_parquet_file_is_a_column(run: Run, train: Path) -> None:
    exact(train).set_index("emotion").to_parquet("train.parquet")
    written(run, "fit", "train.parquet", demand.FORMULA, "--estimator", "2sls", "--out", "model")
    rows = exact("grid.csv")
    model = cfiv.TwoStageLeastSquares(demand.FORMULA).fit(exact(train))
    np.testing.assert_allclose(cfiv.load("model").predict(rows), model.predict(rows), rtol=1e-12)


def test_a_folder_of_parquet_files_is_fitted_as_one_table(run: Run, train: Path) -> None:
    rows = exact(train)
    Path("parts").mkdir()
    for i in range(2):
        rows[i::2].to_parquet(f"parts/{i}.parquet")
    for place in ("parts", "parts/"):
        written(run, "fit", place, demand.FORMULA, "--estimator", "2sls", "--out", "model")
        expected = cfiv.TwoStageLeastSquares(demand.FORMULA).fit(rows).predict(rows)
        np.testing.assert_allclose(cfiv.load("model").predict(rows), expected, rtol=1e-10)
    answer = run("infer", "parts", demand.FORMULA, "--derivative")
    assert answer.code == 0
    assert answer.out == run("infer", train, demand.FORMULA, "--derivative").out


# The demonstration


def test_the_demonstration_writes_its_files_and_says_how_near_the_truth_they_are(run: Run, tmp_path: Path) -> None:
    answer = run("demo", "--n", 300, "--steps", 20, "--seed", 2, "--out", "made/here")
    assert answer.code == 0
    assert all("not to be believed" in line for line in answer.err.splitlines()), "of a fit with few rows and steps"
    folder = tmp_path / "made" / "here"
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["estimates.csv", "structural_function.png", *(f"{name}.safetensors" for name in DEMONSTRATED)]
    )
    estimates = exact(folder / "estimates.csv")
    assert list(estimates.columns) == ["price", "time", "emotion", "structural", *DEMONSTRATED.values()]
    pd.testing.assert_frame_equal(estimates.iloc[:, :4], demand.test_grid(), check_exact=True)
    for name, label in DEMONSTRATED.items():
        assert (cfiv.load(folder / f"{name}.safetensors").predict(estimates) == estimates[label]).all()
        error = float(((estimates[label] - estimates["structural"]) ** 2).mean())
        (line,) = [line for line in answer.out.splitlines() if line.startswith(f"{label}  ")]
        assert line.removeprefix(label).split()[:2] == [f"{error:,.0f}", f"{error**0.5:,.1f}"]
    assert (folder / "structural_function.png").read_bytes().startswith(b"\x89PNG")
    assert max(len(line) for line in answer.out.splitlines()) <= 80
    assert run("demo", "--n", 300, "--steps", 20, "--seed", 2, "--out", "again").code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()
    }


def test_labels_that_numbers_would_make_one_of_stay_apart(run: Run, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    z, u = generator.normal(size=(2, 90))
    codes = np.array(["01", "1", "2"])[np.arange(90) % 3]
    shift = pd.Series(codes).map({"01": 5.0, "1": 7.0, "2": 9.0}).to_numpy()
    table = pd.DataFrame({"y": 2 * (z + u) + u + shift, "t": z + u, "z": z, "code": codes, "plain": np.arange(90) % 4})
    table.to_csv(tmp_path / "codes.csv", index=False)
    formula = "y ~ 0 + C(code) + [t ~ z]"
    answer = run("fit", "codes.csv", formula, "--estimator", "2sls", "--out", "codes.st")
    assert (answer.code, answer.err) == (0, "")
    expected = cfiv.TwoStageLeastSquares(formula).fit(table)
    assert list(expected.coefficients_.index) == ["C(code)[01]", "C(code)[1]", "C(code)[2]", "t"]
    assert (cfiv.load(tmp_path / "codes.st").predict(table) == expected.predict(table)).all()
    assert run("fit", "codes.csv", "y ~ C(plain) + [t ~ z]", "--estimator", "2sls", "--out", "plain.st").code == 0
    cfiv.load(tmp_path / "plain.st").predict(table)  # whole numbers stay numbers


@pytest.mark.parametrize(
    ("error", "said"),
    [(100.0, "The squared error of 2SLS is 4 times that of DFIV"), (400.0, "DFIV is no closer"), (401.0, "DFIV is no closer")],
)
def test_the_demonstration_praises_no_fit_that_is_worse(error: float, said: str) -> None:
    table = pd.DataFrame({"error": [400.0, error], "seconds": [0.1, 2.0]}, index=["2SLS", "DFIV"])
    text = comparison_text(table, truth=demand.simulate(1)[1], bias=1.0)
    assert said in text
    assert "confounder" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


@pytest.mark.parametrize(("bias", "said"), [(1.426, "only 1.4 to a perfect"), (11_552.2, "of 11,552 to a perfect prediction")])
def test_the_demonstration_says_what_the_confounder_costs(bias: float, said: str) -> None:
    table = pd.DataFrame({"error": [10.0, 90.0], "seconds": [0.1, 2.0]}, index=["Network", "Least squares"])
    text = comparison_text(table, truth=demand.simulate(1)[1], bias=bias)
    assert said in " ".join(text.split())
    assert "2SLS" not in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_fit_parts_no_group_and_tells_labels_apart(run: Run, train: Path) -> None:
    frame = exact(train).assign(shop=[f"{i % 5:02d}" if i % 2 else str(i % 5) for i in range(200)])
    frame.to_csv("shops.csv", index=False)
    answer = run("fit", "shops.csv", demand.FORMULA, "--clusters", "shop", "--seed", 5, *SMALL, "--quiet", "--out", "model")
    assert (answer.code, answer.out, answer.err) == (0, "", "")  # ten groups, of which "00" is not "0"
    model = cfiv.DFIV(demand.FORMULA, clusters="shop", steps=10, random_state=5, progress=False).fit(frame)
    assert (cfiv.load("model").predict(frame) == model.predict(frame)).all()


@pytest.mark.usefixtures("train")
def test_fit_reports_clustered_errors(run: Run) -> None:
    frame = exact("train.csv").assign(week=lambda f: (5 * f["time"]).astype(int))
    frame.to_csv("train.csv", index=False)
    options = ["--estimator", "2sls", "--clusters", "week", "--debiased", "--out", "m.safetensors"]
    said = written(run, "fit", "train.csv", demand.FORMULA, *options)
    model = cfiv.TwoStageLeastSquares(demand.FORMULA, covariance="clustered", clusters="week", debiased=True).fit(frame)
    assert f"{model.coefficients_['std_error']['price']:.4g}" in said


def test_the_demonstration_fits_what_is_asked_for(run: Run) -> None:
    said = written(run, "demo", "--n", 300, "--estimator", "2sls", "--estimator", "least-squares", "--rho", 0.2, "--out", "d")
    assert list(exact("d/estimates.csv").columns[4:]) == ["2SLS", "Least squares"]
    assert "rho 0.2" in said


def test_the_demonstration_needs_matplotlib_before_it_fits(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    answer = run("demo", "--out", "demo")
    assert_refused(answer, "matplotlib", "pip install 'cfiv[plot]'")
    assert answer.out == ""


# Help


@pytest.mark.parametrize("command", [[], *map(str.split, COMMANDS)])
def test_help_fits_a_terminal_of_80_columns(run: Run, command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = written(run, *command, "--help")
    assert said.startswith(" ".join(["Usage: cfiv", *command, "[OPTIONS]"]))
    assert max(len(line) for line in said.splitlines()) <= 80


@pytest.mark.parametrize("command", [[], ["simulate"]])
def test_a_bare_command_shows_its_help(run: Run, command: list[str]) -> None:
    assert written(run, *command) == written(run, *command, "--help")


def test_version(run: Run) -> None:
    assert written(run, "--version") == f"cfiv {cfiv.__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom cfiv.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as ended:\n    code = ended.code\n"
        "assert code == 0\n"
        "print({'numpy', 'pandas', 'torch', 'sklearn', 'matplotlib', 'tqdm'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


# Refusals


def test_a_refusal_is_one_line_in_a_process_of_its_own(tmp_path: Path) -> None:
    Path(tmp_path / "t.csv").write_text("sales,price\n1,2\n")
    answer = process("fit", "t.csv", "sales ~ [prize ~ fuel]", "--out", "m", folder=tmp_path)
    assert_refused(answer, "'prize'", "did you mean 'price'?")
    assert answer.out == ""
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["fot"], ["No such command 'fot'"]),
        (["fit", "train.csv"], ["Missing argument 'FORMULA'", "cfiv fit --help"]),
        (["fit", "train.csv", demand.FORMULA], ["Missing option '--out'"]),
        ([*FIT, "--estimator", "ols"], ["'ols' is not one of 'dfiv', 'kernel-iv', 'sieve-iv', '2sls'"]),
        ([*FIT, "--seed", "-1"], ["--seed", "-1"]),
        ([*FIT, "--steps", "-1"], ["steps must be", "-1"]),
        ([*FIT, "--steps", "9", "--estimator", "2sls"], ["--steps is not for --estimator 2sls", "got --steps 9"]),
        ([*FIT, "--landmarks", "9"], ["--landmarks is not for --estimator dfiv"]),
        ([*FIT, "--segments", "9"], ["--segments is not for --estimator dfiv"]),
        ([*FIT, "--segments", "0", "--estimator", "sieve-iv"], ["segments must be a whole number between 1 and", "got 0"]),
        ([*FIT, "--estimator", "2sls", "--fuller", "1"], ["--fuller is not for --estimator 2sls", "got --fuller 1.0"]),
        ([*FIT, "--estimator", "liml", "--fuller", "-1"], ["fuller must be", "-1.0"]),
        ([*FIT, "--estimator", "2sls", "--covariance", "HC3"], ["covariance must be one of", "'HC3'"]),
        ([*FIT, "--estimator", "2sls", "--covariance", "robust", "--clusters", "time"], ["set covariance='clustered'"]),
        (["demo", "--estimator", "ols", "--out", "demo"], ["'ols' is not one of"]),
        (["demo", "--estimator", "2sls", "--steps", "9", "--out", "demo"], ["for estimators that train", "with 2sls"]),
        ([*FIT, "--weights", "w"], ["column 'w'"]),
        (["fit", "train.csv", "sales ~ time", "--out", "m"], ["names no instruments"]),
        (["fit", "train.csv", "sales", "--out", "m"], ["cannot be read"]),
        (["fit", "train.csv", "sales ~ tme + [price ~ fuel]", "--out", "m"], ["did you mean 'time'?"]),
        (["fit", "absent.csv", demand.FORMULA, "--out", "m"], ["'absent.csv' does not exist"]),
        (["fit", ".", demand.FORMULA, "--out", "m"], ["'.' cannot be read as one table", "must be Parquet"]),
        (["diagnose", ".", demand.FORMULA], ["is a directory"]),
        (["predict", "absent", "grid.csv", "--out", "p.csv"], ["'absent' does not exist"]),
        (["predict", "grid.csv", "train.csv", "--out", "p.csv"], ["'grid.csv' is not a whole model file"]),
        (["simulate", "demand", "--out", "x.csv", "--n", "0"], ["n must be", "got 0"]),
        (["simulate", "demand", "--out", "x.csv", "--rho", "2"], ["rho must be", "got 2.0"]),
        (["simulate", "supply", "--out", "x.csv"], ["No such command 'supply'"]),
        (["demo", "--n", "0", "--out", "demo"], ["n must be", "got 0"]),
        (["simulate", "demand", "--out", "x.csv", "--n", str(10**15)], ["there is not enough memory", "give fewer rows"]),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("train")
def test_bad_arguments_are_refused(run: Run, arguments: list[str], words: list[str]) -> None:
    assert_refused(run(*arguments), *words)
    assert not {"m", "p.csv", "x.csv"} & set(os.listdir())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", b"", ["'t.csv' is empty", "column names"]),
        ("t.csv", b"\n\n", ["'t.csv' is empty"]),
        ("t.csv", b"sales,price\n", ["no rows"]),
        ("t.csv", b"sales,price\n1,2\n1,2,3\n", ["'t.csv' is not a well-formed .csv file", "line 3"]),
        ("t.csv", b"sales,price\n1,2,3\n4,5,6\n", ["'t.csv' have more values than its first line has names"]),
        ("t.csv", b'sales,price\n"1,2\n', ["'t.csv' is not a well-formed .csv file"]),
        ("t.csv", b"sales,price,price\n1,2,3\n", ["column names must be unique, got 'price'"]),
        ("t.csv", b"sales,pr\xffce\n1,2\n", ["'t.csv' is not text in UTF-8"]),
        ("t.csv", b"sales;price\n1;2\n", ["'sales;price'"]),
        ("t.parquet", b"not parquet", ["'t.parquet' is not a well-formed .parquet file"]),
        ("t.txt", b"sales,price\n1,2\n", [".csv or .parquet", "'t.txt'"]),
        ("t", b"sales,price\n1,2\n", [".csv or .parquet", "'t'"]),
    ],
)
def test_files_that_hold_no_table_are_refused(run: Run, name: str, content: bytes, words: list[str]) -> None:
    Path(name).write_bytes(content)
    assert_refused(run("fit", name, "sales ~ [price ~ fuel]", "--out", "m"), *words)
    assert os.listdir() == [name]


@pytest.mark.parametrize("place", ["absent/m.csv", "file/m.csv", "."])
@pytest.mark.parametrize("command", ["simulate", "fit", "predict", "demo"])
def test_places_that_cannot_be_written_are_refused_before_any_work(run: Run, command: str, place: str) -> None:
    Path("file").write_text("")
    Path("empty.csv").write_text("")  # reading it would be refused with another message
    arguments: dict[str, list[str]] = {
        "simulate": ["simulate", "demand"],
        "fit": ["fit", "empty.csv", demand.FORMULA],
        "predict": ["predict", "file", "empty.csv"],
        "demo": ["demo"],
    }
    if command == "demo":  # it makes folders, so only a file is in its way
        place = {"absent/m.csv": "file", "file/m.csv": "file/below", ".": "file/further/below"}[place]
    answer = run(*arguments[command], "--out", place)
    assert_refused(answer, place)
    assert answer.out == ""
    assert sorted(os.listdir()) == ["empty.csv", "file"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(run: Run, train: Path) -> None:
    Path("locked").mkdir(mode=0o500)
    answer = run("fit", "train.csv", demand.FORMULA, "--out", "locked/m")
    assert_refused(answer, "'locked/m' cannot be written (Permission denied)", "choose a folder")


def test_a_folder_that_the_system_does_not_let_write_is_refused(run: Run, train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("tempfile.TemporaryFile", denied)
    answer = run("fit", "train.csv", demand.FORMULA, "--out", "m")
    assert_refused(answer, "'m' cannot be written (Permission denied)", "choose a folder")


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_file_that_cannot_be_written_to_its_end_leaves_the_one_before_it(
    run: Run, train: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: pd.DataFrame, path: Path, **__: object) -> None:
        path.write_text("half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    fitted(run)
    Path(name).write_text("precious")
    before = sorted(os.listdir())
    monkeypatch.setattr(pd.DataFrame, "to_csv", full)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    assert_refused(run("predict", "model.safetensors", "grid.csv", "--out", name), name, "No space left on device")
    assert Path(name).read_text() == "precious"
    assert sorted(os.listdir()) == before


def test_new_files_have_the_permissions_of_any_other(run: Run, train: Path) -> None:
    Path("other").write_text("")
    assert train.stat().st_mode == Path("other").stat().st_mode


def test_no_input_is_overwritten(run: Run, train: Path) -> None:
    fitted(run)
    before = {name: Path(name).read_bytes() for name in os.listdir()}
    for arguments in (
        ["fit", "train.csv", demand.FORMULA, "--out", "./train.csv"],
        ["predict", "model.safetensors", "grid.csv", "--out", "grid.csv"],
        ["simulate", "demand", "--out", "new.csv", "--truth", "new.csv"],
    ):
        assert_refused(run(*arguments), "named twice")
    assert {name: Path(name).read_bytes() for name in os.listdir()} == before


def test_a_grid_that_has_an_estimate_already_is_refused(run: Run, train: Path) -> None:
    fitted(run)
    written(run, "predict", "model.safetensors", "grid.csv", "--out", "once.csv")
    answer = run("predict", "model.safetensors", "once.csv", "--out", "twice.csv")
    assert_refused(answer, "'once.csv' already has a column 'estimate'", "rename or drop it")
    exact("once.csv").drop(columns="estimate").to_csv("half.csv", index=False)
    answer = run("predict", "model.safetensors", "half.csv", "--out", "twice.csv")
    assert_refused(answer, "'half.csv' already has a column 'supported'", "rename or drop it")


def test_truncated_models_and_grids_without_the_columns_are_refused(run: Run, train: Path) -> None:
    fitted(run)
    Path("half").write_bytes(Path("model.safetensors").read_bytes()[:500])
    exact("grid.csv").drop(columns="time").to_csv("short.csv", index=False)
    assert_refused(run("predict", "half", "grid.csv", "--out", "p.csv"), "'half' is not a whole model file")
    assert_refused(run("predict", "model.safetensors", "short.csv", "--out", "p.csv"), "'time'")
    assert not Path("p.csv").exists()


@pytest.mark.parametrize(
    "arguments", [["simulate", "demand", "--out", "a.parquet"], ["fit", "b.parquet", "y ~ [t ~ z]", "--out", "m"]]
)
def test_parquet_without_pyarrow_names_the_extra(run: Run, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    Path("b.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert_refused(run(*arguments), "needs pyarrow", "pip install 'cfiv[parquet]', or use a .csv file")


def test_the_command_without_click_names_the_extra() -> None:
    program = "import sys; sys.modules['click'] = None; import cfiv.cli"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert_refused(Answer(done.returncode, done.stdout, done.stderr), "needs click", "pip install 'cfiv[cli]'")


# Warnings and interruptions


def test_warnings_are_one_line_each(run: Run, train: Path) -> None:
    frame = exact(train).assign(subsidy=np.arange(200) % 2)
    frame.loc[[3, 5], "price"] = np.nan
    frame.to_csv("gaps.csv", index=False)
    answer = run("fit", "gaps.csv", "sales ~ time + [price ~ subsidy]", *SMALL, "--out", "m")
    assert answer.code == 0
    lines = answer.err.splitlines()
    assert [line[: len("cfiv: warning: ")] for line in lines] == ["cfiv: warning: "] * 3
    assert "dropped 2 of 200 rows" in lines[0]
    assert "the instruments take 2 distinct values" in lines[1]
    assert "the estimate is not to be believed" in lines[2]


def test_gaps_are_refused_where_that_is_asked_for(run: Run, train: Path) -> None:
    exact(train).assign(time=np.nan).to_csv("gaps.csv", index=False)
    assert_refused(run("fit", "gaps.csv", demand.FORMULA, "--missing", "raise", "--out", "m"), "200 of 200 rows")


def interrupting(at: int) -> Callable[..., Any]:
    """The training step, with Ctrl-C at one of its calls."""
    calls = iter(range(1, 10**6))

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == at:
            raise KeyboardInterrupt
        return step(*arguments, **options)

    return interrupted


def test_ctrl_c_during_training_writes_the_best_state_so_far(run: Run, train: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfiv.objectives.dfiv_fit.step", interrupting(at=8))
    answer = run("fit", "train.csv", demand.FORMULA, *SMALL, "--out", "m")
    assert answer.code == 0
    assert answer.err.count("\n") == 1
    assert answer.err.startswith("cfiv: warning: training was interrupted at step 8 of 10")
    assert np.isfinite(cfiv.load("m").predict(exact("grid.csv"))).all()


def test_ctrl_c_before_there_is_anything_to_keep_ends_with_130_and_writes_nothing(
    run: Run, train: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfiv.objectives.dfiv_fit.step", interrupting(at=1))
    answer = run("fit", "train.csv", demand.FORMULA, *SMALL, "--out", "m")
    assert (answer.code, answer.out) == (130, "")
    assert answer.err.strip() == "cfiv: interrupted"
    assert not Path("m").exists()


def test_ctrl_c_in_a_later_estimator_of_the_demonstration_keeps_the_earlier(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("cfiv.estimators.kernel_iv.KernelIV._estimate", interrupted)
    chosen = [word for name in ("2sls", "kernel-iv", "least-squares") for word in ("--estimator", name)]
    answer = run("demo", "--n", 100, *chosen, "--out", "demo")
    assert (answer.code, answer.err) == (
        0,
        "cfiv: warning: interrupted while fitting Kernel IV; what was fitted before is kept\n",
    )
    assert list(exact(Path("demo") / "estimates.csv").columns[-2:]) == ["structural", "2SLS"]


SIGNALLED = """
import os, signal
from cfiv.cli import main
from cfiv.objectives import dfiv_fit

def step(*arguments, step=dfiv_fit.step, calls=iter(range(1, 10**9)), **options):
    if next(calls) == 8:
        os.kill(os.getpid(), signal.SIGINT)
    return step(*arguments, **options)

dfiv_fit.step = step
main(["demo", "--n", "300", "--steps", "1000000", "--estimator", "dfiv", "--out", "demo"])
"""


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_a_signal_during_a_fit_does_the_same_in_a_process_of_its_own(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SIGNALLED], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    first, *others = done.stderr.splitlines()
    assert first.startswith("cfiv: warning: training was interrupted at step 8 of 1000000")
    assert all("not to be believed" in line for line in others)
    assert (tmp_path / "demo" / "dfiv.safetensors").exists()


@pytest.mark.skipif(os.name == "nt", reason="pipes")
def test_a_reader_who_leaves_early_causes_no_noise(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "cfiv.cli", "--help"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.close()
    assert child.stderr is not None
    with child.stderr:
        assert child.stderr.read() == ""
    assert child.wait(timeout=60) == 0


@pytest.mark.skipif(os.name == "nt", reason="a shell")
def test_without_standard_streams_a_fit_is_written_all_the_same(run: Run, train: Path) -> None:
    fitted(run, out="with")
    arguments = [sys.executable, "-m", "cfiv.cli", "fit", "train.csv", demand.FORMULA, *SMALL, "--out", "without"]
    done = subprocess.run(["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *arguments], timeout=120, check=False)
    assert done.returncode == 0
    assert Path("without").read_bytes() == Path("with").read_bytes()


@pytest.mark.parametrize(("lost", "code"), [("none", 0), ("closed", 0), ("unread", 0), ("full", 2), ("broken", 0)])
def test_what_is_written_does_not_depend_on_who_reads(
    run: Run, train: Path, monkeypatch: pytest.MonkeyPatch, lost: str, code: int
) -> None:
    fit = ("fit", "train.csv", demand.FORMULA, "--estimator", "2sls", "--out")
    written(run, *fit, "read")
    expected = written(run, "predict", "read", "grid.csv", "--out", "read.csv").replace("read.csv", "unread.csv")
    for name in ("stdout", "stderr"):
        with monkeypatch.context() as changed:
            changed.setattr(sys, name, STREAMS[lost]())
            answer = run("fit", "train.csv", demand.FORMULA, "--estimator", "2sls", "--out", "unread")
            assert answer.code == (code if name == "stdout" else 0), answer
            if code and name == "stdout":
                assert (
                    answer.err
                    == "cfiv: error: standard output cannot be written (No space left on device): send it elsewhere\n"
                )
            changed.setattr(sys, name, STREAMS[lost]())
            answer = run("predict", "unread", "grid.csv", "--out", "unread.csv")
            assert answer.out == (expected if name == "stderr" else "")
            changed.setattr(sys, name, STREAMS[lost]())
            assert run("predict", "absent", "grid.csv", "--out", "no.csv").code == 2
        assert Path("unread").read_bytes() == Path("read").read_bytes()
        assert Path("unread.csv").read_bytes() == Path("read.csv").read_bytes()
        Path("unread").unlink()
        Path("unread.csv").unlink()
