"""The directive ``command-help``: what ``cfiv ... --help`` prints, as it is when the pages are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from click.testing import CliRunner
from docutils.nodes import Node, literal_block
from sphinx.util.docutils import SphinxDirective

from cfiv.cli import commands

if TYPE_CHECKING:
    from sphinx.application import Sphinx

#: Characters a line, as many as a page has room for.
WIDTH = 96


class CommandHelp(SphinxDirective):
    """One argument: the words after ``cfiv``, none for the command itself."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[Node]:
        """The help as a literal block."""
        words = self.arguments[0].split() if self.arguments else []
        result = CliRunner().invoke(
            commands,
            [*words, "--help"],
            prog_name="cfiv",
            terminal_width=WIDTH,
            max_content_width=WIDTH,
            catch_exceptions=False,
        )
        if result.exit_code:
            raise self.error(f"cfiv {' '.join(words)} --help: {result.output}")
        return [literal_block(result.output, result.output, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
