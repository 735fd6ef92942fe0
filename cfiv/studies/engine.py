"""The engine: many replications at once, on this machine or wherever joblib is told to work."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

from joblib import Parallel, delayed

from cfiv.errors import StudyError
from cfiv.studies.process import processes_of, stop_processes


@dataclass(frozen=True, kw_only=True)
class Job:
    """A replication to run.

    Parameters
    ----------
    index : int
        Whose answer it will be.
    cell : bytes
        A pickled :class:`Cell`.
    data_seed, fit_seed : int
    time_limit : float or None
        Seconds.
    """

    index: int
    cell: bytes
    data_seed: int
    fit_seed: int
    time_limit: float | None


def answer(job: Job, run: str, threads: int) -> tuple[int, dict[str, Any]]:
    """Run a job in a fitting process of whichever process this is called in."""
    seeds = {"data_seed": job.data_seed, "fit_seed": job.fit_seed}
    return job.index, processes_of(run, threads=threads).answer(job.cell, seeds, time_limit=job.time_limit)


def answers(jobs: Sequence[Job], *, workers: int, threads: int) -> Generator[tuple[int, dict[str, Any]], None, None]:
    """The answers, each as soon as it is there.

    joblib hands the jobs out: to threads that each keep a fitting process of their own or, inside ``with
    joblib.parallel_config(backend=...)``, to that backend. Closing the iterator, or an exception in it, ends what is being
    fitted.

    Raises
    ------
    StudyError
        If that backend cannot give answers one by one.
    """
    run = uuid.uuid4().hex
    try:
        parallel = Parallel(
            n_jobs=workers, prefer="threads", return_as="generator_unordered", batch_size=1, pre_dispatch="2 * n_jobs"
        )
    except ValueError as error:  # joblib says so of its "multiprocessing", and of ray's as it comes
        raise StudyError(
            "a study needs each replication as soon as it has finished, and the backend of joblib.parallel_config gives them "
            "at the end: use dask or threading, and ray as the documentation's page of studies says"
        ) from error
    running = parallel(delayed(answer)(job, run, threads) for job in jobs)
    finished = False
    try:
        for found in running:  # noqa: UP028  `yield from` would close it before its processes are stopped
            yield found
        finished = True
    finally:
        # Before the threads are waited for, or they would wait for fits that nobody wants.
        stop_processes(run)
        if not finished:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # joblib's, of answers that nobody read: they will be run again
                running.close()
