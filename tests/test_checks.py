"""One set of checks of arguments: what passes, what comes back, and in which words the rest is refused."""

import inspect
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

import cfiv
from cfiv import ParameterError, checks
from cfiv.datasets import burgers, cifar, darcy, demand, digits, dsprites


@pytest.mark.law
def test_numbers_of_numpy_and_python_come_back_as_pythons_own() -> None:
    for value in (3, np.int64(3), np.uint8(3)):
        assert type(checks.check_whole("n", value, least=0)) is int
    for value in (0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2), np.longdouble(0.5)):
        assert checks.check_number("p", value, least=0.0, most=1.0) == 0.5
        assert type(checks.check_number("p", value)) is float
    assert checks.check_flag("f", np.True_) is True


NOT_NUMBERS = [True, np.True_, "1", None, 1j, np.array(1.0), torch.tensor(1.0), [1.0], float, np.datetime64("2020-01-01")]


@pytest.mark.parametrize("value", [*NOT_NUMBERS, float("nan"), float("inf"), 10**400, np.longdouble("1e400")], ids=repr)
def test_what_is_no_finite_number_is_refused(value: object) -> None:
    with pytest.raises(ParameterError, match=r"^lambda2 must be finite and >= 0, got "):
        checks.check_number("lambda2", value, least=0.0)
    assert not checks.is_within(value)


@pytest.mark.parametrize("value", [*NOT_NUMBERS, 1.0, np.float64(1), -1], ids=repr)
def test_what_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(ParameterError, match=r"^steps must be a whole number >= 0, got "):
        checks.check_whole("steps", value, least=0)


@pytest.mark.parametrize(
    ("limits", "inside", "outside", "words"),
    [
        ({"least": 0.0}, [0.0, 1e308], [-1e-300, -1.0], "finite and >= 0"),
        ({"above": 0.0}, [5e-324], [0.0, -1.0], "finite and > 0"),
        ({"least": 0.0, "most": 0.9}, [0.0, 0.9], [0.91, -0.1], "between 0 and 0.9"),
        ({"above": 0.0, "below": 1.0}, [0.5], [0.0, 1.0], "> 0 and < 1"),
        ({"least": 0.0, "below": 1.0}, [0.0], [1.0], ">= 0 and < 1"),
        ({"above": 0.0, "most": 1.0}, [1.0], [0.0, 1.1], "> 0 and <= 1"),
        ({"least": 0.0, "finite": False}, [float("inf")], [-1.0, float("nan")], ">= 0"),
        ({}, [-1e308], [float("inf")], "a finite number"),
    ],
)
def test_a_range_has_its_ends_and_its_words(
    limits: dict[str, float], inside: list[float], outside: list[float], words: str
) -> None:
    for value in inside:
        assert checks.check_number("x", value, **limits) == value
    for value in outside:
        with pytest.raises(ParameterError) as caught:
            checks.check_number("x", value, **limits, alternative="or None", why="reasons")
        assert str(caught.value) == f"x must be {words}, or None, got {value!r}: reasons"


def test_a_message_has_one_line_and_an_end_whatever_was_given() -> None:
    for value in (np.zeros((100, 100)), "x" * 10_000, 10**5000, torch.eye(50)):
        with pytest.raises(ParameterError) as caught:
            checks.check_choice("order", value, ("a", "b"))
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 300


def of_estimator(kind: type, **arguments: object) -> Callable[[], object]:
    rows = {"y": [0.0, 1.0, 3.0, 2.0, 5.0, 4.0] * 4, "t": [0.0, 1.0, 2.0] * 8, "z": [0.0, 1.0, 1.0, 3.0] * 6}
    quiet = {"progress": False} if "progress" in inspect.signature(kind).parameters else {}
    return lambda: kind("y ~ [t ~ z]", **{**quiet, **arguments}).fit(rows)


NETS, BAD = (cfiv.DFIV, cfiv.NetworkRegression), ("1", True, float("nan"), float("inf"), -3.0, np.array([1.0, 2.0]))
REFUSED = [
    *[("Proximal(lam)", lambda v=v: cfiv.Proximal(v), "lam must be finite and >= 0, got") for v in BAD],
    *[("Proximal(beta)", lambda v=v: cfiv.Proximal(1.0, beta=v), "beta must be finite and >= 0, got") for v in BAD],
    *[("Ridge", lambda v=v: cfiv.Ridge(v), "beta must be finite and >= 0, got") for v in BAD],
    *[("Kalman", lambda v=v: cfiv.Kalman(v, observation_noise=1.0), "process_noise must be finite and >= 0, got") for v in BAD],
    *[
        ("Kalman", lambda v=v: cfiv.Kalman(1.0, observation_noise=v), "observation_noise must be finite and > 0, got")
        for v in BAD
    ],
    *[("Kalman", lambda v=v: cfiv.Kalman(1.0, observation_noise=1.0, prior=v), "prior must be finite and >= 0") for v in BAD],
    ("Kalman", lambda: cfiv.Kalman(1.0, observation_noise=1.0, reset="yes"), "reset must be True or False, got 'yes'"),
    *[("Moving", lambda v=v: cfiv.MovingAverage(v, beta=1.0), "decay must be >= 0 and < 1, got") for v in BAD],
    *[("Moving", lambda v=v: cfiv.MovingAverage(0.5, beta=v), "beta must be finite and >= 0, got") for v in BAD],
    *[
        ("refit_ridges", lambda v=v: cfiv.Training(refit_ridges=v), "refit_ridges must be finite and >= 0, got")
        for v in BAD[:-1]
    ],
    ("double", lambda: cfiv.Training(double="no"), "double must be True or False, got 'no'"),
    (
        "split",
        lambda: cfiv.Training(split=True),
        "split must be > 0 and < 1, or None for the same rows in both stages, got True",
    ),
    *[(k.__name__, of_estimator(k, standardise="no"), "standardise must be True or False, got 'no'") for k in NETS],
    *[(k.__name__, of_estimator(k, batch_size=-3), "batch_size must be a whole number >= 1, 'auto', or None") for k in NETS],
    *[(k.__name__, of_estimator(k, batch_size=True), "batch_size must be a whole number >= 1") for k in NETS],
    *[
        (k.__name__, of_estimator(k, random_state=v), "random_state must be")
        for k in (*NETS, cfiv.KernelIV)
        for v in (True, 0.0)
    ],
    *[(k.__name__, of_estimator(k, device=v), "device") for k in NETS for v in ("gpu0", 0, None)],
    *[
        (k.__name__, of_estimator(k, learning_rate=v), "learning_rate must be 'auto', one number or three")
        for k in NETS
        for v in (10**400, None, "fast", 0.0, True, (0.1, 0.1), [0.1, 0.1, 0.0], math.nan)
    ],
    ("swap", of_estimator(cfiv.DFIV, swap=2), "swap must be True or False, got 2"),
    ("kernel ridge", of_estimator(cfiv.KernelIV, ridge1=10**400), "ridge1 must be a finite number >= 1e-12, several"),
    ("kernel folds", of_estimator(cfiv.KernelIV, folds=True), "folds must be a whole number >= 2, got True"),
    ("kernel", of_estimator(cfiv.KernelIV, bandwidths={"treatment": True}), "must be finite and > 0, got True"),
    (
        "missing",
        of_estimator(cfiv.TwoStageLeastSquares, missing=np.array(["drop"])),
        "missing must be 'drop' or 'raise', got array",
    ),
    (
        "covariance",
        of_estimator(cfiv.LeastSquares, covariance=["robust"]),
        "covariance must be one of 'robust', .* got .'robust'.",
    ),
    (
        "diagnose",
        lambda: cfiv.diagnose({"y": [0.0]}, "y ~ [t ~ z]", level=True),
        "level must be > 0 and < 1, such as 0.95, got True",
    ),
    ("demand", lambda: demand.simulate(n=3, rho=True, seed=0), "rho must be between -1 and 1, got True"),
    ("burgers", lambda: burgers.simulate(n=True, seed=0), "n must be a whole number >= 1, got True"),
    ("darcy", lambda: darcy.simulate(n=3, points=2.0, seed=0), "points must be a whole number >= 2, got 2.0"),
    ("dsprites", lambda: dsprites.simulate(n=3, seed=0, pixel_noise="1"), "pixel_noise must be finite and >= 0, got '1'"),
    ("digits", lambda: digits.load(seed=True), "seed must be a whole number >= 0, got True"),
    ("cifar", lambda: cifar.load(".", classes=np.array([10])), "classes must be 10 .* or 100"),
]


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_arguments_are_refused_in_the_same_words_everywhere(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        call()


@pytest.mark.law
def test_an_estimator_takes_numpys_numbers_for_pythons() -> None:
    given = {"steps": 2, "fits": 1, "batch_size": 4, "random_state": 0, "learning_rate": 0.01}
    numpys = {"steps": np.int64(2), "fits": np.uint8(1), "batch_size": np.int32(4), "random_state": np.int64(0)}
    numpys["learning_rate"] = np.float64(0.01)  # type: ignore[assignment]
    for kind in NETS:
        one, other = (of_estimator(kind, **arguments)() for arguments in (given, numpys))
        assert one.dose_response([0.5, 1.5]).equals(other.dose_response([0.5, 1.5]))  # type: ignore[attr-defined]


@pytest.mark.law
def test_equal_trainings_and_layers_look_the_same_whatever_their_numbers_are_made_of() -> None:
    numpys = cfiv.Training(
        stage1_steps=np.int64(1),
        rest=np.float64(0.3),
        refit_ridges=np.array(cfiv.Training().refit_ridges),
        double=np.bool_(False),
    )
    assert repr(numpys) == repr(cfiv.Training())
    assert repr(cfiv.Proximal(np.float64(1), beta=0)) == repr(cfiv.Proximal(1.0))


def test_numbers_of_a_last_layer_that_could_be_swapped_go_by_name() -> None:
    for call in (lambda: cfiv.Kalman(0.1, 1.0), lambda: cfiv.MovingAverage(0.9, 0.1), lambda: cfiv.Proximal(1.0, 0.1)):
        with pytest.raises(TypeError, match="positional"):
            call()
