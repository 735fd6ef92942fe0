"""Two-stage least squares and inference on a Parquet file: peak memory, and time beside that of reading the file."""

import json
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
