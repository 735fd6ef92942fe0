"""Formulas as MathML, made while the pages are built: browsers draw it themselves, so pages need no script and no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from docutils.nodes import SkipNode
from math_core import LatexError, LatexToMathML
from sphinx.util.logging import getLogger
from sphinx.util.math import get_node_equation_number

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.writers.html5 import HTML5Translator

CONVERTER = LatexToMathML(fancy_error=False)
logger = getLogger(__name__)


def mathml(latex: str, *, display: bool, node: Any) -> str:
    """A formula; its LaTeX, with a warning that fails the build, where it cannot be converted."""
    try:
        return CONVERTER.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        logger.warning("the formula %r cannot be converted: %s", latex, error, location=node)
        return f"<code>{latex}</code>"


def inline(translator: HTML5Translator, node: Any) -> None:
    """A formula in a line."""
    translator.body.append(mathml(node.astext(), display=False, node=node))
    raise SkipNode


def block(translator: HTML5Translator, node: Any) -> None:
    """A formula on lines of its own, with its number and an anchor where it has a label."""
    latex = node.astext().strip()
    if r"\\" in latex and r"\begin" not in latex:
        latex = rf"\begin{{aligned}}{latex}\end{{aligned}}"
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(mathml(latex, display=True, node=node))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
