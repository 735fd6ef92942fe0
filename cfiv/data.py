"""IVData: the arrays of an instrumental-variable problem, each in its role. Only here do tables become arrays and tensors."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence, Set
from copy import copy
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfiv.arrays import Array as Array
from cfiv.arrays import are_positive, as_array, is_tensor, numeric_array
from cfiv.errors import DataError, quoted
from cfiv.labels import check_same_rows, label_codes
from cfiv.mapped import is_mapped, release

if TYPE_CHECKING:
    import torch

#: Whole numbers up to this are floats exactly.
EXACT = 2**53
ROLES = ("outcome", "treatment", "instruments", "covariates", "weights", "clusters", "fixed_effects")


@dataclass(frozen=True, eq=False)
class IVData:
    """Observations of ``Y = h(T, X) + e`` with ``E[e | Z, X] = 0``, one array a role.

    Parameters
    ----------
    outcome : array (n,), optional
        ``Y``. Needed to fit, not to predict.
    treatment : array (n,), (n, k) or (n, ...) for images
        ``T``, the endogenous variables.
    instruments : array (n,) or (n, q), optional
        ``Z``, without the covariates: those enter both stages by themselves. Needed to fit, not to predict.
    covariates : array (n,) or (n, p), optional
        ``X``, exogenous and possibly part of the structural function.
    weights : array (n,), optional
        Row weights >= 0; only their ratios matter. Rows of weight zero are left out, of averages too. Each other row is one
        observation whatever its weight: for estimates, whole numbers are as good as repeated rows, for standard errors and
        tests they are not.
    clusters : array (n,) or (n, 2), optional
        Labels (numbers or text) of groups of rows whose errors may be correlated, for clustered covariances, and which no split
        of rows parts; of one kind or, for linear estimators, of two. Kept as whole numbers from 0.
    fixed_effects : array (n,) or (n, m), optional
        Labels of groups of rows with a constant of their own each, of one or several kinds (firms, years), which linear
        estimators absorb; kept as whole numbers from 0.
    frame : DataFrame, optional
        The table that the arrays came from, for estimators that are given a formula.
    names : mapping from role to column names, optional
        How to call the columns in tables and figures; ``treatment0``, ``treatment1``, ... by default.
    row_labels : Index (n,), optional
        Of pandas, for residuals and fitted values; by default those of the roles or the frame, if any has some.

    Attributes
    ----------
    columns : mapping from role to names
        Of roles that were given as tables of several named columns. Later data that name theirs must have the same order.

    Raises
    ------
    DataError
        If a role holds anything but finite real numbers (dates, text, categories and masked or missing values are refused with
        the first row), is of the wrong dimension or length, or the weights are negative or all zero; or if two roles, or a role
        and the frame, have different row labels.

    Notes
    -----
    Any array-like will do: of numpy, pandas, polars, Arrow or torch, and lists. Arrays are kept as given (an image may stay
    uint8) with a trailing axis added to one-dimensional ones; nothing is copied unless needed, so that a fit sees what is
    changed in an array afterwards. Numbers that torch does not have, such as long doubles and decimals, become float64.

    Rows go by position. Where two roles have row labels, the index of a Series or DataFrame of pandas, these must be equal and
    in the same order; what has none goes with anything of its length.

    Examples
    --------
    >>> data = IVData(outcome=[1.0, 2.0, 4.0], treatment=[0.0, 1.0, 2.0], instruments=[0.0, 0.0, 1.0])
    >>> len(data), data.treatment.shape
    (3, (3, 1))
    """

    outcome: Any = None
    treatment: Any = None
    instruments: Any = None
    covariates: Any = None
    weights: Any = None
    clusters: Any = None
    fixed_effects: Any = None
    frame: pd.DataFrame | None = None
    names: Mapping[str, Sequence[str]] | None = None
    row_labels: pd.Index | None = None
    columns: Mapping[str, tuple[str, ...]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.treatment is None:
            raise DataError("a treatment is needed, got None: IVData(treatment=...)")
        if self.frame is not None and not isinstance(self.frame, pd.DataFrame):
            object.__setattr__(self, "frame", read_table(self.frame))
        given = {role: getattr(self, role) for role in (*ROLES, "frame") if getattr(self, role) is not None}
        labels = {role: column_labels(value) for role, value in given.items() if role != "frame"}
        object.__setattr__(self, "columns", {role: names for role, names in labels.items() if names is not None})
        for role in labels:
            object.__setattr__(self, role, _role_array(role, given[role]))
        rows = {role: len(getattr(self, role)) for role in (*ROLES, "frame") if getattr(self, role) is not None}
        if len(set(rows.values())) > 1:
            raise DataError(f"all roles, and the frame, must have the same number of rows, got {rows}")
        check_same_rows(given)
        if self.row_labels is None:
            indices = (value.index for value in given.values() if isinstance(value, (pd.Series, pd.DataFrame)))
            object.__setattr__(self, "row_labels", next(indices, None))
        else:
            index = pd.Index(self.row_labels if np.ndim(self.row_labels) else [self.row_labels])
            if len(index) != len(self):
                raise DataError(f"row_labels must have a label for each of the {len(self)} rows, got {len(index)}")
            object.__setattr__(self, "row_labels", index)
        if self.treatment.shape[0] == 0:
            raise DataError("the data have no rows: give at least one")
        if self.weights is not None:
            if (self.weights < 0).any():
                raise DataError(f"weights must be >= 0, got a smallest of {self.weights.min():g}")
            if not self.weights.max() > 0:
                raise DataError("weights are all zero: give at least one row a weight > 0")
        object.__setattr__(self, "names", _complete_names(self))

    def __len__(self) -> int:
        return int(self.treatment.shape[0])

    def with_positive_weight(self) -> IVData:
        """The rows whose weight is not zero, the largest weight scaled to one; the same data where there are no weights."""
        there = self.without_zero_weights()
        return there if there.weights is None else replace(there, weights=there.weights / there.weights.max())

    def without_zero_weights(self) -> IVData:
        """The rows whose weight is not zero beside the largest; the same data where all are."""
        if self.weights is None:
            return self
        kept = are_positive(self.weights)
        return self if kept.all() else self.take(kept)  # of all nothing is copied

    def take(self, rows: Array) -> IVData:
        """Some of the rows, by a mask (n,) or numbers."""
        arrays = {role: None if array is None else array[rows] for role in ROLES for array in (getattr(self, role),)}
        frame = None if self.frame is None else self.frame.iloc[rows]
        labels = None if self.row_labels is None else self.row_labels[rows]
        return IVData(**arrays, frame=frame, names=self.names, row_labels=labels)

    def without_frame(self) -> IVData:
        """The same arrays, which have been checked, without the table that they come from."""
        made = copy(self)
        object.__setattr__(made, "frame", None)
        return made

    def release(self) -> None:
        """Give back the memory that reading arrays on disk has taken."""
        release(*(getattr(self, role) for role in ROLES))

    def check_observed(self, purpose: str) -> None:
        """Raise unless outcome and instruments are there.

        Raises
        ------
        DataError
            If one of them is missing.
        """
        for role in ("outcome", "instruments"):
            if getattr(self, role) is None:
                raise DataError(f"{purpose} needs {role}, got none: give IVData({role}=...) or name the {role}'s columns")

    def check_fittable(self) -> None:
        """Raise unless the data can identify anything at all.

        Raises
        ------
        DataError
            If the outcome or the instruments are missing, or a treatment, an instrument or the outcome does not vary.
        """
        self.check_observed("fitting")
        if len(self) < 2:
            raise DataError(f"fitting needs at least 2 rows, got {len(self)}")
        assert self.names is not None
        for role in ("outcome", "treatment", "instruments"):
            values = getattr(self, role).reshape(len(self), -1)
            constant = values.min(axis=0) == values.max(axis=0)  # without an array of the size of all images
            if role == "outcome" or values.shape[1] <= len(self.names[role]):
                culprits = [name for name, flag in zip(self.names[role], np.atleast_1d(constant), strict=False) if flag]
            else:
                culprits = [role] if constant.all() else []
            if culprits:
                raise DataError(
                    f"{role} {quoted(culprits)} is constant over {len(self)} rows and identifies nothing: drop it or use "
                    "data in which it varies"
                )


def to_tensor(array: Array, *, dtype: torch.dtype | None, device: torch.device | str = "cpu") -> torch.Tensor:
    """Copy an array into a tensor (n, ...). A copy, since pandas hands out read-only and column-ordered arrays.

    With ``dtype=None`` it keeps the array's; numbers of more than 64 bits, which torch has not, become float64.
    """
    import torch

    # In the machine's byte order, for torch knows no other: pictures often come from files in the other one.
    kept = np.float64 if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.array(array, dtype=kept, order="C", copy=True)).to(device=device, dtype=dtype)


def stored_tensor(array: Array, *, device: torch.device | str = "cpu") -> torch.Tensor:
    """Images as a tensor (n, ...) of their own type: a copy, or of those on disk, where the processor reads them, none."""
    import torch

    if is_mapped(array) and torch.device(device).type == "cpu" and array.dtype.isnative and array.dtype.itemsize <= 8:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable", UserWarning)  # and is not written to
            return torch.from_numpy(array)
    return to_tensor(array, dtype=None, device=device)


def read_table(table: object) -> pd.DataFrame:
    """A pandas, polars or any other narwhals-readable table, or a mapping of columns, as pandas with a fresh index.

    Raises
    ------
    DataError
        If the object is no table, or has no rows or duplicate column names, or is a mapping of Series with different indices.
    """
    if isinstance(table, IVData):
        if table.frame is None:
            raise DataError(
                "this estimator names columns, but the IVData holds arrays only: give it a table, or IVData(frame=...)"
            )
        table = table.frame
    if isinstance(table, Mapping):
        check_same_rows({f"column {name!r}": column for name, column in table.items()})
        columns = {name: _column(f"column {name!r}", column) for name, column in table.items()}
        try:
            table = pd.DataFrame(columns)
        except (TypeError, ValueError) as error:
            raise DataError(f"a mapping must hold columns of one length, got one that makes no table: {error}") from None
    if isinstance(table, (str, os.PathLike)):
        raise DataError(f"a table is needed here, got the name '{os.fspath(table)}': read it, such as with pandas.read_parquet")
    if isinstance(table, pd.DataFrame):
        frame = table.reset_index(drop=True)
    else:
        frame = _from_narwhals(table)
    duplicated = frame.columns[frame.columns.duplicated()]
    if len(duplicated):
        raise DataError(f"column names must be unique, got {quoted(list(duplicated))} more than once: rename them")
    if len(frame) == 0:
        raise DataError("the table has no rows: give at least one")
    return frame


def _column(name: str, values: Any) -> Any:
    """A column for pandas, which would go by a Series' index and knows no gradients."""
    if isinstance(values, pd.Series):
        return values.array
    if is_tensor(values):
        return as_array(name, values)
    return _listed(values) if isinstance(values, (list, tuple)) else values


def _listed(values: Sequence[Any]) -> Any:
    """A column of what is in a list; whole numbers that pandas would round, since some are missing, are kept as objects."""
    column = pd.Series(values)
    rounded = column.dtype == np.float64 and any(isinstance(value, Integral) and abs(int(value)) > EXACT for value in values)
    return (pd.Series(values, dtype=object) if rounded else column).array


def _from_narwhals(table: object) -> pd.DataFrame:
    import narwhals as nw

    try:
        native = nw.from_native(table)  # type: ignore[call-overload]
    except TypeError:
        raise DataError(
            "a table is needed (pandas, polars, anything narwhals reads, or a mapping of columns), got "
            f"{type(table).__name__}; give arrays as "
            "IVData(outcome=..., treatment=..., instruments=..., covariates=...)"
        ) from None
    if isinstance(native, nw.LazyFrame):
        native = native.collect()
    # Column by column: narwhals' own to_pandas asks polars for pyarrow, which need not be installed.
    columns = {}
    for name in native.columns:
        column = native[name]
        if column.dtype.is_integer() and column.null_count():
            columns[name] = _listed(column.to_list())
        elif column.dtype.is_numeric():
            columns[name] = column.to_numpy()
        else:
            columns[name] = pd.Series(column.to_list(), dtype=_categorical(column.dtype))
    return pd.DataFrame(columns)


def _categorical(dtype: Any) -> pd.CategoricalDtype | None:
    """The categories of a narwhals type, in the order that it declares; None for other types."""
    import narwhals as nw

    if isinstance(dtype, nw.Enum):
        return pd.CategoricalDtype(list(dtype.categories))
    return pd.CategoricalDtype() if dtype == nw.Categorical else None


def _role_array(role: str, value: object) -> Array:
    if role in ("clusters", "fixed_effects"):
        return _codes(role, value)
    array = numeric_array(role, value)
    if role in ("outcome", "weights"):
        if array.ndim == 2 and array.shape[1] == 1:
            array = array[:, 0]
        if array.ndim != 1:
            raise DataError(f"{role} must be one number a row, shape (n,), got shape {array.shape}")
        return array.astype(np.float64, copy=False)
    if array.ndim == 0:
        raise DataError(f"{role} must be an array of rows, got the single value {array}")
    if array.ndim == 1:
        array = array[:, None]
    if role != "treatment" and array.ndim != 2:
        raise DataError(f"{role} must have shape (n,) or (n, columns), got {array.shape}")
    if math.prod(array.shape[1:]) == 0:
        raise DataError(f"{role} must have at least one column, got shape {array.shape}; leave it out if there is none")
    return array


def _codes(role: str, value: object) -> Array:
    """Labels as whole numbers, one column a kind; clusters of one kind have no second axis, as splits of rows take them."""
    columns = getattr(value, "columns", None)
    if columns is not None and len(columns):
        kinds = [label_codes(f"{role} {name!r}", value[name]) for name in columns]  # type: ignore[index]
    elif (labels := as_array(role, value)).ndim == 2 and labels.shape[1]:
        kinds = [label_codes(role, column) for column in labels.T]
    else:
        kinds = [label_codes(role, value)]
    if role == "clusters" and len(kinds) > 2:
        raise DataError(f"clusters may be of two kinds at most, got {len(kinds)}: combine some into one")
    return kinds[0] if role == "clusters" and len(kinds) == 1 else np.stack(kinds, axis=1)


def column_labels(value: object) -> tuple[str, ...] | None:
    """Names of the columns of a table that is given as an array; None where there is one column, or they have no names."""
    columns = getattr(value, "columns", None)
    if columns is None or isinstance(columns, pd.RangeIndex) or len(columns) < 2:
        return None
    return tuple(map(str, columns))


def _texts(role: str, chosen: Any) -> tuple[str, ...]:
    texts = (chosen,) if isinstance(chosen, str) else tuple(chosen) if np.iterable(chosen) else (chosen,)
    if isinstance(chosen, (bytes, Set, Mapping)) or any(not isinstance(text, str) for text in texts):
        raise DataError(f"names[{role!r}] must be text, or several in an order, got {chosen!r}")
    return texts


def _complete_names(data: IVData) -> dict[str, tuple[str, ...]]:
    given = {} if data.names is None else data.names
    if not isinstance(given, Mapping):
        raise DataError(f"names must be a mapping from role to column names, got {type(given).__name__}")
    unknown = [role for role in given if role not in ROLES]
    if unknown:
        raise DataError(f"names has the unknown roles {quoted(unknown)}: the roles are {quoted(ROLES)}")
    names: dict[str, tuple[str, ...]] = {}
    for role in ROLES:
        array = getattr(data, role)
        if array is None:
            continue
        width = 1 if array.ndim == 1 else array.shape[1]
        if array.ndim > 2:
            default: tuple[str, ...] = (role,)
        elif width == 1:
            default = (role if role == "weights" else role.removesuffix("s"),)
        else:
            default = tuple(f"{role.removesuffix('s')}{i}" for i in range(width))
        chosen = given.get(role, default)
        names[role] = _texts(role, chosen)
        if len(names[role]) != len(default):
            raise DataError(f"names[{role!r}] must name {len(default)} columns, got {list(names[role])}")
        if len(set(names[role])) < len(names[role]):
            raise DataError(f"names[{role!r}] must be different from one another, got {list(names[role])}")
    return names
