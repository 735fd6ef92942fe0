"""Studies as files: what is wrong is named, with its file, line and key, and what to do about it."""

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cfiv
from cfiv.datasets import demand
from cfiv.errors import CfivError, ParameterError, StudyFileError
from cfiv.studies import Coefficient, Design, Method, Study, error
from cfiv.studies.study_file import read_study, shipped_text
from tests.studies import problems

DESIGN = "[designs.demand]\nn = [100]\n"
METHOD = f'[methods.2sls]\nformula = "{demand.FORMULA}"\n'
#: Lines 1 to 4, and then what is to be refused.
WHOLE = DESIGN + METHOD

OWN = {
    "own.py": """
        CONSTANT = 3
        def draw(size, *, seed): ...
        def alone(n): ...
        class Fits:
            def __init__(self, depth): ...
            def fit(self, data): ...
        class Refuses:
            def __init__(self): raise RuntimeError("no licence")
            def fit(self, data): ...
        class Unfit: ...
        class Stubborn:
            def __init__(self, level=0): ...
            def fit(self, data): ...
            def get_params(self, deep=True): return {"level": 0}
            def set_params(self, level): raise RuntimeError("not any more")
        import functools
        halved = functools.partial(draw, size=3)
        """,
    "json.py": "",
    "broken.py": "x = (",
    "raising.py": "1 / 0",
    "exiting.py": "raise SystemExit(3)",
    "needy.py": "import not_installed_here",
}

REFUSED: dict[str, tuple[str, str]] = {
    # The text, and what is said after the file's name.
    "unknown design": (
        "[designs.dmand]\n" + METHOD,
        ", line 1, designs.dmand.design: there is no design 'dmand': did you mean 'demand'?",
    ),
    "unknown method": (
        DESIGN + "[methods.kerneliv]\n",
        ", line 3, methods.kerneliv.estimator: there is no estimator 'kerneliv': did you mean 'kernel-iv'?",
    ),
    "unknown metric": (
        WHOLE + "[metrics]\nerr = {}\n",
        ", line 6, metrics.err.metric: there is no metric 'err': did you mean 'error'?",
    ),
    "unknown key": ("replicatons = 3\n" + WHOLE, ", line 1, replicatons: is unknown: did you mean 'replications'?"),
    "unknown table": (WHOLE + "[metric]\n", ", line 5, metric: is unknown: did you mean 'metrics'?"),
    "unknown parameter of a design": (
        DESIGN + "roh = 0.1\n" + METHOD,
        ", line 3, designs.demand.roh: simulate takes no 'roh': did you mean 'rho'?",
    ),
    "unknown parameter of a method": (
        WHOLE + "missin = 1\n",
        ", line 5, methods.2sls.missin: TwoStageLeastSquares takes no 'missin': did you mean 'missing'?",
    ),
    "unknown parameter of a metric": (
        WHOLE + '[metrics]\ne = {metric = "coefficient", nme = "t"}\n',
        ", line 6, metrics.e.nme: Coefficient takes no 'nme': did you mean 'name'?",
    ),
    "unknown parameter that varies": (
        DESIGN + "[methods.dfiv]\nvary = {step = [1]}\n",
        ", line 4, methods.dfiv.vary.step: DFIV takes no 'step': did you mean 'steps'?",
    ),
    "missing parameter of a design": (
        '[designs.a]\ndesign = "own:draw"\n' + METHOD,
        ", line 1, designs.a: a design is called as draw(seed=...), which fails: missing a required argument: "
        "'size'. It is draw(size, *, seed)",
    ),
    "design without seed": (
        '[designs.a]\ndesign = "own:alone"\nn = 3\n' + METHOD,
        ", line 1, designs.a: a design is called as alone(seed=..., n=...), which fails: got an unexpected keyword "
        "argument 'seed'. It is alone(n)",
    ),
    "missing parameter of a metric": (
        WHOLE + '[metrics]\ne = {metric = "average-effect", treatment = "t"}\n',
        ", line 6, metrics.e: average-effect needs 'treatment_from' as well",
    ),
    "parameter of a metric that takes none": (
        WHOLE + "[metrics]\nerror = {a = 1}\n",
        ", line 6, metrics.error: error takes no parameters, got 'a': leave it out",
    ),
    "truth that is no number": (
        WHOLE + '[metrics]\nc = {metric = "coefficient", name = "price", truth = "x"}\n',
        ", line 6, metrics.c: truth must be a finite number, got 'x'",
    ),
    "seed of a design": (
        DESIGN + "seed = 3\n" + METHOD,
        ", line 3, designs.demand.seed: is set by the study, for every replication anew: leave it out",
    ),
    "random_state": (
        DESIGN + "[methods.dfiv]\nrandom_state = 3\n",
        ", line 4, methods.dfiv.random_state: is set by the study, for every replication anew: leave it out",
    ),
    "setting below a table": (
        WHOLE + "replications = 3\n",
        ", line 5, methods.2sls.replications: is a setting of the study, and those stand above the first table: move it there",
    ),
    "empty grid": (
        "[designs.demand]\nn = []\n" + METHOD,
        ", line 1, designs.demand: n has no values, so that the grid is empty: give a list of at least one, or leave it out",
    ),
    "value twice": (
        "[designs.demand]\nn = [5, 5]\n" + METHOD,
        ", line 1, designs.demand: n has 5 twice: name each value once, and raise replications for more draws",
    ),
    "vary without list": (
        DESIGN + "[methods.dfiv]\nvary = { steps = 3 }\n",
        ", line 4, methods.dfiv.vary: steps must be a list of values, got 3",
    ),
    "vary without table": (
        DESIGN + "[methods.dfiv]\nvary = 3\n",
        ", line 4, methods.dfiv.vary: must be a table of names, got 3",
    ),
    "vary beside a fixed value": (
        DESIGN + "[methods.dfiv]\nsteps = 3\nvary = { steps = [3, 4] }\n",
        ", line 5, methods.dfiv.vary: steps is given beside vary as well: leave one of the two out",
    ),
    "vary to what cannot be": (
        DESIGN + "[methods.dfiv]\nvary = { steps = [3, -4] }\n",
        ", line 4, methods.dfiv.vary: steps must be a whole number >= 0, or 'auto', got -4",
    ),
    "hyper-parameter that cannot be": (
        DESIGN + "[methods.dfiv]\nsteps = true\n",
        ", line 3, methods.dfiv: steps must be a whole number >= 0, or 'auto', got True",
    ),
    "formula that cannot be read": (
        DESIGN + '[methods.dfiv]\nformula = "sales ~ time + [price fuel]"\n',
        ", line 3, methods.dfiv: the formula 'sales ~ time + [price fuel]' cannot be read: ",
    ),
    "formula that names no instruments": (
        DESIGN + '[methods.dfiv]\nformula = "sales ~ time"\n',
        ", line 3, methods.dfiv: the formula 'sales ~ time' names no instruments: write ",
    ),
    "preset that is not": (
        DESIGN + '[methods.dfiv]\npreset = "orignal"\n',
        ", line 4, methods.dfiv.preset: DFIV has no preset 'orignal': did you mean 'original'?",
    ),
    "preset of what has none": (
        WHOLE + 'preset = "original"\n',
        ", line 5, methods.2sls.preset: TwoStageLeastSquares has no preset 'original': leave preset out",
    ),
    "module that is not there": (
        '[designs.a]\ndesign = "absent:f"\n' + METHOD,
        ", line 2, designs.a.design: there is no module 'absent': put absent.py beside the study file",
    ),
    "module that needs another": (
        '[designs.a]\ndesign = "needy:f"\n' + METHOD,
        ", line 2, designs.a.design: the module 'needy' needs 'not_installed_here', which is not installed",
    ),
    "module that is no Python": (
        '[designs.a]\ndesign = "broken:f"\n' + METHOD,
        ", line 2, designs.a.design: the module 'broken' cannot be imported: it raised SyntaxError: '(' was never closed",
    ),
    "module that raises": (
        '[designs.a]\ndesign = "raising:f"\n' + METHOD,
        ", line 2, designs.a.design: the module 'raising' cannot be imported: it raised ZeroDivisionError",
    ),
    "module that exits": (
        '[designs.a]\ndesign = "exiting:f"\n' + METHOD,
        ", line 2, designs.a.design: the module 'exiting' cannot be imported: it raised SystemExit: 3",
    ),
    "function that is not there": (
        '[designs.a]\ndesign = "own:drow"\n' + METHOD,
        ", line 2, designs.a.design: the module 'own' has no 'drow': did you mean 'draw'?",
    ),
    "function that is none": (
        '[designs.a]\ndesign = "own:CONSTANT"\n' + METHOD,
        ", line 2, designs.a.design: 'own:CONSTANT' must be a function or a class, got 3",
    ),
    "file instead of a module": (
        '[designs.a]\ndesign = "own.py:f"\n' + METHOD,
        ", line 2, designs.a.design: must be 'module:name', such as 'my_module:my_design' for my_module.py, got 'own.py:f'",
    ),
    "no module": ('[designs.a]\ndesign = ":f"\n' + METHOD, ", line 2, designs.a.design: must be 'module:name', such as"),
    "class that needs an argument": (
        DESIGN + '[methods.a]\nestimator = "own:Fits"\n',
        ", line 3, methods.a: Fits cannot be made: it raised TypeError: Fits.__init__() missing 1 required",
    ),
    "class that raises": (
        DESIGN + '[methods.a]\nestimator = "own:Refuses"\n',
        ", line 3, methods.a: Refuses cannot be made: it raised RuntimeError: no licence",
    ),
    "class that cannot be fitted": (
        DESIGN + '[methods.a]\nestimator = "own:Unfit"\n',
        ", line 3, methods.a: Unfit cannot be fitted: a method is a class with fit(data), or a function of a seed",
    ),
    "name that is a number": (DESIGN + "[methods.a]\nestimator = 3\n", ", line 4, methods.a.estimator: must be a name, got 3"),
    "class whose parameters cannot be set": (
        DESIGN + '[methods.a]\nestimator = "own:Stubborn"\nvary = {level = [1]}\n',
        ", line 5, methods.a.vary: Stubborn cannot be set to {'level': 1}: it raised RuntimeError: not any more",
    ),
    "partial with an unknown parameter": (
        '[designs.a]\ndesign = "own:halved"\nm = 3\n' + METHOD,
        ", line 3, designs.a.m: partial takes no 'm': there is size",
    ),
    "type of Python's that any parameter fits": (
        '[designs.a]\ndesign = "builtins:dict"\nm = 3\n[methods.a]\nestimator = "own:Unfit"\n',
        ", line 4, methods.a: Unfit cannot be fitted",
    ),
    "metric as a list": (
        WHOLE + '[metrics]\ne = {metric = ["error"]}\n',
        ", line 6, metrics.e.metric: must be a name, got ['er",
    ),
    "module with the name of another": (
        '[designs.a]\ndesign = "json:f"\n' + METHOD,
        ", line 2, designs.a.design: json.py beside the study is not the 'json' that Python has, which is ",
    ),
    "replications below 0": (
        "replications = -1\n" + WHOLE,
        ", line 1, replications: replications must be a whole number >= 0, got -1",
    ),
    "replications as a truth value": (
        "replications = true\n" + WHOLE,
        ", line 1, replications: must be a whole number, got True",
    ),
    "replications as a fraction": ("replications = 2.5\n" + WHOLE, ", line 1, replications: must be a whole number, got 2.5"),
    "seed as a date": ("seed = 2020-01-01\n" + WHOLE, ", line 1, seed: must be a whole number, got"),
    "threads": ("threads = 0\n" + WHOLE, ", line 1, threads: threads must be a whole number >= 1, got 0"),
    "time limit that is no number": (
        "time_limit = nan\n" + WHOLE,
        ", line 1, time_limit: time_limit must be finite and > 0, in seconds",
    ),
    "time limit as text": ('\n\ntime_limit = "5 min"\n' + WHOLE, ", line 3, time_limit: must be a number, got '5 min'"),
    "name of two folders": (
        'name = "a/b"\n' + WHOLE,
        ", line 1, name: name must be letters from A to Z, digits, spaces and any of _.- after a letter or a digit, got 'a/b'",
    ),
    "ledger without name": ('ledger = ""\n' + WHOLE, ", line 1, ledger: ledger must be the name of a file, got ''"),
    "ledger that no file can be": (
        'ledger = "a\\u0000b"\n' + WHOLE,
        r", line 1, ledger: ledger must be the name of a file, got 'a\x00b'",
    ),
    "lists in one another": (
        "seed = " + "[" * 10_000 + "]" * 10_000 + WHOLE,
        " has more than 30 tables or lists in one another",
    ),
    "fewer of them": ("seed = " + "[" * 31 + "]" * 31 + "\n" + WHOLE, " has more than 30 tables or lists in one another"),
    "tables in one another": (
        "seed = " + "{a=" * 10_000 + "1" + "}" * 10_000,
        " has more than 30 tables or lists in one another",
    ),
    "a key of many names": (
        ".".join("a" * 100_000) + " = 1\n" + WHOLE,
        " has a key of more than 30 names: a study has no such",
    ),
    "a table of many names": (
        "[" + " . ".join(['"a"'] * 100_000) + "]\n",
        " has a key of more than 30 names: a study has no such",
    ),
    "a number of thousands of digits": ("seed = " + "9" * 5000 + "\n" + WHOLE, " is not TOML: Exceeds the limit"),
    "hexadecimal digits": (
        "[methods.2sls]\nx = [[0x" + "f" * 5000 + "]]\n" + DESIGN,
        " has a whole number beyond 64 bits, which TOML does not have: make it smaller",
    ),
    "a grid of many cells": (
        f"[designs.demand]\nn = {list(range(1, 1001))}\nrho = {[i / 1001 for i in range(1001)]}\n" + METHOD,
        ", line 1, designs.demand: n, rho make a grid of 1,001,000 cells, and a study has at most 100,000: vary less",
    ),
    "two grids of many cells": (
        f"[designs.demand]\nn = {list(range(1, 1001))}\n[methods.dfiv]\nvary = {{ steps = {list(range(101))} }}\n",
        ": a study has at most 100,000 cells, got 101,000: vary less at once",
    ),
    "another file": (
        "# " + "x" * 1_000_000 + "\n" + WHOLE,
        " has more than 1,000,000 bytes, which no study needs: is it another",
    ),
    "designs as a list": ("[[designs]]\nn = 3\n" + METHOD, ", line 1, designs: must be a table of names, got [{'n': 3}]"),
    "design as text": (
        '[designs]\ndemand = "demand"\n' + METHOD,
        ", line 2, designs.demand: must be a table of names, got 'demand'",
    ),
    "no designs": (METHOD, " has no designs: a study needs at least one, [designs.NAME]"),
    "nothing": ("", " has no designs: a study needs at least one, [designs.NAME]"),
    "no methods": (DESIGN, " has no methods: a study needs at least one, [methods.NAME]"),
    "name on two lines": (
        '[designs."a\\nb"]\ndesign = "demand"\n' + METHOD,
        ": designs need names of text on one line, got 'a\\nb'",
    ),
    "axis called like a metric": (
        WHOLE + '[metrics]\nn = {metric = "error"}\n',
        ": 'n' would be the name of two columns: a design's axis, a method's axis and a metric need different names",
    ),
    "metric called like a column": (
        WHOLE + '[metrics]\nseconds = {metric = "error"}\n',
        ": 'seconds' is a column of a study's tables already: call the axis or the metric otherwise",
    ),
    "metric called like a part of another": (
        WHOLE + '[metrics]\ne = {metric = "error"}\ne_truth = {metric = "error"}\n',
        ": 'e_truth' would be the name of two columns",
    ),
    "key twice": (WHOLE + "[methods.2sls]\n", " is not TOML: Cannot declare ('methods', '2sls') twice (at line 5"),
    "no TOML": ("a: 3\n", " is not TOML: Expected '=' after a key in a key/value pair (at line 1"),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """With modules of one's own; what is imported from it is forgotten."""

    for name, text in OWN.items():
        (tmp_path / name).write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name in ("own", "broken", "raising", "exiting", "needy"):
            del sys.modules[name]


def test_a_folder_of_a_files_name_beside_it_is_not_the_file(folder: Path) -> None:
    Path("mine").mkdir()
    Path("mine.toml").write_text(WHOLE)
    assert read_study("mine").name == "mine"


@pytest.mark.contract
@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_is_wrong_is_refused_with_its_line_and_a_remedy(folder: Path, case: str) -> None:
    text, said = REFUSED[case]
    Path("s.toml").write_text(text)
    with pytest.raises(StudyFileError) as refused:
        read_study("s.toml")
    assert str(refused.value).startswith(f"'s.toml'{said}")


def test_a_file_that_is_not_there_is_said_with_the_nearest_study_that_ships(folder: Path) -> None:
    with pytest.raises(StudyFileError, match=r"there is no file 'demnd', and no study of .* did you mean 'demand'"):
        read_study("demnd")
    with pytest.raises(StudyFileError, match=r"'\.' cannot be read as text"):
        read_study(".")
    Path("s.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StudyFileError, match=r"'s.toml' cannot be read as text"):
        read_study("s.toml")
    with pytest.raises(StudyFileError, match=r"cannot be read as text: .*File name too long"):
        read_study("x" * 300)
    with pytest.raises(StudyFileError, match=r"cannot be read as text: embedded null"):
        read_study("a\0b")
    with pytest.raises(ParameterError, match=r"a study is read from a file by its name, got int: give its path"):
        read_study(3)  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="no study 'demnd' ships with cfiv: did you mean 'demand'"):
        shipped_text("demnd")


def test_a_file_whose_name_is_no_name_says_to_set_one(folder: Path) -> None:
    path = Path("my study (1).toml")
    path.write_text(WHOLE)
    with pytest.raises(StudyFileError, match=r"got 'my study \(1\)' from the file: set name = "):
        read_study(path)
    path.write_text("name = 'mine'\n" + WHOLE)
    assert read_study(path).name == "mine"


def test_a_file_of_ones_own_comes_before_a_study_that_ships(folder: Path) -> None:
    assert len(read_study("demand").cells) > 1
    Path("demand.toml").write_text("\ufeff" + WHOLE)  # as some editors begin a file
    assert len(read_study("demand").cells) == 1


@pytest.mark.law
def test_a_file_is_the_study_that_python_makes(folder: Path) -> None:
    Path("s.toml").write_text(
        "seed = 3\nreplications = 7\ntime_limit = 5\nthreads = 2\nledger = 'sub/l.sqlite'\n"
        "[designs.far]\ndesign = 'demand'\nn = [10, 20]\nrho = 0.5\n"
        f"[methods.dfiv]\nformula = '{demand.FORMULA}'\nsteps = 3\nvary = {{ batch_size = [4, 8] }}\n"
        "[metrics]\nwrong = { metric = 'error' }\nc = { metric = 'coefficient', name = 'price', truth = -1 }\n"
    )
    read = read_study("s.toml")
    made = Study(
        "s",
        designs={"far": Design(demand.simulate, n=[10, 20], rho=0.5)},
        methods={"dfiv": Method(cfiv.DFIV(demand.FORMULA, steps=3), batch_size=[4, 8])},
        metrics={"wrong": error, "c": Coefficient("price", -1)},
        seed=3,
        replications=7,
        threads=2,
    )
    assert list(read.cells) == list(made.cells)
    assert len(read) == len(made) == 28
    assert (read.name, read.time_limit, read.threads, read.ledger) == ("s", 5, 2, Path("sub/l.sqlite").absolute())


def of(**changes: Any) -> Study:
    settings: dict[str, Any] = {"designs": {"line": problems.line}, "methods": {"slope": problems.Slope()}}
    return Study("s", **{**settings, **changes})


@pytest.mark.contract
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: of(replications=-1), "replications must be a whole number >= 0, got -1"),
        (lambda: of(replications=True), "replications must be a whole number >= 0, got True"),
        (lambda: of(replications=10**25), "replications must be at most 1,000,000,000, got 1000"),
        (lambda: of(seed=1.5), "seed must be a whole number >= 0, got 1.5"),
        (lambda: of(time_limit=True), "time_limit must be finite and > 0, in seconds, or None, got True"),
        (lambda: of(designs={}), "designs must name at least one, got none"),
        (lambda: of(designs=problems.line), "designs must be a mapping from names, got function: give {'name': ...}"),
        (lambda: of(methods={3: problems.Slope()}), "methods need names of text on one line, got 3"),
        (lambda: of(metrics={"m": 3}), "the metric 'm' must be a function of a cfiv.studies.Fit, got 3"),
        (lambda: Design(3), "a design is a function simulate(seed=..., **parameters) -> (data, truth), got int"),
        (
            lambda: Design(problems.line, size=[3]),
            "a design is called as line(seed=..., size=...), which fails: got an unexpected keyword argument 'size'.",
        ),
        (
            lambda: Design(problems.line, seed=3),
            "seed is no parameter of a design, got 3: the study gives every replication its own",
        ),
        (lambda: Method(problems.Slope), "give an estimator, such as Slope(...), got the class Slope"),
        (lambda: Method(problems.Slope(), rige=[1]), "Slope takes no 'rige': it takes random_state, ridge"),
        (
            lambda: Method(lambda: problems.Slope()),
            "a method's function is called as <lambda>(seed=...), which fails: got an unexpected keyword argument 'seed'.",
        ),
        (
            lambda: Method(lambda seed, depth: None),
            "a method's function is called as <lambda>(seed=...), which fails: missing a required argument: 'depth'.",
        ),
        (lambda: of(methods={"a": Method(problems.Slope(), ridge=[(1, 2), [1, 2]])}).cells, "two cells are the same, "),
        (lambda: of(ledger=3), "ledger must be the name of a file, got 3"),
        (lambda: of(ledger=""), "ledger must be the name of a file, got ''"),
        (lambda: of(ledger="a\0b"), r"ledger must be the name of a file, got 'a\x00b'"),
        (lambda: of(ledger="x" * 300).status(), "the ledger 'xxx"),
        (
            lambda: Design(problems.line, n=range(10**15)),
            "n make a grid of 1,000,000,000,000,000 cells, and a study has at most",
        ),
        (lambda: Design(problems.line, n=[np.nan, 1.0, np.nan]), "n has nan twice: name each value once"),
        (lambda: Design(problems.line, n=[1, True]), "n has 1 and True, which tables take for one: name each value once"),
        (lambda: Design(problems.line, n=[0, 2.0, 2]), "n has 2.0 and 2, which tables take for one: name each value once"),
        (lambda: Method(problems.Slope(), random_state=[1, 2]), "random_state is set by the study, for every replication anew"),
        (lambda: of().run(jobs=0), "jobs must be a whole number >= 1, got 0"),
    ],
)
def test_parts_that_cannot_be_a_study_are_refused(make: Any, said: str) -> None:
    with pytest.raises(CfivError) as refused:
        make()
    assert str(refused.value).startswith(said)
