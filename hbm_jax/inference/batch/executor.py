"""Work divided into tasks for any `concurrent.futures.Executor`; a task that fails is submitted again."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from typing import Any

import numpy as np

TASKS_PER_WORKER = 4  # several, so that the others wait for only one task of a slow worker
ATTEMPTS = 3  # of each task


class TaskError(RuntimeError):
    """Error if a task of an executor failed on every attempt."""


ShareError = TaskError  # former name


def run_tasks(executor: Executor, work: Callable, items, progress_line) -> tuple[list, dict]:
    """Divide items into tasks, run them on an executor, and collect the results.

    Parameters
    ----------
    executor : concurrent.futures.Executor
        A process pool, ``dask.distributed.Client.get_executor()``, an MPI pool...
    work : callable
        ``work(part, rows)``, which returns a list of results and a dictionary of costs. It is sent to the workers, so
        it and its program must be picklable, that is, defined in a module.
    items
        A container with a length and a method ``take(rows)`` that returns a part of it.
    progress_line : ProgressLine
        Progress line.

    Returns
    -------
    list, dict
        Results of all tasks, in order of completion, and summed costs.

    Raises
    ------
    TaskError
        If a task failed three times; the last error is its cause.
    """
    workers = getattr(executor, "_max_workers", None) or 8
    num_tasks = min(TASKS_PER_WORKER * workers, len(items))
    task_rows = np.array_split(np.arange(len(items)), num_tasks)
    pending: dict[Any, tuple[np.ndarray, int]] = {}

    results: list = []
    costs: dict[str, float] = {}
    num_failed = 0

    def collect(new_results, new_costs):
        results.extend(new_results)
        for name, value in new_costs.items():
            costs[name] = costs.get(name, 0) + value

    def submit(rows, attempt):
        try:
            pending[executor.submit(work, items.take(rows), rows)] = (rows, attempt)
        except BrokenExecutor:  # a pool with a killed worker accepts no more tasks, so run the task here
            collect(*work(items.take(rows), rows))

    for rows in task_rows:
        submit(rows, 1)
    while pending:
        finished, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            rows, attempt = pending.pop(future)
            try:
                collect(*future.result())
            except Exception as error:
                num_failed += 1
                if attempt == ATTEMPTS:
                    raise TaskError(
                        f"objects {rows[0]} to {rows[-1]} failed on {ATTEMPTS} attempts: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                submit(rows, attempt + 1)
        resubmitted = f", {num_failed} tasks submitted again" if num_failed else ""
        progress_line.show(f"{len(results)}/{len(items)} objects from {num_tasks} tasks{resubmitted}")
    return results, costs
