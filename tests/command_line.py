"""Run the command line in this process, as several files of tests do."""

import signal
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cfiv.cli import main


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Run = Callable[..., Answer]


def runner(capsys: pytest.CaptureFixture[str], *first: str) -> Run:
    """A function of the arguments after the first."""

    def command(*arguments: object) -> Answer:
        heeded = signal.getsignal(signal.SIGINT)
        try:
            with pytest.raises(SystemExit) as ended:
                main([*first, *map(str, arguments)])
        finally:
            signal.signal(signal.SIGINT, heeded)  # a command may leave Ctrl-C ignored, as its process ends
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Answer(ended.value.code, said.out, said.err)

    return command
