"""Gratings: classes are those of the attributes, at the rate that the docstring says, and the same images serve all of them."""

import numpy as np
import pytest
from scipy import stats

from cfiv.datasets import gratings
from cfiv.errors import ParameterError


@pytest.mark.law
def test_the_same_images_are_told_apart_more_finely_by_more_classes() -> None:
    coarse, finer, finest = (gratings.simulate(30, classes=classes, pixels=8, tested=5, seed=1) for classes in (10, 100, 1000))
    np.testing.assert_array_equal(coarse.train.images, finest.train.images)
    np.testing.assert_array_equal(coarse.test.labels, finest.test.labels // 100)
    np.testing.assert_array_equal(finer.train.labels, finest.train.labels // 10)
    assert [len(data.classes) for data in (coarse, finer, finest)] == [10, 100, 1000]
    assert finest.classes[7] == "007"


@pytest.mark.law
def test_no_image_is_drawn_twice_and_a_seed_draws_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gratings, "BLOCK", 5)
    data, again = (gratings.simulate(12, pixels=8, tested=3, seed=2) for _ in range(2))
    np.testing.assert_array_equal(again.train.images, data.train.images)
    assert len({image.tobytes() for part in (data.train, data.test) for image in part.images}) == 15


@pytest.mark.statistical
def test_who_sees_the_attributes_names_the_class_as_often_as_the_docstring_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []

    def look(turns: np.ndarray, pixels: int, draw: np.random.Generator) -> np.ndarray:
        seen.append(turns)
        return np.zeros((len(turns), 3, pixels, pixels), dtype=np.uint8)

    monkeypatch.setattr(gratings, "_draw", look)
    labels = gratings.simulate(20_000, classes=1000, pixels=4, tested=1, seed=3).train.labels
    named = (np.concatenate(seen[:-1]) * 10).round().astype(int) % 10
    right = named == np.stack([labels // 100, labels // 10 % 10, labels % 10], axis=1)
    exact = 2 * stats.norm.cdf(0.5 / gratings.JITTER) - 1
    for attributes, printed in ((1, 0.954), (2, 0.911), (3, 0.870)):
        best = exact**attributes
        assert best == pytest.approx(printed, abs=6e-4)
        error = np.sqrt(best * (1 - best) / len(labels))
        assert right[:, :attributes].all(axis=1).mean() == pytest.approx(best, abs=4 * error)


@pytest.mark.law
def test_bars_run_across_their_direction_and_hues_are_a_third_of_a_turn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gratings, "NOISE", 0.0)
    monkeypatch.setattr(gratings, "CLUTTER", 0.0)
    turns = np.random.default_rng(4).uniform(size=(60, 3))
    images = gratings._draw(turns, 32, np.random.default_rng(5)).astype(float)
    down, across = np.gradient(images, axis=(2, 3))
    moments = [(first * second).sum(axis=(1, 2, 3)) for first, second in ((across, down), (across, across), (down, down))]
    angle = np.arctan2(2 * moments[0], moments[1] - moments[2]) / 2
    assert np.median(np.abs(np.sin(angle - np.pi * turns[:, 0]))) < 0.1  # radians; the window's own slopes are in it
    third = gratings._draw(turns + np.array([0.0, 1 / 3, 1 / 3]), 32, np.random.default_rng(5))
    np.testing.assert_allclose(third, np.roll(images, 1, axis=1), atol=1)  # red becomes green; rounding


@pytest.mark.contract
def test_other_numbers_of_classes_are_refused() -> None:
    with pytest.raises(ParameterError, match="classes must be 10, 100 or 1000, got 20"):
        gratings.simulate(3, classes=20, seed=0)
