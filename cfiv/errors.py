"""The project's exceptions and warnings.

Every exception inherits :class:`CfivError` and the builtin that fits, so both ``except CfivError`` and ``except ValueError``
work. A message says what is wrong, what was got, and what to do about it.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType

#: Whose lines are never the user's: cfiv's own, and of what stands between its calls or calls it on the user's behalf.
_NOT_THE_USER = {"cfiv", "torch", "sklearn", "joblib", *sys.stdlib_module_names}


class CfivError(Exception):
    """Anything that cfiv refuses to do."""


class DataError(CfivError, ValueError):
    """A table or an array that cannot be used as it is."""


class FormulaError(CfivError, ValueError):
    """A formula that cannot be read, or that assigns the roles wrongly."""


class ParameterError(CfivError, ValueError):
    """A hyper-parameter outside its range."""


class NotFittedError(CfivError, AttributeError, ValueError):
    """A result was asked of an estimator that has not been fitted."""


class DivergenceError(CfivError, ArithmeticError):
    """Training diverged before any usable state was reached."""


class SingularError(CfivError, ArithmeticError):
    """A linear system that has no unique solution."""


class TooLargeError(CfivError, MemoryError):
    """A computation that would not fit in memory."""


class ModelFileError(CfivError, ValueError):
    """A model file or a checkpoint that is damaged, foreign, or from a newer version; or a model that no file can hold."""


class OutputError(CfivError, OSError):
    """A place that cannot be written to."""


class ProcessError(CfivError, RuntimeError):
    """Another of several processes that fit together has ended, or cannot be reached."""


class StudyError(CfivError, ValueError):
    """A simulation study whose parts do not fit together."""


class StudyFileError(CfivError, ValueError):
    """A study file that cannot be read, or that says something unknown."""


class NotApplicableError(CfivError, ValueError):
    """A metric of a simulation study has no value for this method, which is no failure of the method."""


class LedgerError(CfivError, ValueError):
    """A ledger that is damaged or was edited, is from a newer version, or is being written by another process."""


class MissingPackageError(CfivError, ImportError):
    """An optional package that is not installed."""


class CfivWarning(UserWarning):
    """Anything that cfiv does but that its user should know of."""


class FormulaWarning(CfivWarning):
    """A formula says something else than it seems to."""


class MissingRowsWarning(CfivWarning):
    """Rows with gaps were dropped."""


class IllConditionedWarning(CfivWarning):
    """A linear system was solved, but some digits of its solution cannot be trusted."""


class WeakIdentificationWarning(CfivWarning):
    """The instruments take fewer values than the treatment does and its features need."""


class TrainingWarning(CfivWarning):
    """Training ended early: it diverged or was interrupted, and the best state so far was kept."""


class WorthlessFitWarning(CfivWarning):
    """A fit that the data say is not to be believed."""


class FewClustersWarning(CfivWarning):
    """A clustered covariance rests on few clusters."""


class PenaltyRangeWarning(CfivWarning):
    """The best of several penalties is the smallest or the largest of them, and one further out would be better."""


class UnsupportedTreatmentWarning(CfivWarning):
    """A structural function is asked at treatments that training has not seen, or not at such covariates."""


class MixedVersionsWarning(CfivWarning):
    """The rows of a study were fitted with different versions of cfiv, whose numbers may differ."""


class PictureWarning(CfivWarning):
    """Pictures read from a file are not those that were expected in every pixel; the file's are used."""


def warn(message: str, category: type[CfivWarning]) -> None:
    """Warn at the user's line: the innermost one outside cfiv, however deep in it this is called.

    Lines of the standard library, torch, scikit-learn and joblib are passed over too: decorators, threads and searches stand
    between the user and cfiv, or between two of its calls. Where nobody else's line is left, as in a thread that runs a method
    of cfiv, it is the outermost.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and not _is_the_users(frame):
        frame = frame.f_back
    registry = frame.f_globals.setdefault("__warningregistry__", {})
    module = frame.f_globals.get("__name__", "<string>")
    warnings.warn_explicit(message, category, frame.f_code.co_filename, frame.f_lineno, module, registry)


@contextmanager
def silence(category: type[CfivWarning]) -> Iterator[None]:
    """Leave out the warnings of a kind, where cfiv itself asks for what they warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category)
        yield


def _is_the_users(frame: FrameType) -> bool:
    return str(frame.f_globals.get("__name__")).partition(".")[0] not in _NOT_THE_USER


def quoted(names: Sequence[object], limit: int = 8) -> str:
    """Names for a message: the first few, and how many there are."""
    shown = ", ".join(repr(str(name)) for name in list(names)[:limit])
    return shown if len(names) <= limit else f"{shown}, ... ({len(names)} in all)"


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    near = get_close_matches(name, known, n=1)
    return f"did you mean {near[0]!r}?" if near else f"there {'is' if len(known) == 1 else 'are'} {', '.join(known)}"
