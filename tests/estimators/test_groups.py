"""Groups of rows: no split, no held-out rows and no fold part one; and without them every number is what it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import cfiv
from cfiv import AGMM, DFIV, DataError, DeepIV, IVData, KernelIV, NetworkRegression, Training
from cfiv.errors import MissingRowsWarning, ModelFileError
from cfiv.estimators import kernel_iv, planned_members
from cfiv.learning.samples import Split, fold_groups, hold_out, split_rows

FORMULA = "y ~ x + [t ~ z]"
QUICK: dict[str, Any] = {"steps": 3, "progress": False}
MAKE: dict[str, Any] = {
    "DFIV": lambda **more: DFIV(**{**QUICK, "random_state": 0, "nested": False, **more}),
    "NetworkRegression": lambda **more: NetworkRegression(**{**QUICK, "random_state": 0, **more}),
    "DeepIV": lambda **more: DeepIV(**{**QUICK, "random_state": 0, **more}),
    "AGMM": lambda **more: AGMM(**{**QUICK, "random_state": 0, **more}),
    "KernelIV": lambda **more: KernelIV(**{"random_state": 0, **more}),
    "KernelIV, split": lambda **more: KernelIV(**{"random_state": 0, "split": 0.5, **more}),
}


def table(n: int = 120, groups: int = 12) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    frame = pd.DataFrame(generator.normal(size=(n, 3)), columns=["z", "x", "u"])
    names = np.array([f"school {i}" for i in range(groups)])
    return frame.assign(
        t=frame["z"] + frame["u"], y=lambda f: f["t"] + f["x"] + f["u"], g=generator.permutation(names[np.arange(n) % groups])
    )


def parted(clusters: Any, *parts: Any) -> set[Any]:
    """Groups with rows in more than one part."""
    found = [set(np.asarray(clusters)[np.asarray(part)]) for part in parts]
    return {label for i, one in enumerate(found) for other in found[:i] for label in one & other}


def sizes_of(*, groups: int, seed: int) -> Any:
    """Labels of groups of very different sizes, in no order."""
    generator = np.random.default_rng(seed)
    return generator.permutation(np.repeat(np.arange(groups), generator.integers(1, 40, groups)))


# Splits


@pytest.mark.law
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_split_by_groups_parts_none_and_is_as_near_to_the_share_as_a_group_allows(share: float, seed: int) -> None:
    clusters = sizes_of(groups=15, seed=seed)
    first, second = split_rows(len(clusters), share=share, generator=np.random.default_rng(seed), clusters=clusters)
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(len(clusters)))
    assert parted(clusters, first, second) == set()
    assert abs(len(first) - share * len(clusters)) <= np.bincount(clusters).max()


@pytest.mark.law
def test_groups_of_one_row_are_split_as_evenly_as_rows() -> None:
    clusters = np.arange(101)
    first, second = split_rows(101, share=0.5, generator=np.random.default_rng(0), clusters=clusters)
    assert {len(first), len(second)} == {50, 51}


@pytest.mark.law
def test_other_generators_split_other_groups_in_another_order_of_rows() -> None:
    clusters = np.repeat(np.arange(20), 5)
    splits = [split_rows(100, share=0.5, generator=np.random.default_rng(seed), clusters=clusters)[0] for seed in (0, 0, 1)]
    assert torch.equal(splits[0], splits[1])
    assert set(splits[0].tolist()) != set(splits[2].tolist())
    assert splits[0].tolist() != sorted(splits[0].tolist())


@pytest.mark.law
@pytest.mark.parametrize("seed", range(10))
def test_held_out_rows_are_whole_groups_of_sample_2(seed: int) -> None:
    clusters = sizes_of(groups=20, seed=seed)
    generator = np.random.default_rng(seed)
    first, second = split_rows(len(clusters), share=0.5, generator=generator, clusters=clusters)
    split = hold_out(stage1=first, sample2=second, share=0.2, generator=generator, clusters=clusters)
    assert split.heldout is not None
    assert sorted(split.sample2.tolist()) == sorted(second.tolist())
    assert parted(clusters, split.stage1, split.stage2, split.heldout) == set()


@pytest.mark.law
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("folds", [2, 5, 15])
def test_folds_of_groups_part_none_and_differ_by_a_group_at_most(folds: int, seed: int) -> None:
    clusters = sizes_of(groups=15, seed=seed)
    parts = fold_groups(clusters, folds=folds, generator=np.random.default_rng(seed))
    assert sorted(row for part in parts for row in part.tolist()) == list(range(len(clusters)))
    assert parted(clusters, *parts) == set()
    counts = [len(part) for part in parts]
    assert min(counts) > 0
    assert max(counts) - min(counts) <= np.bincount(clusters).max()


# Estimators


@pytest.fixture
def splits(monkeypatch: pytest.MonkeyPatch) -> list[tuple[torch.Tensor, ...]]:
    """The row numbers of the parts that estimators draw."""
    seen: list[tuple[torch.Tensor, ...]] = []

    def watched(draw: Any) -> Any:
        def drawn(*arguments: Any, **options: Any) -> Any:
            parts = draw(*arguments, **options)
            whole = (parts.stage1, parts.stage2, parts.heldout) if isinstance(parts, Split) else tuple(parts)
            seen.append(whole[1:] if whole[0] is whole[1] else whole)  # of one stage both are the rows that train
            return parts

        return drawn

    for module in (planned_members, kernel_iv):
        for name in ("split_rows", "hold_out", "fold_groups"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, watched(getattr(module, name)))
    return seen


@pytest.mark.contract
@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("roles", ["formula", "names", "arrays"])
def test_no_estimator_parts_a_group(kind: str, roles: str, splits: list[tuple[torch.Tensor, ...]]) -> None:
    frame = table()
    names = {"outcome": "y", "treatment": "t", "instruments": "z", "covariates": "x"}
    if roles == "arrays":
        model = MAKE[kind]().fit(IVData(**{role: frame[name] for role, name in names.items()}, clusters=frame["g"]))
    else:
        model = MAKE[kind](**({"formula": FORMULA} if roles == "formula" else names), clusters="g").fit(frame)
    assert splits
    for parts in splits:
        assert parted(frame["g"], *parts) == set()
    assert np.isfinite(
        model.structural_function_.components[0].evaluate(frame[["t"]].to_numpy(), frame[["x"]].to_numpy())
    ).all()


@pytest.mark.law
@pytest.mark.parametrize("kind", MAKE)
def test_groups_in_another_notation_give_the_same_bits_and_other_groups_do_not(kind: str) -> None:
    frame = table()
    other = frame.assign(g=frame["g"].map({name: i for i, name in enumerate(frame["g"].unique())}))
    shuffled = frame.assign(g=np.roll(frame["g"], 1))
    first, same, different = (MAKE[kind](formula=FORMULA, clusters="g").fit(f).predict(frame) for f in (frame, other, shuffled))
    np.testing.assert_array_equal(first, same)
    assert (first != different).any()


@pytest.mark.law
@pytest.mark.parametrize("kind", MAKE)
def test_a_model_file_names_the_column_and_predicts_without_it(kind: str, tmp_path: Path) -> None:
    frame = table()
    model = MAKE[kind](formula=FORMULA, clusters="g").fit(frame)
    model.save(tmp_path / "model")
    loaded = cfiv.load(tmp_path / "model")
    assert loaded.encoder.roles.clusters == ("g",)  # type: ignore[attr-defined]
    assert ("Clusters", "g") in loaded.summary().lines
    np.testing.assert_array_equal(loaded.predict(frame[["t", "x"]]), model.predict(frame))
    assert np.isfinite(model.score(frame.drop(columns="g")))


@pytest.mark.law
def test_a_fit_does_not_go_on_from_one_with_other_groups(tmp_path: Path) -> None:
    model, frame = MAKE["DFIV"](formula=FORMULA, clusters="g"), table()
    expected = model.fit(frame, checkpoint=tmp_path).predict(frame)
    np.testing.assert_array_equal(model.fit(frame, checkpoint=tmp_path).predict(frame), expected)
    with pytest.raises(ModelFileError, match="data"):
        model.fit(frame.assign(g=np.roll(frame["g"], 1)), checkpoint=tmp_path)


# What is refused


@pytest.mark.contract
@pytest.mark.parametrize("kind", MAKE)
def test_one_group_with_all_rows_is_refused(kind: str) -> None:
    says = "1 groups of clusters are too few for 5 folds" if kind == "KernelIV" else "120 rows in one group make no two parts"
    with pytest.raises(DataError, match=says):
        MAKE[kind](formula=FORMULA, clusters="g").fit(table(groups=1))


def test_fewer_groups_than_folds_are_refused_and_as_many_are_not() -> None:
    with pytest.raises(
        DataError, match="4 groups of clusters are too few for 5 folds, which hold whole groups: give fewer folds"
    ):
        KernelIV(FORMULA, clusters="g").fit(table(groups=4))
    KernelIV(FORMULA, clusters="g", folds=4, ridge1=0.1, ridge2=0.1).fit(table(groups=4))


def test_a_sample_of_one_group_has_none_to_hold_out() -> None:
    with pytest.raises(
        DataError, match="holding out rows of a sample keeps groups of clusters whole, and 60 rows in one group"
    ):
        DFIV(FORMULA, clusters="g", **QUICK).fit(table(groups=2))
    DFIV(FORMULA, clusters="g", training=Training(holdout=0.0), **QUICK).fit(table(groups=2))


@pytest.mark.contract
@pytest.mark.parametrize("kind", MAKE)
def test_rows_without_a_group_are_dropped_with_a_warning_or_refused(kind: str) -> None:
    frame = table().assign(g=lambda f: f["g"].mask(f.index < 3))
    with pytest.warns(MissingRowsWarning, match="3 of 120 rows"):
        model = MAKE[kind](formula=FORMULA, clusters="g").fit(frame)
    assert model.n_rows_ == 117
    with pytest.raises(DataError, match=r"3 of 120 rows have gaps \(g: 3\)"):
        MAKE[kind](formula=FORMULA, clusters="g", missing="raise").fit(frame)
    with pytest.raises(DataError, match="clusters must label every row, got 3 rows without"):
        IVData(treatment=frame["t"], clusters=frame["g"])


def test_a_column_that_is_not_there_and_an_ivdata_with_groups_that_are_not_named_are_refused() -> None:
    with pytest.raises(DataError, match="'gg'"):
        DFIV(FORMULA, clusters="gg", **QUICK).fit(table())
    frame = table()
    data = IVData(outcome=frame["y"], treatment=frame["t"], instruments=frame["z"], clusters=frame["g"], frame=frame)
    with pytest.raises(DataError, match="the IVData has clusters, but this KernelIV reads columns of its frame"):
        KernelIV(FORMULA).fit(data)
