"""Estimators on a Parquet file: peak memory, and the time that reading takes beside a fit or in it."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.benchmarks.memory import output_of

#: MB (10^6 bytes) that the process may take, libraries (some 400) and mapped pages with it; processor time of a fit beside that
#: of ``pandas.read_parquet`` in a process that has not read before. Once memory is warm pandas reads several times as fast.
BOUND_MB, TIMES = 1000, 3.0

READING = """
    import time
    import pandas as pd
    pd.read_parquet({few!r})
    for _ in range(2):
        started = time.process_time()
        pd.read_parquet({place!r})
        print(time.process_time() - started)
    """

PROGRAM = """
    import json, sys, time
    import numpy as np
    import pandas as pd
    import cfiv

    def seconds(call):
        started = time.process_time()
        call()
        return time.process_time() - started

    place = {place!r}
    model = cfiv.TwoStageLeastSquares("y ~ x + w + [t ~ z]")
    few = pd.DataFrame(np.random.default_rng(0).normal(size=(100, 5)), columns=list("ytzxw"))
    few.to_parquet({few!r})
    cfiv.infer({few!r}, model.fit({few!r}))  # imports
    Path("/proc/self/clear_refs").write_text("5")
    fit = seconds(lambda: model.fit(place))
    fit_mb = memory("VmHWM") * 1.048576
    infer = seconds(lambda: cfiv.infer(place, model))
    infer_mb = memory("VmHWM") * 1.048576
    print(json.dumps(dict(fit=fit, infer=infer, fit_mb=fit_mb, infer_mb=infer_mb)))
    """


def write(place: Path, rows: int) -> None:
    """Five columns of float64 in row groups of up to a million."""
    generator, writer = np.random.default_rng(0), None
    for start in range(0, rows, 1_000_000):
        z, x, w, v, u = generator.normal(size=(5, min(1_000_000, rows - start)))
        t = 1 + 0.5 * z + 0.3 * x + v
        table = pa.table({"y": 2 - 1.5 * t + x + 0.2 * w + 0.7 * v + u, "t": t, "z": z, "x": x, "w": w})
        writer = writer or pq.ParquetWriter(place, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


@pytest.mark.parametrize("rows", [1_000_000, 10_000_000])
def test_linear_fits_of_a_file_need_little_memory_and_three_times_its_reading(benchmark, tmp_path: Path, rows: int) -> None:
    place = tmp_path / "rows.parquet"
    write(place, rows)
    places = {"place": str(place), "few": str(tmp_path / "few.parquet")}
    found = benchmark.pedantic(lambda: json.loads(output_of(PROGRAM.format(**places))), rounds=1)
    found["read"], found["read_again"] = map(float, output_of(READING.format(**places)).split())
    benchmark.extra_info.update(found)
    print(f"\n{rows:,} rows: {found}")
    assert max(found["fit_mb"], found["infer_mb"]) <= BOUND_MB
    if rows > 1_000_000:  # what does not grow with the rows is then small
        assert found["fit"] <= TIMES * found["read"]


#: Of a fit of networks: MB at most, the share of its processor time that goes to the file, to scaled columns on disk and to
#: DFIV's batches of them, its steps (DFIV has 12,011 by default at a million rows and 20,000 at ten), and rows, of which there
#: may be asked for more.
LEARNED_MB, SHARE, STEPS = 1500, 0.3, 300
LEARNED_ROWS = int(os.environ.get("CFIV_BENCHMARK_ROWS", "1_000_000"))

LEARNING = """
    import json, time, warnings
    import cfiv
    from cfiv.estimators import estimator
    from cfiv.estimators.standardised import StandardisedData
    from cfiv.objectives import dfiv_fit

    reading = 0.0

    def timed(call):
        def measured(*given, **named):
            global reading
            started = time.process_time()
            found = call(*given, **named)
            reading += time.process_time() - started
            return found
        return measured

    estimator.encode = timed(estimator.encode)
    StandardisedData.prepare = timed(StandardisedData.prepare)
    draw = dfiv_fit.draw_batches
    dfiv_fit.draw_batches = lambda *given, **how: iter(timed(draw(*given, **how).__next__), None)
    model = cfiv.{kind}("y ~ x + w + [t ~ z]", steps={steps}, progress=False, random_state=0, device="cpu")
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # so few steps are no fit to believe
        model.fit({place!r})
    seconds = time.process_time() - started
    print(json.dumps(dict(seconds=seconds, share=reading / seconds, mb=memory("VmHWM") * 1.048576)))
    """


@pytest.mark.parametrize("kind", ["DFIV", "NetworkRegression"])
def test_networks_learn_from_a_file_in_little_memory_and_hardly_wait_for_it(benchmark, tmp_path: Path, kind: str) -> None:
    place = tmp_path / "rows.parquet"
    write(place, LEARNED_ROWS)
    program = LEARNING.format(kind=kind, steps=STEPS, place=str(place))
    found = benchmark.pedantic(lambda: json.loads(output_of(program)), rounds=1)
    benchmark.extra_info.update(found)
    print(f"\n{kind}, {LEARNED_ROWS:,} rows: {found}")
    assert found["mb"] <= LEARNED_MB
    assert found["share"] <= SHARE
