"""Rows of a batch of images, gathered against indexed, in the same run."""

import timeit

import torch

from cfiv.learning.samples import rows_of

#: Measured: 0.03 to 0.06.
BOUND = 0.5


def test_rows_of_images_of_bytes_take_at_most_half_the_time_of_indexing(benchmark) -> None:
    images = torch.zeros(5000, 64, 64, dtype=torch.uint8)
    rows = torch.randint(0, 5000, (2, 128), generator=torch.Generator().manual_seed(0))
    assert torch.equal(rows_of(images, rows), images[rows])
    indexed, gathered = (
        min(timeit.repeat(taken, number=50, repeat=5)) / 50 for taken in (lambda: images[rows], lambda: rows_of(images, rows))
    )
    benchmark.extra_info["ratio to indexing"] = gathered / indexed
    benchmark.pedantic(rows_of, args=(images, rows), rounds=20, iterations=20)
    assert gathered <= BOUND * indexed
