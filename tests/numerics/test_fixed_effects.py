"""Absorbed fixed effects against regressions on indicators."""

import numpy as np
import pytest

from cfiv.numerics import fixed_effects
from cfiv.numerics.fixed_effects import FixedEffects

#: Of regressions on tens of indicators; conjugate gradients stop at about this.
SAME = 1e-9
#: Some units in the last place of numbers beside an offset of 2^30.
OFFSET = 2e-6


def problem(*sizes: int, rows: int = 200, seed: int = 0) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Kinds, weights and columns, with an offset; each group has a row."""
    generator = np.random.default_rng(seed)
    kinds = [np.concatenate([np.arange(size), generator.integers(0, size, rows - size)]) for size in sizes]
    effects = sum(generator.normal(size=size)[codes] for size, codes in zip(sizes, kinds, strict=True))
    columns = generator.normal(size=(rows, 3)) + effects[:, None]
    return kinds, generator.uniform(0.5, 2.0, rows), columns + 100.0


def indicators(kinds: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.eye(int(codes.max()) + 1)[codes] for codes in kinds], axis=1)


@pytest.mark.oracle
@pytest.mark.parametrize("direct", [True, False], ids=["direct", "conjugate gradients"])
@pytest.mark.parametrize("sizes", [(7,), (30, 6), (6, 30), (40, 12, 5)], ids=str)
def test_what_is_left_is_the_residual_of_a_weighted_regression_on_indicators(
    sizes: tuple[int, ...], direct: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fixed_effects, "DIRECT", 500 if direct else 0)
    kinds, weights, columns = problem(*sizes)
    for w in (weights, np.ones(len(columns))):
        root = np.sqrt(w)[:, None]
        dummies = indicators(kinds)
        expected = columns - dummies @ np.linalg.lstsq(root * dummies, root * columns, rcond=None)[0]
        np.testing.assert_allclose(FixedEffects(kinds, weights=w).residual(columns), expected, atol=SAME)


@pytest.mark.law
def test_what_is_left_has_no_means_of_groups_and_nothing_more_is_taken_from_it() -> None:
    kinds, weights, columns = problem(40, 12, 5)
    effects = FixedEffects(kinds, weights=weights)
    left = effects.residual(columns)
    np.testing.assert_allclose(indicators(kinds).T @ (weights[:, None] * left), 0.0, atol=SAME)
    np.testing.assert_allclose(effects.residual(left), left, atol=SAME)


@pytest.mark.oracle
def test_the_rank_is_that_of_the_indicators_also_where_groups_fall_into_parts() -> None:
    for sizes in ((7,), (30, 6), (40, 12, 5)):
        kinds, weights, _ = problem(*sizes)
        found = FixedEffects(kinds, weights=weights).rank(range(len(kinds)))
        assert found == np.linalg.matrix_rank(indicators(kinds))
    kinds, weights, _ = problem(30, 6)
    kinds = [np.concatenate([codes, codes + size]) for codes, size in zip(kinds, (30, 6), strict=True)]  # two parts
    effects = FixedEffects(kinds, weights=np.tile(weights, 2))
    assert effects.rank((0, 1)) == np.linalg.matrix_rank(indicators(kinds)) == 60 + 12 - 2
    assert effects.rank((1,)) == 12


@pytest.mark.law
def test_an_offset_costs_no_more_digits_than_the_columns_have_lost_to_it() -> None:
    kinds, weights, columns = problem(30, 6)
    effects = FixedEffects(kinds, weights=weights)
    offset = 2.0**30
    shifted = (columns + offset) - offset  # as float64 has them beside it
    np.testing.assert_allclose(effects.residual(columns + offset), effects.residual(shifted), atol=OFFSET)
