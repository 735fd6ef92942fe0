"""A refit on a million rows holds moments and one chunk, never all features."""

from tests.benchmarks.memory import output_of

ROWS, FEATURES, TREATMENT_FEATURES = 1_000_000, 64, 8
BOUND_MB = 300

# The rows themselves (16 inputs, 64 MB) are there before the refit.
PROGRAM = f"""
    import numpy as np, torch
    from torch import nn
    from cfiv.learning.samples import Sample
    from cfiv.networks.feature_maps import Networks
    from cfiv.learning.whole_sample import refit_last_layers

    generator = torch.Generator().manual_seed(0)
    rows = {ROWS}
    z = torch.randn(rows, 15, generator=generator)
    t = z[:, :1] + 0.1 * torch.randn(rows, 1, generator=generator)
    sample = Sample(outcome=t.clone(), treatment=t, instruments=z)
    phi = nn.Sequential(nn.Linear(15, {FEATURES}), nn.Tanh())
    psi = nn.Sequential(nn.Linear(1, {TREATMENT_FEATURES}), nn.Tanh())
    networks = Networks(psi, phi, None)
    def refit(rows):
        options = dict(structure="product", first_stage_ridge=1e-6, ridge=1e-6, unpredicted_penalty=0.1)
        refit_last_layers(sample, networks, stage1=rows, stage2=rows, **options)

    refit(torch.arange(20000))
    print(extra_mib(lambda: refit(torch.arange(rows))))
    """


def test_a_refit_on_a_million_rows_needs_little_extra_memory(benchmark) -> None:
    def refit() -> float:
        return float(output_of(PROGRAM))

    extra = benchmark.pedantic(refit, rounds=1)
    benchmark.extra_info["extra memory, MB"] = extra
    print(f"\nextra memory of the refit: {extra:.0f} MB")
    assert 0 < extra <= BOUND_MB
