"""What became of a hostile call: a result, or an error that says enough; anything else is a fault."""

import reprlib
import resource
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from limits import time_limit

from lightning_nobp.typed import is_refusal, origin

OURS = (TypeError, ValueError, ArithmeticError, RuntimeError, OSError)
"""What a refusal may be."""


class Outcome(NamedTuple):
    kind: str
    """``'works'``, ``'refused'``, ``'no memory'``, ``'fault'``, or ``'ours'``: a helper of the test has failed."""
    result: Any
    """What the call gave, or how it failed."""


class Hangs(BaseException):
    """No ``Exception``: nobody on the way may take it for a failure of its own."""


def outcome(
    call: Callable[[], Any], names: Iterable[str] = (), seconds: int = 20, others: Iterable[str] = ()
) -> Outcome:
    """Call, and judge what came of it.

    Args:
        call: The hostile call.
        names: Arguments of which a refusal must name one; of none, any refusal will do.
        seconds: How long it may take.
        others: Arguments that our own refusal may name as well: those with which the wrong one does not fit.
    """
    try:
        with time_limit(seconds, Hangs):
            return Outcome("works", call())
    except MemoryError as error:
        return Outcome("no memory", error)
    except Hangs:
        return Outcome("fault", f"no answer in {seconds} seconds")
    except Exception as error:
        if "allocate memory" in str(error) or "Storage size calculation overflowed" in str(error):
            return Outcome("no memory", error)
        names = list(names)
        is_named = any(name.lower() in str(error).lower() for name in (*names, *(others if is_refusal(error) else ())))
        # Torch's own words will do if they name the argument; where nothing is to be named, they must be ours.
        if isinstance(error, OURS) and (is_named or (not names and is_refusal(error))):
            return Outcome("refused", error)
        if where(error).startswith(("reliability.", "tests.")):
            return Outcome("ours", f"{type(error).__name__}: {error}")
        return Outcome("fault", f"{type(error).__name__}: {reprlib.repr(str(error))}")


def where(error: BaseException) -> str:
    """The module that an error came from."""
    return str(origin(error)[0].f_globals.get("__name__", ""))


@contextmanager
def little_memory(more: int = 2**29) -> Iterator[None]:
    """Refuse this process more than so many bytes above those that it has."""
    with open("/proc/self/statm") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (has + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
