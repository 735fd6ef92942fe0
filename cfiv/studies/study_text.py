"""The text of a study file: what it says in TOML, within bounds, and where something stands in it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfiv.errors import CfivError, StudyFileError

#: Bytes of a study file, and tables and lists in one another, beyond which it is none.
MOST_BYTES, MOST_NESTED = 1_000_000, 30
_TOO_DEEP = f"has more than {MOST_NESTED} tables or lists in one another: a study is not nested so deeply"
_LONG_KEY = re.compile(rf"""(?:\.[ \t]*+(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+){{{MOST_NESTED}}}""")


def read_text(place: Path) -> str:
    """The text in a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    StudyFileError
        If it cannot be read, or is larger than studies are.
    """
    try:
        with place.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise StudyFileError(f"'{place}' has more than {MOST_BYTES:,} bytes, which no study needs: is it another file?")
        return data.decode("utf-8-sig")
    except (FileNotFoundError, StudyFileError):
        raise
    except (OSError, ValueError) as error:  # a null character in a name is a ValueError
        raise StudyFileError(f"'{place}' cannot be read as text: {error}") from error


class Source:
    """The text of a file, to say where something stands in it."""

    def __init__(self, text: str, place: Path) -> None:
        self._text, self.place = text, place

    def content(self) -> dict[str, Any]:
        """What it says.

        Raises
        ------
        StudyFileError
            If it is not TOML, or holds what no study does: more than thirty tables or lists in one another, or whole numbers
            beyond 64 bits, which TOML does not have.
        """
        if _LONG_KEY.search(self._text):  # to read one takes time that grows with the square of its length
            raise StudyFileError(f"'{self.place}' has a key of more than {MOST_NESTED} names: a study has no such tables")
        try:
            content = tomllib.loads(self._text)
        except RecursionError:
            raise StudyFileError(f"'{self.place}' {_TOO_DEEP}") from None
        except ValueError as error:  # TOML's own, and of numbers of thousands of digits
            raise StudyFileError(f"'{self.place}' is not TOML: {error}") from None
        level: list[Any] = [content]
        for _ in range(MOST_NESTED):
            level = [part for value in level for part in (value.values() if isinstance(value, dict) else value)]
            if any(isinstance(part, int) and not -(2**63) <= part < 2**63 for part in level):
                raise StudyFileError(
                    f"'{self.place}' has a whole number beyond 64 bits, which TOML does not have: make it smaller"
                )
            level = [part for part in level if isinstance(part, (dict, list))]
        if level:
            raise StudyFileError(f"'{self.place}' {_TOO_DEEP}")
        return content

    @contextmanager
    def at(self, *keys: str) -> Iterator[None]:
        """Errors inside name the key and its line; those that do so already stay as they are."""
        try:
            yield
        except StudyFileError:
            raise
        except CfivError as error:
            line = self._line(keys)
            where = f"'{self.place}', line {line}" if line else f"'{self.place}'"
            raise StudyFileError(f"{where}, {'.'.join(map(_quoted, keys))}: {error}") from error

    def _line(self, keys: tuple[str, ...]) -> int | None:
        """The line of a key, or of the innermost of its tables that can be found."""
        section: tuple[str, ...] = ()
        best, line_of_best = 0, None
        for number, line in enumerate(self._text.splitlines(), start=1):
            header = re.match(r"\s*\[{1,2}([^\[\]]+)\]{1,2}\s*(#.*)?$", line)
            entry = re.match(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""", line)
            if header:
                section = found = _split(header[1])
            elif entry:
                found = (*section, *_split(entry[1]))
            else:
                continue
            if found == keys[: len(found)] and len(found) > best:
                best, line_of_best = len(found), number
        return line_of_best


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip().strip("\"'") for part in re.findall(r"""[\w-]+|"[^"]*"|'[^']*'""", dotted))


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[\w-]+", key) else f'"{key}"'
