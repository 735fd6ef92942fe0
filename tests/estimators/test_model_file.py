"""Model files: what survives, what is refused, and what a failed save leaves behind. The contract test has the round trips."""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
import subprocess
import sys
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import load, save_file
from torch import nn

import cfiv
from cfiv import DFIV, DataError, IVData, KernelIV, NetworkRegression, SieveIV, Training, TwoStageLeastSquares
from cfiv.errors import ModelFileError, OutputError
from cfiv.tensor_file import _content, digest
from tests.estimators import test_contract as contract

FORMULA = "y ~ x + r + [t ~ z]"
#: Written, with the predictions, by the last cfiv whose model files had format 2.
OLD_FILES = Path(__file__).parent / "old_files"


def table(n: int = 80, seed: int = 0) -> pd.DataFrame:
    z, x, r, u = np.random.default_rng(seed).normal(size=(4, n))
    t = z + u
    return pd.DataFrame({"y": t**2 + x + u, "t": t, "z": z, "x": x, "r": r})


def fit(**arguments: Any) -> DFIV:
    return DFIV(FORMULA, **({"steps": 3, "fits": 1, "nested": False, "progress": False, "random_state": 0} | arguments)).fit(
        table()
    )


@functools.cache
def model() -> DFIV:
    return fit()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


@pytest.fixture
def saved(path: Path) -> Path:
    model().save(path)
    return path


def split(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors of a safetensors file."""
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def joined(header: dict[str, Any], tensors: bytes) -> bytes:
    """A safetensors file of a header and tensors."""
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + tensors


def rewrite(path: Path, change: Any, *, signed: bool = True) -> None:
    """Change what the header says of the model, as an attacker could, who knows how to compute a digest."""
    header, tensors = split(path.read_bytes())
    ours = json.loads(header["__metadata__"]["cfiv"])
    change(ours)
    if signed:
        ours.pop("digest")
        ours["digest"] = digest(ours, load(path.read_bytes()))
    header["__metadata__"]["cfiv"] = json.dumps(ours)
    path.write_bytes(joined(header, tensors))


def nest(depth: int) -> list[Any]:
    values: list[Any] = []
    for _ in range(depth):
        values = [values]
    return values


def refusal(path: object, **options: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        cfiv.load(path, **options)  # type: ignore[arg-type]
    return str(caught.value)


# What a file keeps


LAYERS = {
    "Softplus": lambda: nn.Softplus(beta=5.0, threshold=3.0),
    "LeakyReLU": lambda: nn.LeakyReLU(0.5),
    "ELU": lambda: nn.ELU(alpha=3.0),
    "GELU": lambda: nn.GELU(approximate="tanh"),
    "BatchNorm1d": lambda: nn.BatchNorm1d(4, eps=0.5),
    "BatchNorm1d without scale": lambda: nn.BatchNorm1d(4, affine=False),
    "LayerNorm": lambda: nn.LayerNorm(4, eps=0.5),
    "Linear without bias": lambda: nn.Linear(4, 4, bias=False),
    "Dropout": lambda: nn.Dropout(0.5),
    **{kind.__name__: kind for kind in (nn.Identity, nn.ReLU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Mish, nn.Flatten)},
}


@pytest.mark.law
@pytest.mark.parametrize("layer", LAYERS)
def test_every_plain_layer_comes_back_with_all_its_arguments(layer: str, path: Path) -> None:
    def network(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 4), nn.Sequential(LAYERS[layer]()), nn.Linear(4, 2))

    trained = fit(covariate_network=network)
    trained.save(path)
    np.testing.assert_array_equal(cfiv.load(path).predict(table()), trained.predict(table()))


@pytest.mark.law
@pytest.mark.parametrize(
    "arguments",
    [
        {"training": Training(double=True)},
        {"standardise": False},
        {"structure": "additive"},
        {"report": "current"},
        {"fits": 2},
        {"treatment_network": nn.Identity()},
        {"weights": "x2"},
    ],
    ids=str,
)
def test_every_kind_of_fit_comes_back_bit_for_bit(arguments: dict[str, Any], path: Path) -> None:
    frame = table().assign(x2=lambda f: f["x"] ** 2)
    given = {"steps": 3, "fits": 1, "nested": False, "progress": False, "random_state": 0} | arguments
    trained = DFIV(FORMULA, **given).fit(frame)
    trained.save(path)
    loaded = cfiv.load(path)
    np.testing.assert_array_equal(loaded.predict(frame), trained.predict(frame))
    pd.testing.assert_frame_equal(loaded.dose_response([0.0, 1.0]), trained.dose_response([0.0, 1.0]))
    assert str(loaded.summary()) == str(trained.summary())


@pytest.mark.law
@pytest.mark.parametrize("covariates", range(4))
@pytest.mark.parametrize(
    "kind", ["DFIV", "current", "NetworkRegression", "KernelIV", "SieveIV", "arrays in columns", "networks of arrays"]
)
def test_a_loaded_model_predicts_with_the_same_bits_at_any_number_of_rows(kind: str, covariates: int, path: Path) -> None:
    generator = np.random.default_rng(covariates)
    frame = table(60 + covariates).assign(**{f"w{i}": generator.normal(size=60 + covariates) for i in range(covariates)})
    names = ["x", *(f"w{i}" for i in range(covariates))]
    formula = f"y ~ {' + '.join(names)} + [t ~ z]"
    arguments: dict[str, Any] = {"steps": 2, "progress": False, "random_state": covariates}
    columns = np.asfortranarray(frame[names].to_numpy())
    data: Any = frame
    if "arrays" in kind:
        data = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], covariates=columns)
        trained: Any = (TwoStageLeastSquares() if kind == "arrays in columns" else DFIV(nested=False, **arguments)).fit(data)
    elif kind == "KernelIV":
        trained = KernelIV(formula, random_state=0).fit(frame)
    elif kind == "SieveIV":
        trained = SieveIV(formula, random_state=0).fit(frame)
    elif kind == "NetworkRegression":
        trained = NetworkRegression(formula, **arguments).fit(frame)
    else:
        trained = DFIV(formula, report="current" if kind == "current" else "refit", nested=False, **arguments).fit(frame)
    trained.save(path)
    loaded = cfiv.load(path)
    for rows in (1, 2, 3, 8, 17, 60):
        part = frame.iloc[:rows]
        if "arrays" in kind:
            part = IVData(treatment=part["t"], covariates=columns[:rows])
        np.testing.assert_array_equal(loaded.predict(part), trained.predict(part))
    pd.testing.assert_frame_equal(loaded.dose_response([0.0, 1.0]), trained.dose_response([0.0, 1.0]), check_exact=True)


@pytest.mark.law
def test_weights_come_back_as_they_lie_in_memory(path: Path) -> None:
    def columnwise(inputs: int) -> nn.Module:
        layer = nn.Linear(inputs, 5)
        layer.weight = nn.Parameter(layer.weight.detach().mT.contiguous().mT)
        return nn.Sequential(layer, nn.Tanh())

    trained = fit(covariate_network=columnwise)
    trained.save(path)
    loaded = cfiv.load(path)
    layers = [f.components[0].covariate_network[0] for f in (trained.structural_function_, loaded)]
    assert layers[0].weight.stride() == layers[1].weight.stride() == (1, 5)
    assert all(parameter.data_ptr() % 64 == 0 for parameter in loaded.components[0].covariate_network.parameters())
    np.testing.assert_array_equal(loaded.predict(table()), trained.predict(table()))


def test_facts_of_numpy_and_numbers_that_json_has_not_come_back_and_the_file_is_standard_json(path: Path) -> None:
    facts = {
        "a": np.float64(np.nan),
        "b": -np.inf,
        "c": np.int64(3),
        "d": np.bool_(True),
        "e": [{"x": np.float32(0.5)}],
        "f": None,
    }
    replace(model().structural_function_, facts=facts).save(path)
    loaded = cfiv.load(path)
    assert np.isnan(loaded.facts["a"])
    assert dict(loaded.facts) | {"a": 0} == {"a": 0, "b": -np.inf, "c": 3, "d": True, "e": [{"x": 0.5}], "f": None}

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads(split(path.read_bytes())[0]["__metadata__"]["cfiv"], parse_constant=refuse)


@pytest.mark.parametrize(
    "fact", [1j, {1}, b"bytes", np.array(["text"]), 10**5000, torch.eye(2).to_sparse(), nest(150)], ids=type
)
def test_facts_that_no_file_can_hold_are_refused_when_saving(fact: Any, path: Path) -> None:
    with pytest.raises(ModelFileError, match="a model file holds tensors, numbers and text, got"):
        replace(model().structural_function_, facts={"fact": fact}).save(path)
    assert not path.exists()


@pytest.mark.law
@pytest.mark.parametrize("name", ["a/b", "a\0b", "$x", "$tensor", "l" * 3000, "x\ny", "__metadata__", "ü €", "%s{}"])
def test_columns_of_any_name_come_back(name: str, path: Path) -> None:
    frame = table().rename(columns={"x": name})
    trained = TwoStageLeastSquares(outcome="y", treatment="t", instruments="z", covariates=name).fit(frame)
    trained.save(path)
    loaded = cfiv.load(path)
    np.testing.assert_array_equal(loaded.predict(frame), trained.predict(frame))
    assert str(loaded.summary()) == str(trained.summary())


TWICE = nn.Linear(3, 3)


@pytest.mark.law
@pytest.mark.parametrize(
    "network",
    [
        lambda inputs: nn.Sequential(OrderedDict(lift=nn.Linear(inputs, 3), bend=nn.Tanh())),
        lambda inputs: nn.Sequential(nn.Linear(inputs, 3), TWICE, nn.Tanh(), TWICE),
        lambda inputs: nn.Sequential(),
        lambda inputs: nn.Sequential(nn.Linear(inputs, 3), nn.LeakyReLU(np.float32(0.1))),  # type: ignore[arg-type]
        lambda inputs: nn.Linear(inputs, np.int64(2)),  # type: ignore[arg-type]
        lambda inputs: nn.Sequential(nn.Unflatten(1, (1, 1, inputs)), nn.AdaptiveAvgPool2d((1, None)), nn.Flatten()),
        lambda inputs: nn.Linear(inputs, 2, dtype=torch.float64),
    ],
)
def test_networks_of_plain_layers_come_back_however_they_are_put_together(network: Any, path: Path) -> None:
    trained = fit(covariate_network=network)
    trained.save(path)
    np.testing.assert_array_equal(cfiv.load(path).predict(table()), trained.predict(table()))


@pytest.mark.law
@pytest.mark.parametrize("change", ["hook", "pre-hook", "buffer", "forward"])
def test_a_plain_layer_that_was_given_something_else_to_do_is_one_of_one_s_own(change: str, path: Path) -> None:
    def network(inputs: int) -> nn.Module:
        layer: nn.Module = nn.Linear(inputs, 2)
        if change == "hook":
            layer.register_forward_hook(lambda module, given, made: made.abs())
        elif change == "pre-hook":
            layer.register_forward_pre_hook(lambda module, given: (given[0] + 1,))
        elif change == "buffer":
            layer = nn.Sequential(layer)
            layer.register_buffer("more", torch.ones(1))
        else:
            layer.forward = torch.sin  # type: ignore[method-assign]
        return layer

    fit(covariate_network=network).save(path)
    assert "whose code it does not hold" in refusal(path)


@pytest.mark.law
@pytest.mark.parametrize(
    ("term", "column"),
    [
        ("C(g)", ["a", "b", "ü €"]),
        ("C(g)", [1, 2, 3]),
        ("C(g)", [0.5, 1.0, 2.0]),
        ("C(g)", [True, False, True]),
        ("g", [True, False, True]),
        ("g", [1, 2, 3]),
        ("g", pd.Categorical(["x", "y", "x"], categories=["y", "x"])),
        ("poly(g, 2)", [1, 2, 4]),
        ("cr(r, df=3, constraints='center')", [1, 2, 4]),
    ],
    ids=str,
)
def test_covariates_of_any_kind_come_back_with_the_rows_that_are_averaged_over(term: str, column: Any, path: Path) -> None:
    values = column if isinstance(column, pd.Categorical) else pd.Series(column)
    frame = table().assign(g=values.take(np.random.default_rng(0).integers(0, 3, 80)).__array__())
    if isinstance(column, pd.Categorical):
        frame["g"] = frame["g"].astype(column.dtype)
    trained = TwoStageLeastSquares(f"y ~ x + {term} + [t ~ z]").fit(frame)
    trained.save(path)
    loaded = cfiv.load(path)
    np.testing.assert_array_equal(loaded.predict(frame), trained.predict(frame))
    pd.testing.assert_frame_equal(loaded.dose_response([0.0, 1.0]), trained.dose_response([0.0, 1.0]))


def test_categories_that_a_file_cannot_hold_are_refused_by_the_fit() -> None:
    dates = pd.Series(pd.date_range("2020-01-01", periods=2)).take(np.arange(80) % 2).to_numpy()
    with pytest.raises(DataError, match=r"values of type Timestamp .* as categories.*convert them to short text"):
        TwoStageLeastSquares("y ~ C(day) + [t ~ z]").fit(table().assign(day=dates))


def test_what_arrays_were_fitted_to_comes_back(path: Path) -> None:
    frame = table()
    data = IVData(outcome=frame["y"], treatment=frame[["t", "x"]], instruments=frame[["z", "r"]])
    trained = TwoStageLeastSquares().fit(data)
    trained.save(path)
    np.testing.assert_array_equal(cfiv.load(path).predict(data), trained.predict(data))


# Networks of one's own


class Own(nn.Module):
    def __init__(self, inputs: int, width: int = 3) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layer(x))


class Failing(Own):
    """The same weights for other inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.reshape(-1, 5))


class Unlike(nn.Linear):
    """Carries a plain layer's name and tensors, and does something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).abs()


Unlike.__name__ = "Linear"


@pytest.mark.parametrize("standardise", [True, False])
@pytest.mark.parametrize("give", [Own, Own(2)], ids=["factory", "module"])
def test_a_network_of_one_s_own_comes_back_when_it_is_given(give: Any, standardise: bool, path: Path) -> None:
    trained = fit(covariate_network=Own, standardise=standardise)
    trained.save(path)
    before = [parameter.clone() for parameter in give.parameters()] if isinstance(give, nn.Module) else []
    loaded = cfiv.load(path, networks={"covariate": give})
    np.testing.assert_array_equal(loaded.predict(table()), trained.predict(table()))
    if isinstance(give, nn.Module):
        assert all(torch.equal(one, other) for one, other in zip(before, give.parameters(), strict=True))


@pytest.mark.parametrize("network", [Own, lambda inputs: Unlike(inputs, 2)], ids=["own", "a subclass of a plain layer"])
def test_a_network_of_one_s_own_is_asked_for_by_name(network: Any, path: Path) -> None:
    fit(treatment_network=network).save(path)
    message = refusal(path)
    assert "the file's treatment network is a " in message
    assert "whose code it does not hold: give load(path, networks={'treatment': factory})" in message


@pytest.mark.parametrize(
    ("networks", "says"),
    [
        ({"covariate": lambda inputs: Own(inputs, width=5)}, ["does not fit", "size mismatch", "give the architecture"]),
        ({"covariate": lambda inputs: nn.Linear(inputs, 3)}, ["does not fit the file's weights"]),
        ({"covariate": lambda inputs: 1 / 0}, ["makes no network for inputs of shape (2,)", "ZeroDivisionError"]),
        ({"covariate": Failing}, ["makes no features of inputs of shape (2,)", "RuntimeError", "Own that was trained"]),
        ({"covariate": lambda: Own(2)}, ["makes no network for inputs of shape (2,)", "TypeError"]),
        ({"covariate": lambda inputs: "network"}, ["must be a module or a factory of one, got str"]),
        ({"covariate": None}, ["must be a module or a factory of one, got NoneType"]),
        ({"covariate": 3}, ["must be a module or a factory of one, got int"]),
        ({"psi": Own}, ["networks takes the keys 'treatment' and 'covariate', got ['psi']"]),
    ],
)  # fmt: skip
def test_a_wrong_network_is_refused(networks: dict[str, Any], says: list[str], path: Path) -> None:
    fit(covariate_network=Own).save(path)
    message = refusal(path, networks=networks)
    assert [part for part in says if part not in message] == []


# Files that are none


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 100, 0.3, 0.6, 0.999, -1])
def test_a_truncated_file_is_refused(saved: Path, keep: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    message = refusal(saved)
    for part in (str(saved), "is not a whole model file", "truncated or another kind of file", "save it again"):
        assert part in message


@pytest.mark.parametrize(
    "content", [b"", b"y,t,z\n1,2,3\n" * 20, b"\x80\x04\x95" + bytes(200), b"PK\x03\x04" + bytes(200), b"\xff" * 64],
    ids=["empty", "csv", "pickle", "zip", "noise"],
)  # fmt: skip
def test_another_kind_of_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert "another kind of file" in refusal(path)


def test_a_safetensors_file_of_another_program_is_refused(path: Path) -> None:
    for metadata in (None, {"format": "pt"}, {"cfiv": "no json"}, {"cfiv": "{}"}, {"cfiv": "[1]"}, {"cfiv": '{"format": "1"}'}):
        save_file({"weight": torch.ones(2)}, path, metadata)
        message = refusal(path)
        assert "was not written by cfiv, or was changed since" in message
        assert str(path) in message


def test_a_file_of_a_newer_version_names_the_version_to_install(saved: Path) -> None:
    rewrite(saved, lambda header: header.update(format=99, cfiv="7.3.0"))
    message = refusal(saved)
    for part in ("has format 99 of cfiv 7.3.0", f"cfiv {cfiv.__version__} reads up to format", "install cfiv 7.3.0 or newer"):
        assert part in message


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert f"there is no model file '{tmp_path / 'none'}': check the path" in refusal(tmp_path / "none")
    assert str(tmp_path) in refusal(tmp_path)


CHANGES = {
    "no encoder": lambda h: h.pop("encoder"),
    "no components": lambda h: h.pop("components"),
    "more": lambda h: h.update(more=1),
    "none of the components": lambda h: h["components"].clear(),
    "another kind of component": lambda h: h["components"][0].update(kind="pickled"),
    "a component twice": lambda h: h["components"].append(h["components"][0]),
    "another layer": lambda h: psi(h).update(layer="Embedding"),
    "a width that is text": lambda h: psi(h)["arguments"].update(inputs="os"),
    "billions of weights": lambda h: psi(h)["arguments"].update(hidden=[2**31, 2**31]),
    "billions of weights on a device": lambda h: psi(h)["arguments"].update(hidden=[2**31, 2**31], device="cpu"),
    "a hidden layer less": lambda h: psi(h)["arguments"]["hidden"].pop(),
    "other features": lambda h: psi(h)["arguments"].update(carry=False),
    "a structure that weights do not fit": lambda h: h["components"][0].update(structure="additive"),
    "networks of another precision": lambda h: h["components"][0].update(double=True),
    "no covariate network": lambda h: h["components"][0]["networks"].update(covariate=None),
    "weights as a scale": lambda h: h["components"][0]["outcome_scale"].update(mean=h["components"][0]["structural"]),
    "strides of terabytes": lambda h: h["components"][0]["structural"].update(strides=[2**40, 1]),
    "strides that overlap": lambda h: h["components"][0]["structural"].update(strides=[0, 0]),
    "complex weights": lambda h: h["components"][0]["structural"].update(complex=True),
    "a tensor that is not there": lambda h: h["components"][0]["structural"].update({"$tensor": "nowhere"}),
    "more roles": lambda h: h["encoder"]["roles"].update(surprise=1),
    "another formula": lambda h: h["encoder"]["roles"].update(covariates="x"),
    "another formula twice": lambda h: [part.update(covariates=new) for part, new in
                                        ((h["encoder"]["roles"], "x"), (h["encoder"]["parts"], formula_part(h, "x")))],
    "a column to average over more": lambda h: h["encoder"]["reference"].append({"name": "more", "categories": None}),
    "no rows to average over": lambda h: h["encoder"]["reference"].clear(),
    "no parts": lambda h: h["encoder"].update(parts={}),
    "other columns": lambda h: h["encoder"]["parts"]["covariates"].update(columns=["r", "x"]),
    "columns that are numbers": lambda h: h["encoder"]["parts"]["covariates"].update(columns=[1, 2]),
    "no levels": lambda h: h["encoder"]["parts"]["covariates"].update(levels=None),
    "other treatments": lambda h: h["encoder"].update(treatment_columns=["x"]),
    "an outcome of several": lambda h: h.update(outcome=["y"]),
    "facts of another kind": lambda h: h["facts"].update(Rows={"a": 1}),
    "text that is none": lambda h: h["facts"].update(Training="\ud800"),
    "nesting": lambda h: h["facts"].update(Rows=nest(150)),
}  # fmt: skip


def psi(header: dict[str, Any]) -> Any:
    return header["components"][0]["networks"]["treatment"]["description"]


def formula_part(header: dict[str, Any], formula: str) -> Any:
    return header["encoder"]["parts"]["covariates"] | {"formula": formula, "columns": [formula]}


@pytest.mark.parametrize("signed", [False, True], ids=["", "signed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_header_that_was_changed_is_refused(saved: Path, change: str, signed: bool) -> None:
    rewrite(saved, CHANGES[change], signed=signed)
    message = refusal(saved)
    assert "changed" in message
    assert str(saved) in message


@pytest.mark.parametrize("depth", [5_000, 200_000])
def test_what_is_nested_too_deeply_is_refused(saved: Path, depth: int) -> None:
    header, tensors = split(saved.read_bytes())
    for place in ("header", "metadata"):
        nested = '{"format": 3, "facts": ' + "[" * depth + "]" * depth + "}"
        if place == "metadata":
            saved.write_bytes(joined({**header, "__metadata__": {"cfiv": nested}}, tensors))
        else:
            saved.write_bytes(struct.pack("<Q", len(nested)) + nested.encode() + tensors)
        refusal(saved)


@pytest.mark.law
def test_every_flipped_bit_is_noticed(saved: Path) -> None:
    content = bytearray(saved.read_bytes())
    length = struct.unpack("<Q", content[:8])[0]
    generator = np.random.default_rng(0)
    # The safetensors header is padded with spaces, and what names a tensor is part of the digest.
    places = [*range(8), *generator.integers(8, 8 + length, 60), *generator.integers(8 + length, len(content), 60)]
    for place in places:
        if chr(content[place]) == " ":
            continue
        bit = 1 << int(generator.integers(8))
        content[place] ^= bit
        saved.write_bytes(content)
        refusal(saved)
        content[place] ^= bit


def test_numbers_that_no_fit_gives_are_refused_whatever_the_digest(saved: Path) -> None:
    def put(name: str, value: float) -> None:
        header, tensors = split(saved.read_bytes())
        start, end = header[name]["data_offsets"]
        size = {"F32": "<f", "F64": "<d"}[header[name]["dtype"]]
        changed = tensors[: end - struct.calcsize(size)] + struct.pack(size, value) + tensors[end:]
        assert start < end
        saved.write_bytes(joined(header, changed))
        rewrite(saved, lambda header: None)

    for name, value in (
        ("components/0/structural", np.nan),
        ("components/0/networks/treatment/state/tensors/layers.0.weight", np.inf),
        ("components/0/outcome_scale/scale", 0.0),
        ("components/1/covariate_scale/scale", -1.0),
        ("encoder/reference/0/values", np.nan),
    ):
        model().save(saved)
        put(name, value)
        assert "changed" in refusal(saved)


CALLS = ["poly(x, 2)", "bs(x, df=4)", "bs(x, 4)", "cr(x, df=4, constraints='center')", "C(g)", "center(x)"]


@pytest.mark.parametrize("term", CALLS)
def test_what_transforms_have_learned_is_complete_and_their_sizes_are_those_of_the_file(term: str, path: Path) -> None:
    frame = table().assign(g=["a", "b", "c", "d"] * 20)
    trained = TwoStageLeastSquares(f"y ~ {term} + [t ~ z]").fit(frame)

    def forget(header: Any) -> None:
        part = header["encoder"]["parts"]["covariates"]
        part["levels" if term == "C(g)" else "transform_state"] = [] if term == "C(g)" else {}

    def forget_half(header: Any) -> None:
        part = header["encoder"]["parts"]["covariates"]
        if term == "C(g)":
            part["levels"][0][1].pop()
        else:
            learned = next(iter(part["transform_state"].values()))
            learned.pop(next(iter(learned)))

    def enlarge(header: Any) -> None:
        formula = term.replace("2", "20000000").replace("4", "40000000").replace("center(x)", "x").replace("C(g)", "g")
        for place in (header["encoder"]["roles"], header["encoder"]["parts"]["covariates"]):
            place["covariates" if "covariates" in place else "formula"] = formula

    for change in (forget, forget_half, enlarge):
        trained.save(path)
        rewrite(path, change)
        refusal(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_rather_than_waited_for(path: Path) -> None:
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)


@pytest.mark.law
def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model().predict(table())

    def replaced(name: str) -> bytes:
        content = _content(name)
        saved.write_bytes(content[:100])
        return content

    monkeypatch.setattr("cfiv.tensor_file._content", replaced)
    np.testing.assert_array_equal(cfiv.load(saved).predict(table()), expected)


# Files of earlier versions


@pytest.mark.oracle
@pytest.mark.parametrize("name", ["linear", "kernel", "network", "arrays", "images"])
def test_a_file_of_format_2_is_read_and_predicts_what_the_cfiv_that_wrote_it_predicted(name: str) -> None:
    file = OLD_FILES / f"{name}.safetensors"
    assert json.loads(split(file.read_bytes())[0]["__metadata__"]["cfiv"])["format"] == 2
    loaded = cfiv.load(file)
    expected = json.loads((OLD_FILES / "predictions.json").read_text())[name]
    if loaded.encoder.kind == "array":
        shape = loaded.encoder.treatment_shape
        treatment = np.arange(5 * np.prod(shape)).reshape(5, *shape) % 7
        predicted = loaded.predict(treatment=treatment, covariates=loaded.encoder.reference[:5])
    else:
        predicted = loaded.predict(loaded.encoder.reference.iloc[:5])
    np.testing.assert_allclose(predicted, expected, rtol=1e-12)  # another machine sums in another order


@pytest.mark.parametrize("name", ["linear", "kernel", "network", "images"])
def test_a_damaged_file_of_format_2_has_no_digest_and_is_compared_all_the_same(name: str, path: Path) -> None:
    content = (OLD_FILES / f"{name}.safetensors").read_bytes()
    header, tensors = split(content)
    for entry in [entry for entry in header if entry != "__metadata__"]:
        path.write_bytes(joined({key if key != entry else "renamed": value for key, value in header.items()}, tensors))
        refusal(path)


@pytest.mark.parametrize(
    "term",
    ["__import__('pathlib').Path('{place}').touch()", 'C("`", __import__("pathlib").Path("{place}").touch(), "`")',
     "np.log.__class__", "{{(lambda: x)()}}"],
)  # fmt: skip
def test_a_formula_smuggled_into_a_file_runs_no_code(saved: Path, term: str, tmp_path: Path) -> None:
    place = tmp_path / "executed"

    def smuggle(header: Any) -> None:
        header["encoder"]["parts"]["covariates"]["formula"] = term.format(place=place)
        header["encoder"]["roles"]["covariates"] = term.format(place=place)

    rewrite(saved, smuggle)
    with pytest.raises(cfiv.CfivError):
        cfiv.load(saved).predict(table())
    assert not place.exists()


def test_loading_draws_nothing_from_the_global_generator(saved: Path) -> None:
    before = torch.get_rng_state()
    cfiv.load(saved)
    assert torch.equal(torch.get_rng_state(), before)


# Places that cannot be written to


@pytest.mark.parametrize("target", ["no/such/folder/model", "file/model", "folder", "x" * 300])
def test_a_place_that_cannot_be_written_to_is_refused_and_left_as_it_was(target: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a regular file")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "content").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError) as caught:
        model().save(tmp_path / target)
    assert f"'{tmp_path / target}' cannot be written" in str(caught.value)
    assert "choose a folder that exists and is writable" in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("broken", ["tempfile.mkdtemp", "pathlib.Path.write_bytes", "os.replace"])
@pytest.mark.parametrize("reason", [errno.EACCES, errno.EROFS, errno.ENOSPC])
def test_a_failed_save_keeps_the_file_that_was_there(
    broken: str, reason: int, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read-only folders and full disks, by the errors that they give: tests may run as root, whom no permission stops."""
    before = saved.read_bytes()

    def fail(*arguments: Any, **options: Any) -> None:
        raise OSError(reason, os.strerror(reason))

    with monkeypatch.context() as patched:
        patched.setattr(broken, fail)
        with pytest.raises(OutputError, match=rf"cannot be written \({os.strerror(reason)}\): choose a folder"):
            fit(fits=2).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]  # no temporary file is left behind


@pytest.mark.skipif(os.geteuid() == 0, reason="no permission stops root")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="choose a folder that exists and is writable"):
            model().save(tmp_path / "model")
    finally:
        tmp_path.chmod(0o700)


def test_ctrl_c_during_a_save_keeps_the_file_that_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            model().save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_a_saved_file_has_the_permissions_that_a_new_file_gets(saved: Path) -> None:
    ordinary = saved.with_name("ordinary")
    ordinary.touch()
    assert saved.stat().st_mode == ordinary.stat().st_mode


def test_large_whole_numbers_that_name_categories_are_saved_to_the_last_digit(path: Path) -> None:
    frame = table().assign(shop=2**60 + np.arange(80) // 20)  # as floats all the same
    few = frame.assign(shop=np.arange(80) // 20)
    model, plain = (TwoStageLeastSquares("y ~ C(shop) + [t ~ z]").fit(rows) for rows in (frame, few))
    model.save(path)
    loaded = cfiv.load(path)
    expected = plain.dose_response([0.0, 1.0])["estimate"]
    np.testing.assert_array_equal(model.dose_response([0.0, 1.0])["estimate"], expected)
    np.testing.assert_array_equal(loaded.dose_response([0.0, 1.0])["estimate"], expected)
    np.testing.assert_array_equal(loaded.predict(frame), plain.predict(few))


@pytest.mark.parametrize("container", [pd.DataFrame, pl.DataFrame, dict], ids=["pandas", "polars", "dict"])
def test_large_whole_numbers_label_clusters_also_where_some_are_missing(container: Any) -> None:
    frame = table()
    few = [None, *(np.arange(79) // 8).tolist()]
    large = [None if label is None else 2**60 + label for label in few]
    covariances = []
    for labels in (few, large):
        columns = {**frame.to_dict("list"), "shop": pd.array(labels, dtype="Int64") if container is pd.DataFrame else labels}
        with pytest.warns(cfiv.errors.MissingRowsWarning):
            fit = TwoStageLeastSquares(FORMULA, clusters="shop", covariance="clustered").fit(container(columns))
        covariances.append(fit.coefficients_["std_error"].tolist())
    assert covariances[0] == covariances[1]


@pytest.mark.contract
def test_in_a_new_process_loaded_models_answer_with_the_same_bits(tmp_path: Path) -> None:
    expected = {}
    for kind in contract.ESTIMATORS:
        model = contract.fitted(kind, contract.RICH)
        model.save(tmp_path / kind.__name__)
        expected[kind.__name__] = contract.answers(model, contract.table())
    program = (
        "import sys; import numpy as np; import cfiv; from tests.estimators.test_contract import answers, table\n"
        "for path in sys.argv[1:]: np.save(path + '.npy', answers(cfiv.load(path), table()))"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", program, *(tmp_path / name for name in expected)], cwd=root, check=True)
    for name, answer in expected.items():
        np.testing.assert_array_equal(np.load(tmp_path / f"{name}.npy"), answer)
