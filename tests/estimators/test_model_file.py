"""Model files: what survives, what is refused, and what a failed save leaves behind. The contract test has the round trips."""

from __future__ import annotations

import errno
import functools
import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import cfiv
from cfiv import DFIV, DataError, IVData, ModelFileError, OutputError, Training, TwoStageLeastSquares

FORMULA = "y ~ x + r + [t ~ z]"


def table(n: int = 80, seed: int = 0) -> pd.DataFrame:
    z, x, r, u = np.random.default_rng(seed).normal(size=(4, n))
    t = z + u
    return pd.DataFrame({"y": t**2 + x + u, "t": t, "z": z, "x": x, "r": r})


def fit(**arguments: Any) -> DFIV:
    return DFIV(FORMULA, **({"steps": 3, "progress": False, "random_state": 0} | arguments)).fit(table())


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


def rewrite(path: Path, change: Any) -> None:
    """Change what the header says of the model, as an attacker or another version could."""
    header, tensors = split(path.read_bytes())
    ours = json.loads(header["__metadata__"]["cfiv"])
    change(ours)
    header["__metadata__"]["cfiv"] = json.dumps(ours)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + tensors)


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
    trained = DFIV(FORMULA, steps=3, progress=False, random_state=0, **arguments).fit(frame)
    trained.save(path)
    loaded = cfiv.load(path)
    np.testing.assert_array_equal(loaded.predict(frame), trained.predict(frame))
    pd.testing.assert_frame_equal(loaded.dose_response([0.0, 1.0]), trained.dose_response([0.0, 1.0]))
    assert str(loaded.summary()) == str(trained.summary())


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


@pytest.mark.parametrize(
    "change",
    [
        lambda h: h.pop("encoder"),
        lambda h: h.pop("components"),
        lambda h: h["components"][0].update(kind="pickled"),
        lambda h: h["components"][0]["networks"]["treatment"].update(layer="Embedding"),
        lambda h: h["components"][0]["networks"]["treatment"]["arguments"].update(inputs="os"),
        lambda h: h["components"].append(h["components"][0]),
        lambda h: h["encoder"]["roles"].update(surprise=1),
        lambda h: h["encoder"]["reference"].append({"name": "more", "categories": None}),
        lambda h: h["encoder"].update(parts={}),
    ],
)
def test_a_header_that_was_changed_is_refused(saved: Path, change: Any) -> None:
    rewrite(saved, change)
    message = refusal(saved)
    assert "changed" in message


@pytest.mark.parametrize(
    "term",
    ["__import__('pathlib').Path('{place}').touch()", 'C("`", __import__("pathlib").Path("{place}").touch(), "`")',
     "np.log.__class__", "{{(lambda: x)()}}"],
)  # fmt: skip
def test_a_formula_smuggled_into_a_file_runs_no_code(saved: Path, term: str, tmp_path: Path) -> None:
    place = tmp_path / "executed"
    rewrite(saved, lambda header: header["encoder"]["parts"]["covariates"].update(formula=term.format(place=place)))
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
        with pytest.warns(cfiv.MissingRowsWarning):
            fit = TwoStageLeastSquares(FORMULA, clusters="shop", covariance="clustered").fit(container(columns))
        covariances.append(fit.coefficients_["std_error"].tolist())
    assert covariances[0] == covariances[1]
