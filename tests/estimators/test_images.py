"""Images as treatments: how they are stored and scaled, which networks take them, what is refused, what a file keeps."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cfiv
from cfiv import DFIV, DataError, IVData, KernelIV, NetworkRegression, ParameterError
from cfiv.datasets import dsprites
from cfiv.errors import ModelFileError
from cfiv.estimators.standardised import StandardisedData
from cfiv.estimators.units import Standardiser
from cfiv.networks import original_networks
from cfiv.runtime.draws import seeded
from tests.estimators.test_model_file import OLD_FILES, rewrite

#: Standardised in float32 or in float64, then a few steps of training in float32.
SINGLE = 1e-3
CPU = torch.device("cpu")
ESTIMATORS = pytest.mark.parametrize("estimator", [DFIV, NetworkRegression])


def pictures(n: int = 60, shape: tuple[int, ...] = (8, 8), *, seed: int = 0) -> IVData:
    """Bytes whose brightness follows the instrument and a confounder; they cover 0..255."""
    z, u = np.random.default_rng(seed).uniform(-1, 1, (2, n))
    bright = (0.7 * z + 0.3 * u).reshape(n, *(1 for _ in shape))
    noise = np.random.default_rng(seed + 1).normal(0, 10, (n, *shape))
    images = np.clip(128 + 110 * bright + noise, 0, 255).astype(np.uint8)
    images[0].flat[:2] = 0, 255
    return IVData(outcome=bright.reshape(n) ** 2 + 0.3 * u, treatment=images, instruments=z)


def with_images(data: IVData, images: np.ndarray) -> IVData:
    return IVData(outcome=data.outcome, treatment=images, instruments=data.instruments)


def quick(estimator: Any = DFIV, **arguments: Any) -> Any:
    return estimator(**({"steps": 4, "progress": False, "random_state": 0} | arguments))


# How images are stored and scaled


@pytest.mark.law
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("standardise", [True, False])
def test_images_stay_as_they_are_stored_and_their_network_standardises_them(dtype: Any, standardise: bool) -> None:
    data = pictures()
    data = with_images(data, data.treatment.astype(dtype))
    prepared = StandardisedData.prepare(data, device=CPU, double=False, standardise=standardise)
    assert prepared.sample.treatment.numpy().dtype == dtype
    np.testing.assert_array_equal(prepared.sample.treatment.numpy(), data.treatment)
    pixels = data.treatment.astype(np.float64)
    expected = (pixels - pixels.mean()) / pixels.std() if standardise else pixels
    got = prepared.on_stored(nn.Flatten())(prepared.sample.treatment)
    assert got.dtype == torch.float32
    # The rounding of float32.
    np.testing.assert_allclose(got.numpy(), expected.reshape(60, -1), rtol=1e-6, atol=1e-6)


@pytest.mark.law
@ESTIMATORS
@pytest.mark.parametrize("dtype", [np.int16, np.uint16, ">u2", np.float16, np.float32, ">f4"])
def test_bytes_give_bit_for_bit_the_fit_of_the_same_numbers_in_another_small_type(estimator: Any, dtype: Any) -> None:
    data = pictures()
    expected = quick(estimator).fit(data).predict(data)
    other = with_images(data, data.treatment.astype(dtype))
    np.testing.assert_array_equal(quick(estimator).fit(other).predict(other), expected)


@pytest.mark.law
@ESTIMATORS
@pytest.mark.parametrize("dtype", [np.float64, np.int32, np.uint32, np.int64, np.longdouble])
def test_bytes_give_the_fit_of_the_same_numbers_in_a_wide_type(estimator: Any, dtype: Any) -> None:
    data = pictures()
    expected = quick(estimator).fit(data).predict(data)
    other = with_images(data, data.treatment.astype(dtype))
    got = quick(estimator).fit(other).predict(other)
    np.testing.assert_allclose(got, expected, rtol=SINGLE, atol=SINGLE * np.abs(expected).max())


@pytest.mark.law
@ESTIMATORS
def test_true_and_false_are_the_bytes_one_and_zero(estimator: Any) -> None:
    data = pictures()
    truth = with_images(data, data.treatment > 128)
    assert truth.treatment.dtype == np.uint8
    ones = with_images(data, (data.treatment > 128).astype(np.uint8))
    np.testing.assert_array_equal(*(quick(estimator).fit(d).predict(ones) for d in (truth, ones)))


@pytest.mark.law
@pytest.mark.parametrize(("scale", "shift"), [(1 / 255, 0.0), (1e6, -1e6), (1.0, 1e8)])
def test_units_and_origins_of_images_pass_through(scale: float, shift: float) -> None:
    data = pictures()
    expected = quick().fit(data).predict(data)
    other = with_images(data, shift + scale * data.treatment.astype(np.float64))
    got = quick().fit(other).predict(other)
    np.testing.assert_allclose(got, expected, rtol=SINGLE, atol=SINGLE * np.abs(expected).max())


@pytest.mark.law
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_images_have_one_mean_and_one_scale_whatever_the_blocks(dtype: Any, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfiv.estimators.units.BLOCK_VALUES", 64 * rows)
    images = pictures().treatment.astype(dtype)
    scaler = Standardiser.fit(images)
    assert (scaler.mean.shape, scaler.scale.shape) == ((), ())
    np.testing.assert_allclose(scaler.mean, images.mean(dtype=np.float64), rtol=1e-13)
    np.testing.assert_allclose(scaler.scale, images.std(dtype=np.float64), rtol=1e-13)


def test_images_of_one_grey_keep_scale_one() -> None:
    scaler = Standardiser.fit(np.full((5, 3, 3), 0.1))
    assert scaler.scale == 1.0


def peak_memory(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_looking_at_images_and_scaling_them_makes_no_copy_of_them_all() -> None:
    data = pictures(4000, (64, 64))
    size = data.treatment.nbytes
    assert size == 4000 * 64 * 64
    # A mask of them would be as large as they are, a copy in float64 eight times.
    assert peak_memory(with_images(data, data.treatment).check_fittable) < 0.2 * size
    assert peak_memory(lambda: Standardiser.fit(data.treatment)) < 1.5 * size


# Networks


def connected(shape: tuple[int, ...]) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 6), nn.SiLU(), nn.Linear(6, 3))


def convolutional(shape: tuple[int, ...]) -> nn.Module:
    channels = shape[0] if len(shape) == 3 else 1
    first = [] if len(shape) == 3 else [nn.Unflatten(1, (1, shape[0]))]
    pool, normal = nn.MaxPool2d(4, padding=1), nn.BatchNorm2d(4)
    layers = [nn.Conv2d(channels, 4, 3, stride=2, padding=1), normal, nn.ReLU(), pool, nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*first, *layers, nn.Linear(16, 3))


@pytest.mark.law
@ESTIMATORS
@pytest.mark.parametrize("network", [None, connected, convolutional], ids=["default", "connected", "convolutional"])
@pytest.mark.parametrize("shape", [(16, 16), (1, 32, 32), (3, 64, 48)], ids=str)
def test_images_of_every_shape_are_treatments_and_their_model_files_come_back_bit_for_bit(
    estimator: Any, network: Any, shape: tuple[int, ...], tmp_path: Path
) -> None:
    data = pictures(40, shape)
    model = quick(estimator, treatment_network=network, steps=2).fit(data)
    predicted = model.predict(data)
    assert np.ptp(predicted) > 0
    one_by_one = np.concatenate([model.predict(treatment=image[None]) for image in data.treatment])
    # Sums of float32 in another order.
    np.testing.assert_allclose(one_by_one, predicted, rtol=SINGLE, atol=SINGLE * np.abs(predicted).max())
    model.save(tmp_path / "model")
    np.testing.assert_array_equal(cfiv.load(tmp_path / "model").predict(data), predicted)


@pytest.mark.statistical
@ESTIMATORS
def test_the_default_network_sees_where_something_bright_is(estimator: Any) -> None:
    """Place decides the outcome and brightness does not: no mean over all pixels would do."""
    place = np.random.default_rng(0).integers(0, 4, 300)
    images = np.zeros((300, 1, 32, 32), dtype=np.uint8)
    for image, k in zip(images, place, strict=True):
        image[0, 8 : 16 + 8 * (k // 2), 8 * k : 8 * k + 16 - 8 * (k // 2)] = 200
    outcome = np.array([0.0, 1.0, -1.0, 2.0])[place]
    data = IVData(outcome=outcome, treatment=images, instruments=np.eye(4)[place])
    model = quick(estimator, steps=60).fit(data)  # no warning of few instruments: there are as many as pictures
    # 0 % to 3 % of the variance in trials.
    assert np.mean((model.predict(data) - outcome) ** 2) < 0.1 * outcome.var()


@ESTIMATORS
@pytest.mark.parametrize(
    ("network", "shape", "says"),
    [
        (nn.Linear(4096, 8), (1, 64, 64), ["('rows', 1, 64, 64)", "takes ('rows', 4096)", "torch.nn.Flatten()"]),
        (nn.Linear(64, 8), (1, 64, 64), ["must map (rows, 1, 64, 64) to (rows, features)", "(2, 1, 64, 8)", "flatten"]),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(100, 8)),
            (8, 8),
            ["('rows', 8, 8)", "its linear layer '1' got inputs of shape ('rows', 64) and takes ('rows', 100)"],
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Sequential(nn.SiLU(), nn.Linear(9, 2))),
            (8, 8),
            ["('rows', 8, 8)", "its linear layer '2.1' got inputs of shape ('rows', 8) and takes ('rows', 9)"],
        ),
        (
            nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()),
            (1, 8, 8),
            ["('rows', 1, 8, 8)", "takes 3 channels, ('rows', 3, height, width)"],
        ),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten()), (8, 8), ["takes 1 channels", "torch.nn.Unflatten(1, (1, 8))"]),
        (nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()), (8, 8), ["('rows', 8, 8)", "takes 2 channels"]),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), (8, 8), ["('rows', 8, 8)", "takes 3 channels"]),
        (nn.Conv2d(1, 4, 3), (1, 8, 8), ["got output shape (2, 4, 6, 6) for 2 rows", "flatten its output"]),
    ],
)
def test_a_network_that_does_not_take_the_images_is_refused_with_both_shapes(
    estimator: Any, network: nn.Module, shape: tuple[int, ...], says: list[str]
) -> None:
    with pytest.raises(ParameterError) as caught:
        quick(estimator, treatment_network=network).fit(pictures(20, shape))
    assert [part for part in says if part not in str(caught.value)] == []


def test_flatten_is_no_remedy_where_the_images_are_flat_already() -> None:
    with pytest.raises(ParameterError) as caught:
        quick(treatment_network=nn.Sequential(nn.Flatten(), nn.Linear(100, 8))).fit(pictures())
    assert "Flatten" not in str(caught.value)


@pytest.mark.law
def test_a_refused_module_of_the_user_s_is_left_without_hooks() -> None:
    given = nn.Sequential(nn.Linear(5, 2))
    made: list[nn.Module] = []

    def factory(shape: Any) -> nn.Module:
        made.append(given)
        return given

    for network in (given, factory):
        with pytest.raises(ParameterError):
            quick(treatment_network=network).fit(pictures())
    assert made == [given]
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in given.modules())


# What is refused


@pytest.fixture(scope="module")
def bytes_and_shares() -> dict[str, Any]:
    """Models of the same images, as bytes and as shares."""
    data = pictures()
    shares = with_images(data, data.treatment / np.float32(255))
    return {"bytes": (quick().fit(data), data.treatment), "shares": (quick().fit(shares), shares.treatment)}


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize(("trained", "given"), [("bytes", "shares"), ("shares", "bytes")])
def test_images_in_another_unit_are_refused_with_both_ranges(
    bytes_and_shares: dict[str, Any], trained: str, given: str, saved: bool, tmp_path: Path
) -> None:
    model, _ = bytes_and_shares[trained]
    images = bytes_and_shares[given][1]
    if saved:
        model.save(tmp_path / "model")
        model = cfiv.load(tmp_path / "model")
    asked = [
        lambda: model.predict(treatment=images),
        lambda: model.predict(IVData(treatment=images)),
        lambda: model.predict(treatment=images[:1]),
        lambda: model.dose_response(images[:2]),
        lambda: model.effect(IVData(treatment=images), treatment_from=images[0], treatment_to=images[1]),
    ]
    unit = {"bytes": "0 to 255", "shares": "0 to 1"}
    for ask in asked:
        with pytest.raises(DataError, match=f"those of training {unit[trained]}: give them in the unit of training"):
            ask()
    with pytest.raises(DataError, match=f"the images hold values from {unit[given]}, those of training {unit[trained]}"):
        model.predict(treatment=images)


def test_a_kernel_s_images_are_held_to_their_unit_too() -> None:
    data = pictures()
    model = KernelIV(random_state=0).fit(data)
    with pytest.raises(DataError, match=r"from 0 to 1, those of training 0 to 255"):
        model.predict(treatment=data.treatment / 255)


@pytest.mark.parametrize("level", [0, 7, 128, 255])
def test_images_of_one_grey_are_no_other_unit(bytes_and_shares: dict[str, Any], level: int) -> None:
    model, _ = bytes_and_shares["bytes"]
    grey = np.full((2, 8, 8), level, dtype=np.uint8)
    assert np.isfinite(model.predict(treatment=grey)).all()
    assert np.isfinite(model.dose_response(grey)["estimate"]).all()


def test_a_dim_picture_is_no_other_unit(bytes_and_shares: dict[str, Any]) -> None:
    model, images = bytes_and_shares["bytes"]
    dim = images // 25  # 0..10
    assert np.isfinite(model.predict(treatment=dim)).all()


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("shape", [(7, 8), (8, 7), (1, 8, 8), (64,)], ids=str)
def test_images_of_another_size_are_refused_with_both(
    bytes_and_shares: dict[str, Any], shape: tuple[int, ...], saved: bool, tmp_path: Path
) -> None:
    model, _ = bytes_and_shares["bytes"]
    if saved:
        model.save(tmp_path / "model")
        model = cfiv.load(tmp_path / "model")
    with pytest.raises(DataError) as caught:
        model.predict(treatment=np.zeros((3, *shape), dtype=np.uint8))
    assert f"must have shape (8, 8), as in training, got {shape}" in str(caught.value)


def test_images_of_several_sizes_make_no_treatment() -> None:
    with pytest.raises(
        DataError, match=r"treatment makes no array \(.*\): give an array of numbers, its rows all of one shape"
    ):
        IVData(treatment=[np.zeros((8, 8)), np.zeros((7, 8))])


# Model files


@pytest.mark.law
@pytest.mark.parametrize("name", ["images", "arrays"])
def test_a_file_from_before_the_range_was_remembered_is_read_and_holds_images_to_no_unit(name: str, tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes((OLD_FILES / f"{name}.safetensors").read_bytes())
    rows = cfiv.load(file).encoder
    treatment = np.arange(3 * math.prod(rows.treatment_shape)).reshape(3, *rows.treatment_shape) % 5
    expected = cfiv.load(file).predict(treatment=treatment, covariates=rows.reference[:3])
    rewrite(file, lambda header: header["encoder"].pop("pixels"), signed=False)
    loaded = cfiv.load(file)
    np.testing.assert_array_equal(loaded.predict(treatment=treatment, covariates=rows.reference[:3]), expected)
    assert np.isfinite(loaded.predict(treatment=treatment / 255, covariates=rows.reference[:3])).all()


@pytest.mark.parametrize("pixels", [[1], ["black", "white"], 3, {}])
def test_a_range_that_was_changed_is_refused(bytes_and_shares: dict[str, Any], pixels: Any, tmp_path: Path) -> None:
    bytes_and_shares["bytes"][0].save(tmp_path / "model")
    rewrite(tmp_path / "model", lambda header: header["encoder"].update(pixels=pixels))
    with pytest.raises(ModelFileError, match="was changed since"):
        cfiv.load(tmp_path / "model")


# The original on dSprites


def layers(network: nn.Module) -> str:
    assert isinstance(network, nn.Sequential)
    return " ".join(f"{m.in_features}-{m.out_features}" if hasattr(m, "in_features") else type(m).__name__ for m in network)


def largest_singular_values(network: nn.Module) -> list[float]:
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    return [float(torch.linalg.matrix_norm(weight, 2)) for weight in weights]


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("make", "shape", "published"),
    [
        (
            original_networks.original_image_treatment_network,
            (1, 64, 64),
            "Flatten 4096-1024 ReLU 1024-512 ReLU BatchNorm1d 512-128 ReLU 128-32 BatchNorm1d Tanh",
        ),
        (
            original_networks.original_image_instrument_network,
            (3,),
            "3-256 ReLU 256-128 ReLU BatchNorm1d 128-128 ReLU BatchNorm1d 128-32 BatchNorm1d ReLU",
        ),
    ],
    ids=["treatment", "instrument"],
)
def test_the_original_s_image_networks_have_the_published_layers_spectrally_normalised(
    make: Any, shape: tuple[int, ...], published: str
) -> None:
    # Xu et al. 2021, the authors' program for dSprites.
    with seeded(0, CPU):
        network = make(shape[0] if len(shape) == 1 else shape)
        assert layers(network) == published
        x = torch.randn(20, *shape)
        for _ in range(15):  # each pass is one iteration of the power method
            network(x)
    with torch.no_grad():
        # The power method comes from below, and slowly where two singular values are close.
        assert all(0.99 < value < 1.1 for value in largest_singular_values(network))


@pytest.mark.law
def test_the_original_for_images_is_the_original_with_other_networks_and_decays() -> None:
    model, columns = DFIV.original_image(steps=3, swap=True), DFIV.original(steps=3, swap=True)
    changed = {"treatment_network", "instrument_network", "weight_decay"}
    same, other = (m.get_params() for m in (model, columns))
    assert {name for name in same if same[name] is not other[name] and same[name] != other[name]} == changed
    assert model.unpredicted_penalty == 0.0
    assert model.weight_decay == (pytest.approx(0.1 / 2500), pytest.approx(0.1 / 2500), 0.0)


def test_the_original_for_images_learns_from_dsprites_and_its_file_asks_for_the_factory(tmp_path: Path) -> None:
    data, truth = dsprites.simulate(200, seed=0)
    model = DFIV.original_image(steps=2, progress=False, random_state=0).fit(data)
    (fitted,) = model.fits_
    assert fitted.structural.shape == (33, 1)
    predicted = model.predict(treatment=truth.images[:20])
    assert np.isfinite(predicted).all()
    assert np.ptp(predicted) > 0
    model.save(tmp_path / "model")
    with pytest.raises(ModelFileError, match=r"give load\(path, networks=\{'treatment': factory\}\)"):
        cfiv.load(tmp_path / "model")
    factory = original_networks.original_image_treatment_network
    loaded = cfiv.load(tmp_path / "model", networks={"treatment": factory})
    np.testing.assert_array_equal(loaded.predict(treatment=truth.images[:20]), predicted)
