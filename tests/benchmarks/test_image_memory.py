"""A fit to 10,000 images needs the images, their split copies, and little else."""

from tests.benchmarks.memory import output_of

ROWS, BATCH = 10_000, 256
BOUND_MB = 1500

# The peak of the whole process: libraries, the design's images (160 MB of float32), the fit, the test error.
PROGRAM = f"""
    import cfiv
    from cfiv.datasets import dsprites

    data, truth = dsprites.simulate({ROWS}, seed=0)
    model = cfiv.DFIV(batch_size={BATCH}, steps=40, device="cpu", progress=False, random_state=0).fit(data)
    truth.error(model)
    print(memory("VmHWM"))
    """


def test_a_fit_to_ten_thousand_images_stays_below_a_gigabyte_and_a_half(benchmark) -> None:
    def fit() -> float:
        return float(output_of(PROGRAM))

    peak = benchmark.pedantic(fit, rounds=1)
    benchmark.extra_info["peak memory, MB"] = peak
    print(f"\npeak memory of the process: {peak:.0f} MB")
    assert 0 < peak <= BOUND_MB
