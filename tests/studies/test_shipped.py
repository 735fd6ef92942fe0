"""The studies that ship with cfiv can be read, and the designs and methods of their own do what their files say."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import cfiv
from cfiv.errors import NotApplicableError, ParameterError
from cfiv.estimators.trust import Trust
from cfiv.studies import Fit
from cfiv.studies.shipped import belief, functionals, last_layers, learning_problems, many_covariates
from cfiv.studies.shipped.columns_by_letter import columns_by_letter
from cfiv.studies.study_file import read_study, shipped


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_study_is_read_with_its_name(name: str) -> None:
    study = read_study(name)
    assert study.name == name
    assert study.ledger == Path(f"{name}.sqlite").absolute()
    assert len(study) == len(study.cells) * study.replications > 0


#: Whom the tables of Xu et al. compare with, and what ignores the instruments.
RIVALS = ["DeepIV", "AGMM", "Network, no instruments"]


def test_what_the_literature_varies_is_in_the_studies() -> None:
    demand = read_study("demand")
    assert demand.designs["demand"].axes == {"n": [1000, 5000], "rho": [0.1, 0.5, 0.9]}
    assert demand.replications == 20
    assert list(demand.methods) == ["2SLS", "Kernel IV", "DFIV, original", "DFIV, proximal", *RIVALS]
    original = demand.methods["DFIV, original"].estimator
    assert original.get_params() == {**cfiv.DFIV.original(cfiv.datasets.demand.FORMULA).get_params(), "progress": False}
    assert read_study("dsprites").designs["dsprites"].axes == {"n": [1000, 5000, 10000]}
    assert {of["batch_size"] for of in read_study("burgers").methods["proximal"].cells()} == {5, 20, 100}


@pytest.mark.law
def test_tuning_examples_are_four_fifths_of_those_to_train_on_and_the_test_is_not_among_them() -> None:
    train, test = learning_problems.synthetic(n=100, seed=3)
    kept, held = learning_problems.synthetic(n=100, tuning=True, seed=3)
    for whole, first, rest in zip(train.examples, kept.examples, held.examples, strict=True):
        assert torch.equal(whole, torch.cat([first, rest]))
    assert len(kept.examples[0]) == 80
    assert not torch.isin(test.examples[0], train.examples[0]).any()


@pytest.mark.law
def test_weighted_squares_of_functions_are_squares_of_relative_errors() -> None:
    data, _ = learning_problems.darcy(n=4, points=8, seed=0)
    _, y, weights = data.examples
    off = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    weighted = weights * (off**2).flatten(start_dim=1).mean(dim=1)
    relative = off.flatten(start_dim=1).norm(dim=1) / y.flatten(start_dim=1).norm(dim=1)
    torch.testing.assert_close(weighted, relative**2)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.SiLU(), nn.Linear(8, 1))


@pytest.mark.parametrize("layer", [layer for layer in last_layers.LAYERS if layer != "cross-entropy"])
@pytest.mark.parametrize(("batch_size", "rate"), [(32, 0.01), (64, 0.02)])
def test_every_layer_is_trained_at_the_rate_of_its_batch_size_and_refitted_in_a_copy(
    layer: str, batch_size: int, rate: float
) -> None:
    data, held = learning_problems.synthetic(n=128, seed=1)
    data = learning_problems.LearningData(data.examples, perceptron)
    rates = {"32": 0.01, "64": 0.02}
    model = last_layers.last_layer(layer=layer, batch_size=batch_size, epochs=3, rate=rates, penalty=0.1, seed=2)
    assert model.rate == rate
    found = held.error(model.fit(data))
    assert np.isfinite(found)
    assert last_layers.refit(Fit(model, data, held, lambda: (data, held))) != found
    assert held.error(model) == found


def test_cross_entropy_reads_digits() -> None:
    data, held = learning_problems.digits(seed=0)
    model = last_layers.last_layer(layer="cross-entropy", batch_size=64, epochs=1, rate=0.005, seed=0).fit(data)
    assert held.error(model) < 0.5  # chance is 0.9


def test_unknown_layers_and_missing_sizes_are_refused() -> None:
    with pytest.raises(ParameterError, match=r"layer must be one of 'sgd', 'adam', .*got 'ridged'"):
        last_layers.last_layer(layer="ridged", batch_size=4, epochs=1, rate=0.1, seed=0)
    with pytest.raises(ParameterError, match="rate has no value for batches of 4: it has 8, 16"):
        last_layers.last_layer(layer="ridge", batch_size=4, epochs=1, rate={"8": 0.1, "16": 0.1}, seed=0)
    with pytest.raises(ParameterError, match="layer must be 'ridge' or 'proximal', got 'sgd'"):
        last_layers.dfiv_on_images(layer="sgd", report="refit", penalty=1.0, batch_size=32, seed=0)


def test_images_get_the_penalties_of_their_layer() -> None:
    ridge = last_layers.dfiv_on_images(layer="ridge", report="last", penalty={"32": 0.1}, batch_size=32, seed=0)
    assert (ridge.lambda1, ridge.lambda2, ridge.lambda12, ridge.ridge1, ridge.ridge2) == (0.0, 0.0, 0.0, 0.1, 0.1)
    assert (ridge.report, ridge.training, ridge.swap) == ("current", cfiv.Training(rest=0.0), False)
    proximal = last_layers.dfiv_on_images(layer="proximal", report="refit", penalty=2.0, batch_size=32, seed=0)
    assert (proximal.lambda1, proximal.lambda2, proximal.lambda12, proximal.ridge1) == (2.0, 2.0, 2.0, cfiv.DFIV().ridge1)


@pytest.mark.contract
def test_without_the_extra_an_operator_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    data, _ = learning_problems.darcy(n=4, points=8, seed=0)
    monkeypatch.setitem(sys.modules, "neuralop.models", None)
    with pytest.raises(
        cfiv.errors.MissingPackageError, match=r"need neuraloperator, which is not installed: pip install 'cfiv\[oper"
    ):
        data.backbone()


@pytest.mark.oracle
def test_methods_on_all_columns_are_the_estimator_with_its_formula_written_out() -> None:
    table, truth = many_covariates.many_covariates(n=300, covariates=4, truth="line", seed=1)
    fitted = columns_by_letter(name="2sls", seed=0).fit(table)
    own = cfiv.TwoStageLeastSquares("y ~ x1 + x2 + x3 + x4 + [t ~ z]").fit(table)
    np.testing.assert_array_equal(fitted.predict(table), own.predict(table))
    data = Fit(model=fitted, data=table, truth=truth, another=lambda: (table, truth))
    effect = fitted.coefficients_.loc["t", "coefficient"]
    assert many_covariates.error_of_effects(data) == pytest.approx((effect - 1) ** 2)


@pytest.mark.law
def test_of_many_covariates_the_truth_sees_three() -> None:
    few, h = many_covariates.many_covariates(n=50, covariates=3, truth="effects vary, curved covariates", seed=2)
    many, _ = many_covariates.many_covariates(n=50, covariates=9, truth="effects vary, curved covariates", seed=2)
    assert list(many.columns) == ["t", "z", *(f"x{j}" for j in range(1, 10)), "y"]
    np.testing.assert_allclose(h(few.assign(t=1.0)) - h(few.assign(t=0.0)), 1 + few["x1"])
    np.testing.assert_array_equal(h(many), h(many.assign(x4=0.0, x9=5.0)))


@pytest.mark.law
def test_of_designs_with_several_treatments_the_derivative_is_one_and_only_treatments_go_with_the_error() -> None:
    of_two, h = functionals.two_treatments(n=20_000, covariates=3, correlation=0.5, seed=4)
    of_many, g = functionals.many_treatments(n=20_000, treatments=3, seed=4)
    for table, truth in ((of_two, h), (of_many, g)):
        np.testing.assert_allclose(truth(table.assign(t1=table["t1"] + 0.5)) - truth(table.assign(t1=table["t1"] - 0.5)), 1.0)
        with_error = table.corrwith(table["y"] - truth(table)).drop("y")
        for column, correlation in with_error.items():
            assert abs(correlation) > 0.2 if str(column).startswith("t1") else abs(correlation) < 0.03 or str(column)[0] == "t"


@pytest.mark.oracle
def test_the_letter_of_a_column_is_its_role() -> None:
    table, _ = functionals.two_treatments(n=300, covariates=0, correlation=0.0, seed=5)
    own = cfiv.TwoStageLeastSquares("y ~ x1 + [t1 + t2 ~ z1 + z2]").fit(table)
    np.testing.assert_array_equal(columns_by_letter(name="2sls", seed=0).fit(table).predict(table), own.predict(table))


@pytest.mark.law
@pytest.mark.parametrize("case", [case for case in belief.CASES if case != "noise"])
def test_the_truth_misses_nothing_and_a_flat_line_all_that_the_treatment_does(case: str) -> None:
    table, truth = belief.sample(n=150, case=case, seed=1)
    assert {"y", "t", "z"} <= set(table.columns) <= {"y", "t", "z", "x", "x1", "x2"}

    class Estimate:
        def __init__(self, h: object) -> None:
            self.predict = h

    def missed(h: object) -> float:
        return belief.missed(Fit(Estimate(h), table, truth, lambda: (table, truth)))

    assert missed(truth) == 0.0
    assert missed(lambda rows: truth(rows.assign(t=table["t"].mean()))) == pytest.approx(1.0)
    assert missed(lambda rows: truth(rows.assign(t=table["t"].mean())) * 0.5) == pytest.approx(1.0)


@pytest.mark.law
def test_a_fit_is_flagged_where_its_record_has_reasons_and_noise_has_nothing_to_miss() -> None:
    table, truth = belief.sample(n=150, case="noise", seed=1)
    assert not truth(table).any()
    for strength, expected in ((3.0, 1.0), (300.0, 0.0)):
        model = type("Model", (), {"trust_": Trust(strength=strength), "predict": truth})
        fit = Fit(model, table, truth, lambda: (table, truth))
        assert belief.flagged(fit) == expected
        with pytest.raises(NotApplicableError, match="the treatment does nothing"):
            belief.missed(fit)
    with pytest.raises(NotApplicableError, match="says nothing of its worth"):
        belief.flagged(Fit(object(), table, truth, lambda: (table, truth)))
