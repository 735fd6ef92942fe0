"""Docstrings of cfiv as reStructuredText: indented equations are literal blocks, and exceptions are linked by their names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sphinx.util.nodes import make_refnode

if TYPE_CHECKING:
    from docutils.nodes import Element
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

#: Sections of NumPy's kind that hold paragraphs; the others hold lists, whose entries are indented anyway.
PARAGRAPHS = ("Notes", "References")
#: Where a bare name in a docstring may be at home.
HOMES = ("cfiv", "cfiv.errors", "cfiv.studies")


def with_literal_equations(lines: list[str]) -> list[str]:
    """A ``::`` before every paragraph that is indented in running text.

    Left as they are, ``|V|^2`` would be read as a substitution and ``'`` as a quotation mark.
    """
    written: list[str] = []
    in_paragraphs, in_block = True, False
    for i, line in enumerate(lines):
        following = lines[i + 1] if i + 1 < len(lines) else ""
        if line and not line.startswith(" ") and following and set(following) == {"-"}:
            in_paragraphs = line in PARAGRAPHS
        indented = line.startswith("    ")
        if indented and in_paragraphs and not in_block and not (i and lines[i - 1]):
            before = next((earlier for earlier in reversed(written) if earlier), "")
            written += [] if before.endswith("::") else ["::", ""]
            in_block = True
        elif line and not indented:
            in_block = False
        written.append(line)
    return written


def rewrite(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Change a docstring in place."""
    lines[:] = with_literal_equations(lines)


def link(app: Sphinx, env: BuildEnvironment, node: Element, content: Element) -> Element | None:
    """An exception, class or function by its name alone, or as ``cfiv.NAME``, wherever it is documented."""
    if node.get("refdomain") != "py":
        return None
    domain = env.domains.python_domain
    for home in HOMES:
        found = domain.objects.get(f"{home}.{node['reftarget'].removeprefix('cfiv.')}")
        if found is not None:
            return make_refnode(app.builder, node["refdoc"], found.docname, found.node_id, content)
    return None


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect both, the first before napoleon."""
    app.connect("autodoc-process-docstring", rewrite, priority=400)
    app.connect("missing-reference", link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
