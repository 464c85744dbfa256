"""An end for what hangs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def time_limit(seconds: int, kind: type[BaseException] = TimeoutError) -> Iterator[None]:
    """Raise an error of a kind where something takes longer."""

    def fail(*_: Any) -> None:
        raise kind(f"took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
