"""The directive ``command-help``: what ``cfiv ... --help`` prints, as it is when the pages are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
from docutils.nodes import Node, literal_block
from sphinx.util.docutils import SphinxDirective

from cfiv.cli import commands

if TYPE_CHECKING:
    from sphinx.application import Sphinx


class CommandHelp(SphinxDirective):
    """One argument: the words after ``cfiv``, none for the command itself."""

    optional_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[Node]:
        """The help as a literal block."""
        command: click.Command = commands
        context = click.Context(command, info_name="cfiv", terminal_width=100, max_content_width=100)
        for word in self.arguments[0].split() if self.arguments else ():
            assert isinstance(command, click.Group)
            command = command.commands[word]
            context = click.Context(command, info_name=word, parent=context, terminal_width=100, max_content_width=100)
        text = command.get_help(context)
        return [literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("command-help", CommandHelp)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
