"""The digits are scikit-learn's, and their split is the one that is documented."""

from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.datasets import load_digits

from cfiv.datasets import digits
from cfiv.datasets.labelled_images import LabelledImages
from cfiv.errors import ParameterError


def rows_of(part: LabelledImages) -> list[bytes]:
    return [image.tobytes() + bytes([label]) for image, label in zip(part.images, part.labels, strict=True)]


@pytest.mark.oracle
@pytest.mark.parametrize("seed", [0, 5])
def test_the_two_parts_are_scikit_learn_s_images_each_once_and_in_their_order(seed: int) -> None:
    data, source = digits.load(seed=seed), load_digits()
    whole = [
        image.astype(np.uint8).tobytes() + bytes([label]) for image, label in zip(source.images, source.target, strict=True)
    ]
    assert len(set(whole)) == 1797
    train, test = rows_of(data.train), rows_of(data.test)
    assert sorted(train + test) == sorted(whole)
    for part in (train, test):
        places = [whole.index(row) for row in part]
        assert places == sorted(places)
    assert data.classes == tuple("0123456789")
    assert data.brightest == data.train.images.max() == 16


@pytest.mark.law
def test_a_fifth_of_every_class_is_for_the_test() -> None:
    data = digits.load()
    counts = np.bincount(load_digits().target)
    np.testing.assert_array_equal(np.bincount(data.test.labels), [round(count / 5) for count in counts])
    assert (len(data.train), len(data.test)) == (1438, 359)
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.dtype == data.test.images.dtype == np.uint8
    assert data.train.labels.dtype == data.test.labels.dtype == np.int64


@pytest.mark.oracle
def test_the_split_of_a_seed_stays_the_one_that_is_documented() -> None:
    # Of each class, digit after digit, a draw without replacement.
    labels, draw = load_digits().target, np.random.default_rng(3)
    drawn = [
        draw.choice(np.flatnonzero(labels == digit), round((labels == digit).sum() / 5), replace=False) for digit in range(10)
    ]
    expected = load_digits().images[np.sort(np.concatenate(drawn))]
    np.testing.assert_array_equal(digits.load(seed=3).test.images[:, 0], expected)


def test_another_seed_splits_otherwise_and_what_is_loaded_can_be_changed() -> None:
    one, again, other = (digits.load(seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one.test.images, again.test.images)
    assert not np.array_equal(one.test.labels, other.test.labels)
    one.train.images[:] = 0
    assert again.train.images.any()
    assert digits.load().train.images.any()


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_a_seed_that_is_none_is_refused(seed: int) -> None:
    with pytest.raises(ParameterError, match=re.escape(f"seed must be a whole number >= 0, got {seed!r}")):
        digits.load(seed=seed)
