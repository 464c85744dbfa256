"""How long things take: medians of runs that are made in turns."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch

Run = Callable[[], object]


def clock() -> float:
    """Seconds of the processor where there is one thread, which other programs disturb little; else of the wall."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def seconds(run: Run) -> float:
    start = clock()
    run()
    return clock() - start


def medians(runs: Mapping[str, Run], rounds: int, warm_up: int = 1) -> dict[str, float]:
    """Milliseconds of each, taken in turns, so that what slows the machine down slows all of them.

    Args:
        runs: By name.
        rounds: How often each is timed.
        warm_up: How often each is run before: the first pays for memory and for choosing algorithms.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warm_up + rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    return {name: 1e3 * statistics.median(each[warm_up:]) for name, each in times.items()}
