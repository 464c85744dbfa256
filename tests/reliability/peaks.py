"""What something does in a process of its own, which may take so much memory and no more."""

import os
import pickle
import resource
import signal
from collections.abc import Callable
from typing import Any, NamedTuple

MOST_BYTES = 8 * 2**30


class Outcome(NamedTuple):
    """How it ended."""

    said: str | None
    """What it was refused with; None if it was done."""
    mib: float
    """Memory at the peak, above that at the start."""
    result: Any = None


def alone(function: Callable[..., Any], *arguments: Any, seconds: int = 120) -> Outcome:
    """Call a function in a forked process; one that does not end in time, or by itself, is an error."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        _be_the_child(writing, function, arguments, seconds)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status == 0, f"it ended with {status}"
    return Outcome(*pickle.loads(answer))


def _be_the_child(pipe: int, function: Callable[..., Any], arguments: tuple[Any, ...], seconds: int) -> None:
    """Never returns."""
    start = _peak()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MOST_BYTES,) * 2)
    said = result = None
    try:
        result = function(*arguments)
    except Exception as error:
        said = f"{error}"
    with os.fdopen(pipe, "wb") as file:
        file.write(pickle.dumps((said, round((_peak() - start) / 1024), result)))
    os._exit(0)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
