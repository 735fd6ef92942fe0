"""The documentation site: Sphinx, MyST-NB and furo. `make docs` builds it, and a warning is an error."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parent / "extensions"))

import cfiv

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "cfiv"
author = "The cfiv developers"
version = release = cfiv.__version__

# The last three are beside this file, in extensions/.
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "command_help",
    "docstrings",
    "mathml",
]
exclude_patterns = ["extensions"]

# ---- pages ------------------------------------------------------------------------------------------------------------
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
# `make tutorials` has executed the notebooks, and pages hold no cells.
nb_execution_mode = "off"
nb_merge_streams = True
# Pages come as they are from a folder: no script of theirs is fetched from elsewhere.
nb_ipywidgets_js: dict[str, dict[str, str]] = {}
myst_update_mathjax = False
html_math_renderer = "mathml"

# ---- API reference ----------------------------------------------------------------------------------------------------
autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings have the types, with shapes
autodoc_class_signature = "mixed"
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("Attributes", "params_style")]  # as parameters are, in one list

# References that lead nowhere are warnings, but for modules below the public surface, which have no page.
nitpicky = True
nitpick_ignore_regex = [
    ("py:.*", r"cfiv\.(data|diagnostics|estimators|learning|networks|numerics|objectives|supervised|tables)\b.*"),
    ("py:mod", r"cfiv\.datasets\.cifar_pickle"),
    ("py:class", r"linearmodels\..*"),
    ("py:(class|exc)", r"[^.]*|.*,.*"),  # types and exceptions as docstrings list them
]

# ---- looks ------------------------------------------------------------------------------------------------------------
html_theme = "furo"
html_title = f"cfiv {version}"
html_static_path = ["static"]
html_css_files = ["cfiv.css"]
html_copy_source = False
html_show_copyright = False
pygments_style = "friendly"
highlight_language = "text"  # equations of docstrings; blocks of pages name their own


def adapt(app: Sphinx, page: str, source: list[str]) -> None:
    """Tutorials link to these pages from where they are in the repository."""
    if page.startswith("tutorials/"):
        source[0] = source[0].replace("](../docs/", "](../")


def setup(app: Sphinx) -> None:
    """Connect what is above."""
    app.connect("source-read", adapt)
