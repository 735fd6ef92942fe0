"""Gratings on tinted ground: colour images, as large as CIFAR's, of 10, 100 or 1000 classes whose best accuracy is known.

What an image shows has three attributes, each a place on a ring of ten classes: the direction of the bars of a grating, their
hue, and the tint of the ground. The first one, two or three tell 10, 100 or 1000 classes apart; the others are then there to
distract, as are place, width, phase and contrast of the grating, smooth clutter, and noise in every pixel. An attribute lies
about the middle of its class with standard deviation JITTER of the distance to the next, so who saw it exactly would name the
class with

    probability 2 N(0.5 / JITTER) - 1 = 0.954,        of 100 classes 0.911, of 1000 classes 0.870.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cfiv.checks import check_whole, is_whole, refusal
from cfiv.datasets.labelled_images import ImageClassification, LabelledImages

#: Standard deviation of an attribute, in distances between classes.
JITTER = 0.25
#: Classes of an attribute, and of one, two or three together.
RING, CLASSES = 10, (10, 100, 1000)
#: Standard deviations of the clutter and of a pixel's noise, in units of the range of a pixel.
CLUTTER, NOISE = 0.05, 0.05
#: Places a side at which clutter is drawn.
COARSE = 4
#: Images drawn at a time, so that 50,000 need little more memory than their pixels.
BLOCK = 1000
BRIGHTEST = 255


def simulate(n: int, *, classes: int = 10, pixels: int = 32, tested: int = 2000, seed: int) -> ImageClassification:
    """Draw images to learn from and others for the test.

    Parameters
    ----------
    n, tested : int
        How many of each.
    classes : {10, 100, 1000}
        Label = direction, or 10 direction + hue, or 100 direction + 10 hue + tint.
    pixels : int
        A side; at least 4.
    seed : int
        Images do not depend on ``classes``, so the same are told apart more finely.

    Returns
    -------
    ImageClassification
        Images (n, 3, pixels, pixels), uint8.

    Raises
    ------
    ParameterError
        If an argument is out of its range.

    Examples
    --------
    >>> data = simulate(5, classes=100, tested=2, seed=0)
    >>> data.train.images.shape, len(data.test), len(data.classes)
    ((5, 3, 32, 32), 2, 100)
    """
    check_whole("n", n, least=1)
    check_whole("tested", tested, least=1)
    if not is_whole(classes) or classes not in CLASSES:
        raise refusal("classes", "10, 100 or 1000", classes)
    check_whole("pixels", pixels, least=COARSE)
    check_whole("seed", seed, least=0)
    attributes = len(str(classes)) - 1
    train, test = (
        _part(np.random.default_rng([seed, part]), n=count, attributes=attributes, pixels=pixels)
        for part, count in enumerate((n, tested))
    )
    return ImageClassification(train, test, tuple(f"{label:0{attributes}d}" for label in range(classes)), BRIGHTEST)


def _part(draw: np.random.Generator, *, n: int, attributes: int, pixels: int) -> LabelledImages:
    images = np.empty((n, 3, pixels, pixels), dtype=np.uint8)
    kinds = draw.integers(RING, size=(n, 3))
    for start in range(0, n, BLOCK):
        rows = slice(start, min(n, start + BLOCK))
        turns = (kinds[rows] + JITTER * draw.normal(size=kinds[rows].shape)) / RING
        images[rows] = _draw(turns, pixels, draw)
    labels = kinds[:, :attributes] @ RING ** np.arange(attributes)[::-1]
    return LabelledImages(images, labels.astype(np.int64))


def _draw(turns: npt.NDArray[np.float64], pixels: int, draw: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Images (n, 3, pixels, pixels) of attributes (n, 3) in turns of their rings."""
    n, side = len(turns), np.linspace(-1.0, 1.0, pixels)
    angle = np.pi * turns[:, 0]  # a grating turned by half a turn is the same
    place, phase = draw.uniform(-0.4, 0.4, size=(2, n, 1, 1)), draw.uniform(0.0, 2 * np.pi, size=(n, 1, 1))
    cycles, spread = draw.uniform(2.0, 3.0, size=(n, 1, 1)), draw.uniform(0.4, 0.6, size=(n, 1, 1))
    across, down = side - place[0], side[:, None] - place[1]
    along = np.cos(angle)[:, None, None] * across + np.sin(angle)[:, None, None] * down
    bars = np.exp(-(across**2 + down**2) / (2 * spread**2)) * (1.0 + np.cos(2 * np.pi * cycles * along + phase)) / 2.0
    clutter = np.repeat(
        np.repeat(draw.normal(size=(n, COARSE, COARSE)), -(-pixels // COARSE), axis=1), -(-pixels // COARSE), axis=2
    )
    contrast = draw.uniform(0.4, 0.8, size=(n, 1, 1, 1))
    ground = 0.5 + 0.1 * _colours(turns[:, 2]) + CLUTTER * clutter[:, None, :pixels, :pixels]
    value = ground + contrast * _colours(turns[:, 1]) * bars[:, None] + NOISE * draw.normal(size=(n, 3, pixels, pixels))
    drawn: npt.NDArray[np.uint8] = (BRIGHTEST * value.clip(0.0, 1.0)).round().astype(np.uint8)
    return drawn


def _colours(turns: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Hues as differences from grey, in red, green and blue: (n,) to (n, 3, 1, 1)."""
    thirds = np.arange(3) / 3.0
    return np.cos(2 * np.pi * (turns[:, None] - thirds))[:, :, None, None]
