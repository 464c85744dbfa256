"""Wrong arguments, told by their names: of constructors at the door, of functions when torch stumbles over them."""

import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, wraps
from inspect import Parameter, signature
from numbers import Complex, Integral, Real
from os import PathLike
from pathlib import Path
from types import FrameType, NoneType, UnionType
from typing import Any, Literal, ParamSpec, Self, TypeVar, Union, get_args, get_origin, get_type_hints

_P = ParamSpec("_P")
_R = TypeVar("_R")
_LONGEST = 120
_FAILURES = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors; torch also steers by exceptions, which pass."""


class Typed:
    """Refuses constructor arguments of a wrong type, numbers that are none, and choices that there are not.

    Python calls ``__new__`` with the arguments of ``__init__``, before it. So a subclass only annotates its
    constructor, and no frame of ours stands between the constructors, among which Lightning looks for
    hyperparameters.

    Raises:
        TypeError: An argument is not what its annotation says; names it.
        ValueError: A number is NaN or does not fit into 64 bits, or a choice does not exist; likewise.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let a constructor's errors name what it was given."""
        super().__init_subclass__(**kwargs)
        # Lightning finds hyperparameters in the frames of constructors: none of ours may stand between them.
        if "__init__" in vars(cls) and not hasattr(cls, "save_hyperparameters"):
            cls.__init__ = _blaming(cls.__init__)  # type: ignore[method-assign]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Check, and leave the rest to the constructor."""
        by_place, by_name = _annotations(cls)  # type: ignore[arg-type]
        given = [*zip(by_place, args, strict=False), *((by_name[n], v) for n, v in kwargs.items() if n in by_name)]
        for parameter, value in given:
            # A default needs no excuse, whatever the annotation beside it.
            if value is not parameter.default:
                check_type(parameter.name, value, parameter.annotation)
        return super().__new__(cls)

    def __getnewargs__(self) -> tuple[()]:
        """Copies get a state, no arguments; torchmetrics would hand the letters of a metric's name to ``__new__``."""
        return ()


def explained(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let a function say what it was given when torch stumbles over that.

    Nothing is checked in advance, so calls that are right cost nothing. What the function refuses itself passes, and
    so do errors of functions that it was given.
    """

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except _FAILURES as error:
            if is_refusal(error) or "allocate" in str(error):
                raise
            given = _arguments(function, args, kwargs, error)
            for name, kind in _hints(function).items():
                if name in given:
                    check_type(name, given[name], kind)
            if _is_of_others(error):
                raise
            raise _told(f"{function.__name__} cannot work with", given, error) from error

    # Compilers count how often they had to compile a piece of code anew: each function has its own.
    call.__code__ = call.__code__.replace(co_name=function.__name__)  # type: ignore[attr-defined]
    return call


def _blaming(constructor: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose errors name an argument of its own, not one of what it builds."""

    @wraps(constructor)
    def build(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            constructor(self, *args, **kwargs)
        except Exception as error:
            given = _arguments(constructor, (self, *args), kwargs, error)
            del given[next(iter(given))]
            if _is_of_others(error) or "allocate" in str(error) or any(name in str(error) for name in given):
                raise
            raise _told(f"{type(self).__name__} cannot be made with", given, error) from error

    return build


def _arguments(
    function: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any], error: Exception
) -> dict[str, Any]:
    """What a call was given, by name; where it does not fit the signature, ``error`` says so itself."""
    try:
        return signature(function).bind(*args, **kwargs).arguments
    except TypeError:
        raise error from None


def _told(what: str, given: Mapping[str, Any], error: Exception) -> Exception:
    """An error of the same kind that says what was given."""
    kind = type(error) if isinstance(error, TypeError | RuntimeError | ArithmeticError) else ValueError
    said = ", ".join(f"{name}{_described(value)}" for name, value in given.items())
    return kind(f"{what} {said}: {str(error).partition(chr(10))[0] or type(error).__name__}")


def is_refusal(error: BaseException) -> bool:
    """Whether this package raised an error itself, on purpose, and not something that it called."""
    frame, number = origin(error)
    if not frame.f_globals.get("__name__", "").startswith("lightning_nobp."):
        return False
    return linecache.getline(frame.f_code.co_filename, number).strip().startswith("raise ")


def _is_of_others(error: BaseException) -> bool:
    """Whether it arose neither here nor in what we call."""
    module = origin(error)[0].f_globals.get("__name__", "")
    return module.partition(".")[0] not in ("lightning_nobp", "torch", "numpy", "scipy")


def origin(error: BaseException) -> tuple[FrameType, int]:
    """The innermost frame that an error came from, and the line."""
    trace = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame, trace.tb_lineno


def _described(value: Any) -> str:
    """A tensor's shape and type, of anything else the value."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f" of shape {tuple(value.shape)} and {value.dtype}"
    return f"={_shown(value)}"


def check_type(name: str, value: Any, kind: Any) -> None:
    """Refuse an argument that is not what its annotation says.

    Args:
        name: Of the argument.
        value: What it was given.
        kind: The annotation. Of what is neither a class, a choice nor a collection of them, nothing is checked.

    Raises:
        TypeError: The value is of another type.
        ValueError: A number is NaN or does not fit into 64 bits, or a choice does not exist.
    """
    if not _fits(value, kind):
        choices = _choices(kind)
        if isinstance(value, str) and choices:
            or_none = ", or None" if _fits(None, kind) else ""
            raise ValueError(f"{name}={_shown(value)} is not one of {', '.join(map(repr, choices))}{or_none}")
        parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
        if int in parts and float not in parts:
            or_none = ", or None" if NoneType in parts else ""
            raise TypeError(f"{name}={_shown(value)} is no whole number: give an int, like 8{or_none}")
        raise TypeError(f"{name}={_shown(value)} is of type {type(value).__name__}: give {_readable(kind)}")
    for number in () if kind is Any else _numbers(value):
        if number != number:
            raise ValueError(f"{name}={_shown(value)} must be finite: NaN is no number")
        if isinstance(number, Integral) and not -(2**63) <= int(number) < 2**63:
            raise ValueError(f"{name}={_shown(value)} does not fit into 64 bits")


@cache
def _annotations(cls: type) -> tuple[list[Parameter], dict[str, Parameter]]:
    """Arguments by their place, and by name: there also those that ``**kwargs`` hand on to a base."""
    by_place: list[Parameter] = []
    by_name: dict[str, Parameter] = {}
    constructors = [vars(base)["__init__"] for base in cls.__mro__[:-1] if "__init__" in vars(base)]
    for constructor in constructors:
        parameters = _evaluated(constructor)
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        by_name = {p.name: p for p in named} | by_name
        if constructor is constructors[0]:
            by_place = [p for p in named if p.kind is p.POSITIONAL_OR_KEYWORD]
        if len(named) == len(parameters):
            break
    return by_place, by_name


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (AttributeError, NameError, SyntaxError, TypeError):  # a type imported for type checkers alone, or words
        return {}


def _evaluated(constructor: Callable[..., None]) -> list[Parameter]:
    kinds = _hints(constructor)
    parameters = list(signature(constructor).parameters.values())[1:]
    return [p.replace(annotation=kinds.get(p.name, Any)) for p in parameters]


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is Literal:
        return any(value == choice for choice in parts if type(value) is type(choice))
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, parts[1]) for v in value.values())
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _fits_sequence(value, parts)
    if kind in (int, float):
        # numpy's numbers too, but True is no size.
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    if kind is complex:
        return isinstance(value, Complex) and not isinstance(value, bool)
    if kind is Path:
        return isinstance(value, str | PathLike)
    if kind is NoneType or kind is None:
        return value is None
    if kind is bool:
        return type(value).__name__ in ("bool", "bool_")  # numpy's too
    # From Python 3.11 on Any is a class.
    if not isinstance(kind, type) or kind in (Any, object):
        return True
    if getattr(kind, "_is_protocol", False):
        return callable(value) or "__call__" not in vars(kind)
    try:
        return isinstance(value, kind)
    except TypeError:  # of a typed dictionary, whose instances are plain ones
        return True


def _fits_sequence(value: Any, parts: Sequence[Any]) -> bool:
    """Whether it is a sequence of that; from a file a tuple arrives as a list."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(value, list | tuple):
        # Torch's lists of modules are no Sequence.
        return (
            hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, str | bytes | Mapping)
        )
    if len(parts) < 2 or parts[1] is Ellipsis:
        return all(_fits(v, parts[0]) for v in value)
    return len(value) == len(parts) and all(map(_fits, value, parts))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _choices(kind: Any) -> list[str]:
    """Strings that an annotation names."""
    if get_origin(kind) is Literal:
        return [choice for choice in get_args(kind) if isinstance(choice, str)]
    if get_origin(kind) in (Union, UnionType):
        return [choice for part in get_args(kind) for choice in _choices(part)]
    return []


def _numbers(value: Any) -> Iterator[Any]:
    if isinstance(value, Real):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _numbers(item)


def _readable(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_readable, get_args(kind)))
    if kind is NoneType:
        return "None"
    if get_origin(kind) is Literal:
        return ", ".join(map(repr, get_args(kind)))
    return (
        kind.__name__
        if isinstance(kind, type) and not get_args(kind)
        else str(kind).replace("typing.", "").replace("collections.abc.", "")
    )
