"""The terminal, where there is one: progress bars, and standard streams whose loss stops no work.

A program may have no standard error (``2>&-``, ``pythonw``, a host that embeds Python), a closed one, or one that nobody reads
any more or that is full. None of that is a reason not to fit.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tqdm import tqdm


class Stream:
    """A text stream that may be lost at any time; what it does not take is left out.

    Parameters
    ----------
    stream : text stream or None

    Attributes
    ----------
    lost : Exception or None
        Why nothing is written any more, where that is so since something was.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost: Exception | None = None

    @classmethod
    def of(cls, stream: Any) -> Stream:
        """The stream, as one that may be lost."""
        return stream if isinstance(stream, Stream) else cls(stream)

    def write(self, text: str) -> int:
        """Write a text, with escapes for letters that the stream's encoding does not have."""
        if not isinstance(text, str):  # as of any text stream; click asks by this whether it is one
            raise TypeError(f"a text stream takes text, got {type(text).__name__}")
        try:
            self._call("write", text)
        except UnicodeEncodeError as error:
            self._call("write", text.encode(error.encoding, errors="backslashreplace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        """Let what was written out."""
        self._call("flush")

    def isatty(self) -> bool:
        """Whether a terminal shows it."""
        return bool(self._call("isatty"))

    @property
    def usable(self) -> bool:
        """Whether what is written goes anywhere, as far as is known."""
        return hasattr(self._stream, "write") and self.lost is None and not getattr(self._stream, "closed", False)

    def __getattr__(self, name: str) -> Any:
        # What is written to its bytes would not be looked after, and nobody has to find any.
        if name in ("_stream", "buffer"):
            raise AttributeError(name)
        return getattr(self._stream, name)

    def _call(self, method: str, *arguments: str) -> Any:
        """What a method of the stream gives; None where it has none, or is lost."""
        if not self.usable or not hasattr(self._stream, method):
            return None
        try:
            return getattr(self._stream, method)(*arguments)
        except UnicodeEncodeError:
            raise
        except Exception as error:  # noqa: BLE001  a host's own stream may raise anything
            self.lost = error
            return None


def is_watched() -> bool:
    """Whether somebody watches standard error."""
    return Stream.of(sys.stderr).isatty()


def progress_bar(
    total: int, *, description: str, shown: bool, unit: str = "it", initial: int = 0, bar_format: str | None = None
) -> tqdm[Any]:
    """A progress bar on standard error, where it can be written to; every bar of cfiv is one of these.

    Parameters
    ----------
    total, initial : int
        Steps in all, and done before.
    description, unit : str
    shown : bool
        Whether there is to be one.
    bar_format : str, optional
        Instead of tqdm's own.

    Returns
    -------
    tqdm
        For a ``with`` block, in which ``update()`` is called after every step. It never raises for want of a terminal.
    """
    from tqdm import tqdm

    stream = Stream.of(sys.stderr)
    return tqdm(
        total=total,
        initial=initial,
        desc=description,
        unit=unit,
        bar_format=bar_format,
        file=stream,
        disable=not (shown and stream.usable),
    )


def note(line: str) -> None:
    """Write a line to standard error; a progress bar there stays whole."""
    stream = Stream.of(sys.stderr)
    if "tqdm" in sys.modules:
        from tqdm import tqdm

        tqdm.write(line, file=stream)
    else:
        stream.write(f"{line}\n")
        stream.flush()


@contextmanager
def streams_that_may_be_lost() -> Iterator[Stream]:
    """In the block standard output and error are such; standard output is given, to be asked at the end.

    For a program that owns its process: descriptors 0 to 2 that are closed lead nowhere from now on, as do those of streams
    that were lost. The next file would else be opened in the place of one, with what libraries write there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            _lead_nowhere(descriptor)
    given = sys.stdout, sys.stderr
    out, err = map(Stream.of, given)
    sys.stdout, sys.stderr = out, err
    try:
        yield out
    finally:
        for stream in (out, err):
            stream.flush()
            if isinstance(stream.lost, OSError):  # or Python would fail to flush it once more as the process ends
                with suppress(AttributeError, OSError, ValueError):
                    _lead_nowhere(stream.fileno())
        sys.stdout, sys.stderr = given


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    if nowhere == descriptor:
        os.set_inheritable(nowhere, True)
    else:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)
