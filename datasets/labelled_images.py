"""Images with labels, for classification: a part to learn from and a part to be judged on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and what they show.

    Parameters
    ----------
    images : uint8 array (n, channels, rows, columns)
        Rows from the top.
    labels : int64 array (n,)
        Indices into the names of the classes.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """How many images there are."""
        return len(self.images)


@dataclass(frozen=True, eq=False)
class ImageClassification:
    """A data set of labelled images with its split.

    Parameters
    ----------
    train, test : LabelledImages
        The two parts, with no image in both.
    classes : tuple of str
        The classes' names; a label is an index into them.
    brightest : int
        The largest value that a pixel can have; dividing by it brings images to [0, 1].
    """

    train: LabelledImages
    test: LabelledImages
    classes: tuple[str, ...]
    brightest: int
