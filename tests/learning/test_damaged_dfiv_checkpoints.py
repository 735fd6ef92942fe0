"""Files of DFIV's fits that were changed: refused before anything of them is used, whatever their digest says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from cfiv import DFIV, Training
from cfiv.errors import ModelFileError
from cfiv.learning.run_file import RUN_FILE, RunFile
from cfiv.tensor_file import nested

Values = dict[str, Any]


class KilledError(BaseException):
    """Nobody catches it."""


def table() -> pd.DataFrame:
    z, x, u = np.random.default_rng(0).normal(size=(3, 60))
    return pd.DataFrame({"y": z + u + x, "t": z + u, "z": z, "x": x})


def small(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))


def dfiv(**options: Any) -> DFIV:
    given = {
        "steps": 8,
        "progress": False,
        "random_state": 0,
        "device": "cpu",
        "batch_size": 16,
        "training": Training(checks=4),
    }
    return DFIV("y ~ x + [t ~ z]", **given, **options)


def alone() -> DFIV:
    """One member, of networks that cannot train side by side."""
    return dfiv(swap=False, **{f"{role}_network": small for role in ("treatment", "instrument", "covariate")})


def member(values: Values, place: int = 0) -> Values:
    found: Values = values["members"][place]
    return found


#: Of any fit.
ALTERATIONS: dict[str, Callable[[Values], object]] = {
    "nothing left": lambda v: v.clear(),
    "more": lambda v: v.update(more=1),
    "too many steps": lambda v: v.update(done=9),
    "no step": lambda v: v.update(done=0),
    "another step": lambda v: v.update(done=v["done"] - 1),
    "steps that are text": lambda v: v.update(done="5"),
    "interrupted": lambda v: member(v).update(ended="interrupted"),
    "finished": lambda v: member(v).update(ended="finished"),
    "diverged for no reason": lambda v: member(v).update(ended="diverged"),
    "a reason without an end": lambda v: member(v).update(reason=["training diverged", ""]),
    "a reason that is a number": lambda v: member(v).update(reason=[1, 2]),
    "a member less": lambda v: v["members"].pop(),
    "a member more": lambda v: v["members"].append(member(v)),
    "a shorter history": lambda v: member(v)["history"].pop(),
    "a longer history": lambda v: member(v)["history"].append(dict(member(v)["history"][-1])),
    "a history of other steps": lambda v: member(v)["history"][0].update(step=3),
    "a history of text": lambda v: member(v)["history"][0].update(heldout_loss="x"),
    "a history of infinite losses": lambda v: member(v)["history"][0].update(stage2_loss=float("inf")),
    "losses too many": lambda v: v["losses"].append([torch.ones(1), torch.ones(1)]),
    "losses of more members": lambda v: v["losses"].__setitem__(0, [torch.ones(7), torch.ones(7)]),
    "nothing kept": lambda v: member(v).update(kept=None),
    "a state of a later step": lambda v: member(v)["best"].__setitem__(0, 8),
    "a table of losses": lambda v: member(v)["best"].__setitem__(3, torch.ones(3, 2, dtype=torch.float64)),
    "a network of a state": lambda v: member(v)["kept"][1].pop(),
    "V of a state": lambda v: member(v)["kept"][2].__setitem__(0, torch.ones(2, 2, dtype=torch.float64)),
    "a ridge that is text": lambda v: member(v)["kept"][2].__setitem__(3, "x"),
    "a ridge that is no number": lambda v: member(v)["kept"][2].__setitem__(3, float("nan")),
    "risen too often": lambda v: member(v).update(risen=10**9),
    "a network less": lambda v: v["networks"].pop(),
    "a member less of a network": lambda v: v["networks"][0].pop(),
    "an optimiser less": lambda v: v["optimisers"].pop(),
    "an optimiser's options": lambda v: v["optimisers"][0]["param_groups"][0].update(peak=5.0),
    "an optimiser's kept": lambda v: v["optimisers"][0]["state"][0].update(exp_avg=torch.ones(7)),
    "u": lambda v: v["memories"][1].__setitem__(0, torch.ones(1, 2, 1, dtype=torch.float64)),
    "u that is none": lambda v: v["memories"].__setitem__(1, None),
    "u that remembers text": lambda v: v["memories"][1].append("x"),
    "a last layer less": lambda v: v["memories"].pop(),
    "instrument features": lambda v: member(v)["more"].update(instrument_features={"a": torch.ones(1)}),
    "a stage-1 loss that is text": lambda v: member(v)["more"].update(stage1_heldout_loss="x"),
    "a generator": lambda v: v["draws"][0].fill_(7),
}
#: Of rows of parameters.
ROWS: dict[str, Callable[[Values], object]] = {
    "a row of another length": lambda v: v["networks"][0].__setitem__(0, torch.ones(3)),
    "a row of another type": lambda v: v["networks"][0].__setitem__(0, v["networks"][0][0].double()),
    "a row that is not finite": lambda v: v["networks"][0][0].fill_(torch.nan),
    "a row of a state": lambda v: member(v, 1)["kept"][1].__setitem__(0, torch.ones(3)),
}
#: Of whole modules.
MODULES: dict[str, Callable[[Values], object]] = {
    "weights of a network": lambda v: v["networks"][0][0].popitem(),
    "weights of a state": lambda v: member(v)["kept"][1][0].popitem(),
    "a variance that is negative": lambda v: v["networks"][0][0]["tensors"]["1.running_var"].fill_(-1.0),
}


#: Sizes of which nothing else in a file speaks.
SIZES: dict[str, Callable[[Values], object]] = {
    "losses of other rows": lambda v: member(v)["best"].__setitem__(3, torch.ones(3, dtype=torch.float64)),
    "u that remembers more": lambda v: v["memories"][1].append(torch.ones(1, 2, dtype=torch.float64)),
}


@pytest.mark.parametrize(
    ("make", "alterations"),
    [
        pytest.param(dfiv, {**ALTERATIONS, **ROWS}, id="side by side"),
        pytest.param(alone, {**ALTERATIONS, **MODULES}, id="alone"),
        pytest.param(alone, SIZES, id="sizes"),
    ],
)
def test_values_that_this_fit_would_not_have_written_are_refused(
    make: Callable[[], DFIV],
    alterations: dict[str, Callable[[Values], object]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write, written = RunFile.write, [0]

    def killing(self: RunFile, values: Any) -> None:
        write(self, values)
        written[0] += 1
        if written[0] == 5:
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(RunFile, "write", killing)
        with pytest.raises(KilledError):
            make().fit(table(), checkpoint=tmp_path, every=1)
    (file,) = tmp_path.iterdir()
    content = file.read_bytes()
    taken = []
    for name, alter in alterations.items():
        file.write_bytes(content)
        _, header, tensors = RUN_FILE.read(file)
        found = nested(header, tensors)
        alter(found["values"])
        RUN_FILE.write(file, found)
        try:
            make().fit(table(), checkpoint=tmp_path)
        except ModelFileError as error:
            refusal = str(error)
        else:
            refusal = "it was taken"
        if "was changed since" not in refusal:
            taken.append(name)
    assert not taken, taken
    file.write_bytes(content)
    resumed = make().fit(table(), checkpoint=tmp_path)
    np.testing.assert_array_equal(resumed.predict(table()), make().fit(table()).predict(table()))
