"""Work sent out in shares to any `concurrent.futures.Executor`; a share whose worker dies is done again."""

from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, wait
from typing import Any

import numpy as np

SHARES_PER_WORKER = 4  # so that a slow worker holds up the rest by a fraction of its work
ATTEMPTS = 3


class ShareError(RuntimeError):
    """A share that failed on every attempt."""


def spread(executor: Executor, work: Callable, whole, live, num_shares: int | None = None) -> tuple[list, dict]:
    """Send out the rows of a whole and gather the results.

    Parameters
    ----------
    executor : concurrent.futures.Executor
        A process pool, ``dask.distributed.Client.get_executor()``, an MPI pool...
    work : callable
        ``work(part, rows)`` returning a list of results and a dictionary of costs. It is sent to the workers, so the
        program in it has to be one that can be pickled: defined in a module.
    whole
        Something with a length, and ``take(rows)``, which gives a part.
    live : LiveLine
        For progress.
    num_shares : int, optional
        Number of shares.

    Raises
    ------
    ShareError
        If a share failed three times; the last error is its cause.
    """
    workers = getattr(executor, "_max_workers", None) or 8
    num_shares = min(num_shares or SHARES_PER_WORKER * workers, len(whole))
    rows = np.array_split(np.arange(len(whole)), num_shares)
    waiting: dict[Any, tuple[np.ndarray, int]] = {}

    results: list = []
    costs: dict[str, float] = {}
    lost = 0

    def keep(part, cost):
        results.extend(part)
        for name, value in cost.items():
            costs[name] = costs.get(name, 0) + value

    def send(own, attempt):
        try:
            waiting[executor.submit(work, whole.take(own), own)] = (own, attempt)
        except BrokenExecutor:  # a process pool of which a worker was killed takes no more work: it is done here
            keep(*work(whole.take(own), own))

    for own in rows:
        send(own, 1)
    while waiting:
        finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            own, attempt = waiting.pop(future)
            try:
                keep(*future.result())
            except Exception as error:
                lost += 1
                if attempt == ATTEMPTS:
                    raise ShareError(
                        f"objects {own[0]} to {own[-1]} failed on {ATTEMPTS} attempts: {type(error).__name__}: {error}"
                    ) from error
                send(own, attempt + 1)
        again = f", {lost} shares sent again" if lost else ""
        live.show(f"{len(results)}/{len(whole)} objects from {num_shares} shares{again}")
    return results, costs
