"""No terminal, no bar: a fit does not depend on where its progress could be shown."""

import errno
import io
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import cfiv
from cfiv.datasets import demand
from cfiv.terminal import Stream, is_watched, note, progress_bar


class Raising:
    """A stream that takes nothing."""

    encoding = "utf-8"

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error

    def isatty(self) -> bool:
        return True


class Bare:
    """A stream with a ``write`` and nothing else, as some programs that embed Python have."""

    def __init__(self) -> None:
        self.said = ""

    def write(self, text: str) -> None:
        self.said += text


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


#: Streams that are lost, by how.
STREAMS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "closed": closed,
    "unread": lambda: Raising(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))),
    "full": lambda: Raising(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "broken": lambda: Raising(RuntimeError("the window is gone")),
}


@pytest.mark.contract
@pytest.mark.parametrize("make", [cfiv.DFIV, cfiv.NetworkRegression, cfiv.DeepIV, cfiv.AGMM])
def test_a_fit_is_the_same_wherever_its_progress_cannot_be_shown(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    data, truth = demand.simulate(60, seed=0)

    def fitted(*, progress: bool) -> Any:
        return make(demand.FORMULA, steps=2, random_state=0, progress=progress).fit(data).predict(truth.grid)

    expected = fitted(progress=False)
    for stream in [*(made() for made in STREAMS.values()), Bare(), object()]:
        monkeypatch.setattr(sys, "stderr", stream)
        np.testing.assert_array_equal(fitted(progress=True), expected)


@pytest.mark.contract
def test_a_bar_is_shown_in_threads_and_on_streams_with_little_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    bare = Bare()
    monkeypatch.setattr(sys, "stderr", bare)
    assert not is_watched()

    def work() -> None:
        with progress_bar(2, description="work", shown=True) as bar:
            bar.update(2)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "work: 100%" in bare.said
    note("a line")
    assert bare.said.endswith("a line\n")
    bare.said = ""
    with progress_bar(2, description="work", shown=False) as bar:
        bar.update(2)
    assert bare.said == ""


@pytest.mark.contract
def test_letters_that_a_stream_does_not_have_are_escaped_and_what_comes_after_is_written() -> None:
    inner = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    stream = Stream(inner)
    stream.write("größer\n")
    stream.write("end\n")
    assert inner.buffer.getvalue() == b"gr\\xf6\\xdfer\nend\n"  # type: ignore[attr-defined]
    assert stream.lost is None


@pytest.mark.contract
def test_what_is_lost_stays_lost_and_bytes_are_no_text() -> None:
    stream = Stream(Raising(OSError(errno.ENOSPC, "full")))
    stream.flush()
    assert isinstance(stream.lost, OSError)
    assert not stream.isatty()
    assert not stream.usable
    with pytest.raises(TypeError, match="a text stream takes text, got bytes"):
        stream.write(b"")  # type: ignore[arg-type]
