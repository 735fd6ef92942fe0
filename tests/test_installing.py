"""What an installation makes of the folders here."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EDITABLE = "from setuptools.build_meta import build_editable; build_editable({place!r})"
#: As Python does at its start with what is in site-packages; the environment's own cfiv is not in sight.
INSTALLED = "import site, sys; sys.path = [p for p in sys.path if p not in {hidden!r}]; site.addsitedir({place!r}); import cfiv"


@pytest.mark.contract
def test_an_editable_cfiv_is_imported_from_the_folder_that_holds_its_checkout(tmp_path: Path) -> None:
    pytest.importorskip("setuptools", minversion="77.0.3")
    above, place = tmp_path / "above", tmp_path / "site"
    checkout = above / "cfiv"
    for folder in ("cfiv", "datasets"):
        shutil.copytree(ROOT / folder, checkout / folder, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    place.mkdir()
    build = [sys.executable, "-W", "ignore", "-c", EDITABLE.format(place=str(place))]
    subprocess.run(build, cwd=checkout, check=True, capture_output=True)
    with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
        wheel.extractall(place)
    program = INSTALLED.format(hidden=[str(ROOT)], place=str(place)) + "; print(cfiv.__file__, cfiv.datasets.demand.__file__)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=above, check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split() == [str(checkout / "cfiv/__init__.py"), str(checkout / "cfiv/datasets/demand.py")]
