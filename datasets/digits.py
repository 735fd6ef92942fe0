"""The digits of scikit-learn: 1797 handwritten digits of 8 x 8 pixels, with a fixed split.

They are the test part of the UCI data set, by 13 writers, of whom images are in both parts of the split made here: it measures
how well digits of known writers are read. (The 30 writers of UCI's training part are not among scikit-learn's data.)

References
----------
Alpaydin, Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cfiv.checks import check_whole
from cfiv.datasets.labelled_images import ImageClassification, LabelledImages

#: A pixel counts the dark ones among the 4 x 4 that it was made from.
BRIGHTEST = 16
#: One image of so many of a class is for the test.
SHARE = 5


def load(*, seed: int = 0) -> ImageClassification:
    """The data as scikit-learn ships them, split.

    Parameters
    ----------
    seed : int
        Seeds the split: for the test, of each class, digit after digit, a fifth of the images (rounded) without replacement.

    Returns
    -------
    ImageClassification
        ``train`` 1438 images and ``test`` 359 (35 to 37 of a class), each in scikit-learn's order. Images (n, 1, 8, 8) are
        uint8, from 0 where the paper is empty to ``brightest`` = 16: scikit-learn's numbers, in an eighth of the memory.
        ``classes`` are "0" to "9".

    Raises
    ------
    ParameterError
        If the seed is no whole number >= 0.

    Examples
    --------
    >>> data = load()
    >>> data.train.images.shape, data.test.labels.shape, data.brightest
    ((1438, 1, 8, 8), (359,), 16)
    """
    from sklearn.datasets import load_digits

    check_whole("seed", seed, least=0)
    source = load_digits()
    images = source.images.astype(np.uint8)[:, None]
    labels = source.target.astype(np.int64)
    tested = _tested(labels, np.random.default_rng(seed))
    train, test = (LabelledImages(images[rows], labels[rows]) for rows in (~tested, tested))
    return ImageClassification(train, test, tuple(str(digit) for digit in range(10)), BRIGHTEST)


def _tested(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Whether an image is for the test."""
    tested = np.zeros(len(labels), dtype=np.bool_)
    for digit in range(10):
        rows = np.flatnonzero(labels == digit)
        tested[generator.choice(rows, round(len(rows) / SHARE), replace=False)] = True
    return tested
