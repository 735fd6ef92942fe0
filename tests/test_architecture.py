"""The house: imports run downward, the ground floor sees no tables, and the public surface is what it says."""

import ast
import subprocess
import sys
from itertools import pairwise, takewhile
from pathlib import Path

import pytest

import cfiv

ROOT = Path(__file__).parents[1]

#: What every room above the ground floor may use.
LIBRARY = {"errors", "checks", "files", "memory", "mapped", "arrays", "labels", "data", "numerics"}
#: Rooms and the rooms that they may use, besides themselves.
MAY_USE = {
    "errors": set(),
    "checks": {"errors"},
    "files": {"errors", "checks"},
    "tensor_file": {"errors", "files"},
    "file_values": {"tensor_file"},
    "interrupts": set(),
    "terminal": set(),
    "memory": {"errors"},
    "mapped": {"errors"},
    "arrays": {"errors"},
    "labels": {"errors", "arrays"},
    "data": {"errors", "arrays", "labels", "mapped"},
    "numerics": {"errors", "checks"},
    "tables": {"errors", "checks", "file_values", "rendering", "arrays", "labels", "mapped", "data"},
    "runtime": {"errors", "checks", "arrays"},
    "networks": {"errors", "tensor_file", "file_values", "runtime"},
    "learning": {"errors", "checks", "arrays", "tensor_file", "file_values", "numerics", "runtime", "networks"},
    "objectives": {"errors", "file_values", "numerics", "runtime", "networks", "learning"},
    "supervised": {"errors", "checks", "files", "file_values", "memory", "numerics", "runtime", "networks", "learning"},
    "rendering": set(),
    "estimators": LIBRARY
    | {"tensor_file", "file_values", "terminal", "rendering", "tables", "runtime", "networks", "learning", "objectives"},
    "diagnostics": {"errors", "checks", "arrays", "rendering", "data", "numerics", "tables", "estimators"},
    "datasets": {"errors", "checks", "arrays", "labels", "data"},
    "plots": {"errors", "tables"},
    "inference": LIBRARY
    | {"tensor_file", "file_values", "rendering", "tables", "runtime", "estimators", "diagnostics", "plots"},
    "comparison": {"errors", "checks", "rendering", "data", "estimators", "diagnostics", "inference"},
    "demonstration": {"errors", "plots", "datasets", "estimators"},
    "studies": LIBRARY
    | {
        "interrupts",
        "terminal",
        "rendering",
        "runtime",
        "networks",
        "learning",
        "supervised",
        "estimators",
        "inference",
        "datasets",
        "plots",
    },
    "cli_inputs": {"errors", "files", "tables", "estimators"},
    "cli_outputs": {"errors", "files", "rendering"},
    "cli_ask": {"errors", "files", "rendering", "estimators", "inference", "plots", "cli_inputs", "cli_outputs"},
    "cli_compare": {"errors", "files", "terminal", "estimators", "inference", "cli_inputs", "cli_outputs"},
    "cli_infer": {"errors", "files", "estimators", "inference", "plots", "cli_inputs", "cli_outputs"},
    "cli_study": {"errors", "files", "interrupts", "terminal", "rendering", "studies"},
    "__main__": {"cli"},
    "cli": {
        "errors",
        "files",
        "interrupts",
        "terminal",
        "memory",
        "plots",
        "demonstration",
        "datasets",
        "estimators",
        "cli_ask",
        "cli_compare",
        "cli_infer",
        "cli_inputs",
        "cli_outputs",
        "cli_study",
    },
}
#: Errors and warnings of the top level: those that programs catch. The others are reached as ``cfiv.errors.X``.
CAUGHT = {
    "CfivError",
    "CfivWarning",
    "DataError",
    "DivergenceError",
    "FormulaError",
    "NotFittedError",
    "ParameterError",
    "TrainingWarning",
}
#: Types of which two beside each other are mistaken for one another, and signatures that may have such, each with its reason.
MISTAKEN = {"float", "int", "Tensor"}
POSITIONAL = {
    ("cfiv/file_values.py", "whole"): "an interval, its lower end first",
    ("cfiv/numerics/kernels.py", "kernel_matrix"): "k(x, y), as everybody writes it",
}
MODULES = sorted([*(ROOT / "cfiv").rglob("*.py"), *(ROOT / "datasets").rglob("*.py")])


def positional(node: ast.AST) -> list[tuple[str, str]]:
    """Name and type of what a function or a dataclass takes by position."""
    if isinstance(node, ast.FunctionDef):
        taken = [(part.arg, part.annotation) for part in (*node.args.posonlyargs, *node.args.args)]
    elif isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(part) for part in node.decorator_list):
        if any("kw_only=True" in ast.unparse(part) for part in node.decorator_list):
            return []
        fields = [part for part in node.body if isinstance(part, ast.AnnAssign) and "init=False" not in ast.unparse(part)]
        taken = [(ast.unparse(part.target), part.annotation) for part in fields]
        taken = list(takewhile(lambda field: ast.unparse(field[1]) != "KW_ONLY", taken))
    else:
        return []
    return [(name, ast.unparse(kind).removesuffix(" | None") if kind else "") for name, kind in taken]


def room(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "cfiv" else "datasets"


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" if node.module == "cfiv" else str(node.module) for alias in node.names)
    return names


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_uses_only_the_rooms_below_it(path: Path) -> None:
    own = room(path)
    if own == "__init__":  # the public surface names them all
        return
    assert own in MAY_USE, f"{own} is a new room: say here what it may use"
    used = {name.split(".")[1] for name in imported(path) if name.startswith("cfiv.")}
    assert used - {own} <= MAY_USE[own]


def test_no_module_imports_itself_by_way_of_others() -> None:
    """At the top or inside functions; what type checkers alone see does not run."""

    def run(node: ast.AST) -> list[ast.AST]:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            return [found for child in node.orelse for found in run(child)]
        return [node, *(found for child in ast.iter_child_nodes(node) for found in run(child))]

    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in MODULES if path.stem != "__init__"}
    left: dict[str, set[str]] = {}
    for name, path in names.items():
        nodes = [node for node in run(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
        left[name] = {place for node in nodes for alias in node.names for place in (node.module, f"{node.module}.{alias.name}")}
    while free := [name for name, needed in left.items() if not needed & set(left)]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("path", sorted((ROOT / "cfiv" / "numerics").glob("*.py")), ids=lambda path: path.name)
def test_numerics_sees_no_table_module_file_or_logger(path: Path) -> None:
    assert not {name.split(".")[0] for name in imported(path)} & {"pandas", "narwhals", "logging", "pathlib", "os", "sklearn"}
    assert "torch.nn" not in imported(path)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_neighbours_of_one_numeric_type_are_keyword_only(path: Path) -> None:
    """Or two numbers change places and nothing says so."""
    for node in ast.walk(ast.parse(path.read_text())):
        if (str(path.relative_to(ROOT)), getattr(node, "name", "")) not in POSITIONAL:
            for (first, kind), (second, other) in pairwise(positional(node)):
                assert kind not in MISTAKEN or kind != other, f"{node.name}: {first} and {second} are both {kind}"


def test_every_progress_bar_comes_from_one_place() -> None:
    assert [room(path) for path in MODULES if "tqdm" in imported(path)] == ["terminal"]


def test_every_public_name_is_there_and_listed() -> None:
    for name in cfiv.__all__:
        assert getattr(cfiv, name) is not None
        assert name in dir(cfiv)
    with pytest.raises(AttributeError, match=r"cfiv.*has no attribute 'DIFV'"):
        cfiv.DIFV


def test_data_sets_figures_and_studies_are_there_after_importing_the_package_alone() -> None:
    program = "import cfiv; print(*(part.__name__ for part in (cfiv.datasets.demand, cfiv.plots, cfiv.studies)))"
    said = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()
    assert said == ["cfiv.datasets.demand", "cfiv.plots", "cfiv.studies"]
    for name in cfiv.datasets.__all__:
        assert getattr(cfiv.datasets, name).__name__ == f"cfiv.datasets.{name}"
    with pytest.raises(AttributeError, match=r"'cfiv.datasets' has no attribute 'demnad': there are burgers, "):
        cfiv.datasets.demnad


def test_the_top_level_has_the_errors_that_programs_catch_and_says_where_the_others_are() -> None:
    exceptions = {
        name for name in cfiv.__all__ if isinstance(getattr(cfiv, name), type) and issubclass(getattr(cfiv, name), Exception)
    }
    assert exceptions == CAUGHT
    every = {name for name, value in vars(cfiv.errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert exceptions < every
    for name in every - exceptions:
        with pytest.raises(AttributeError, match=f"'cfiv' has no attribute '{name}': it is cfiv.errors.{name}$"):
            getattr(cfiv, name)
    with pytest.raises(AttributeError, match=r"has no attribute 'FrameType'$"):  # what errors.py imports is no error
        cfiv.FrameType


def test_importing_the_package_imports_nothing_heavy() -> None:
    program = "import sys, cfiv; print(*sorted({'torch', 'numpy', 'pandas', 'sklearn', 'formulaic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == ""
