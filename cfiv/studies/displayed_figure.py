"""A figure that notebooks show. Importing this needs matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class DisplayedFigure(Figure):
    """A figure that belongs to no window and to no ``pyplot`` state, and that a notebook shows as a picture all the same."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()
