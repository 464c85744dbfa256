"""Constructor arguments of a rule as plain data, so that a checkpoint rebuilds the rule and loads safely.

A checkpoint loads with ``torch.load(weights_only=True)`` only if it holds plain values and tensors. The command
line already gives plain values; a rule built in Python gets classes, partials and modules, which are rewritten here
to the command line's own form, ``{"class_path": ..., "init_args": {...}}``.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lightning_nobp.nn import networks

_T = TypeVar("_T")

INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"
"""What Lightning calls to rebuild a module from plain arguments: the one it trusts."""

OPAQUE = "built in Python: "
"""Marks a module that plain data cannot describe; followed by its class."""


def plain_arguments(cls: type, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The plain form of the keyword arguments that built an instance of ``cls``.

    Arguments that the constructor does not take, and functions that are its defaults, are left out: loading gives
    the one to nobody and brings the others back.

    Args:
        cls: The class.
        arguments: What its constructor was given, by name.

    Returns:
        The plain arguments, and how Lightning rebuilds the object from them.

    Raises:
        TypeError: A lambda, a local function or any other object that plain data cannot say.
    """
    accepted = inspect.signature(cls).parameters
    passed_on = _passed_on(cls)
    plain: dict[str, Any] = {}
    for name, value in arguments.items():
        if name in accepted:
            if callable(value) and value is accepted[name].default:
                continue
        elif passed_on is not None and name not in passed_on:
            continue
        plain[name] = to_plain(value, name)
    return plain | {"_class_path": import_path(cls), "_instantiator": INSTANTIATOR}


def _passed_on(cls: type) -> set[str] | None:
    """Arguments of constructors that ``**kwargs`` lead to; None if they lead to one that takes any."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        names.update(parameters)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return names
    return None


def refuse_opaque(arguments: Mapping[str, Any]) -> None:
    """Refuse what a checkpoint could not describe and the user did not give again.

    Raises:
        ValueError: Names the argument.
    """
    for name, value in arguments.items():
        if isinstance(value, str) and value.startswith(OPAQUE):
            raise ValueError(
                f"{name} was {value}: a checkpoint cannot rebuild it, so give it again, "
                f"load_from_checkpoint(path, {name}=...)"
            )


def to_plain(value: Any, name: str) -> Any:
    """``value`` as numbers, strings, lists, dictionaries, tensors and class paths.

    Args:
        value: What an argument was given.
        name: The argument's name, for the error.

    Raises:
        TypeError: The value has no plain form.
    """
    if isinstance(value, np.generic):
        # Before the plain numbers: some of numpy's are subclasses of them.
        return value.item()
    if value is None or isinstance(value, bool | int | float | str | Tensor):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, list | tuple):
        return [to_plain(v, name) for v in value]
    if isinstance(value, Mapping):
        return {k: to_plain(v, name) for k, v in value.items()}
    if isinstance(value, nn.Module):
        plain = None if _is_tied_or_frozen(value) else _module_to_plain(value)
        return plain or OPAQUE + import_path(type(value))
    if isinstance(value, functools.partial):
        return _partial_to_plain(value, name)
    if callable(value) and hasattr(value, "__qualname__") and _importable(value):
        return _callable_to_plain(value, name)
    raise TypeError(
        f"{name}={value!r} cannot be written to a checkpoint, so the run could not be loaded again. Give a class, "
        "functools.partial(Class, keyword=value) or a function of a module instead of a lambda or local object."
    )


def import_path(thing: Any) -> str:
    """Where ``thing`` can be imported from."""
    return f"{thing.__module__}.{thing.__qualname__}"


class DefaultOf(NamedTuple):
    """A function that is a constructor's default, in a form that pickle can take to another process."""

    owner: type
    name: str

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        return _parameters(self.owner)[self.name].default(*args)


def picklable(cls: type, name: str, value: _T) -> _T | DefaultOf:
    """``value``, so wrapped that it can be pickled if it is a default of a constructor of ``cls`` (a lambda, say).

    Args:
        cls: The class.
        name: The argument.
        value: What the argument was given.
    """
    if callable(value):
        for base in cls.__mro__:
            parameter = _parameters(base).get(name)
            if parameter is not None and parameter.default is value:
                return DefaultOf(base, name)
    return value


def _parameters(cls: type) -> Mapping[str, inspect.Parameter]:
    """Parameters of the constructor that ``cls`` itself defines."""
    constructor = vars(cls).get("__init__")
    return {} if constructor is None or cls is object else inspect.signature(constructor).parameters


def _importable(thing: Any) -> bool:
    try:
        found: Any = importlib.import_module(thing.__module__)
        for part in thing.__qualname__.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return False
    return found is thing


def _partial_to_plain(value: functools.partial[Any], name: str) -> Any:
    # The command line's own partials call a helper with the class as an argument.
    target = next((part for part in value.args if inspect.isclass(part)), value.func)
    if not (inspect.isclass(target) and _importable(target)):
        raise TypeError(f"{name}={value!r} wraps {target!r}: give a partial of a class at the top of a module")
    if value.args and target is value.func:
        raise TypeError(f"{name}={value!r} has arguments without a name: write functools.partial(Class, keyword=value)")
    if issubclass(target, nn.Module):
        untyped = [p.name for p in inspect.signature(target).parameters.values() if p.annotation is p.empty]
        if untyped:
            raise TypeError(
                f"{name}={value!r} could not be loaded again: annotate the types of {', '.join(untyped)} in the "
                f"constructor of {target.__name__}"
            )
    return {
        "class_path": import_path(target),
        "init_args": {k: to_plain(v, name) for k, v in value.keywords.items()},
    }


def _callable_to_plain(value: Any, name: str) -> Any:
    if inspect.isclass(value):
        # Networks are built by calling them with a shape: their constructor need not be annotated.
        return import_path(value) if issubclass(value, nn.Module) else {"class_path": import_path(value)}
    if inspect.signature(value).return_annotation is inspect.Signature.empty:
        raise TypeError(f"{name}={value!r} could not be loaded again: annotate the type that the function returns")
    return import_path(value)


def _is_tied_or_frozen(module: nn.Module) -> bool:
    """Whether a description of the layers would lose that some are one and the same, or do not train."""
    every = [id(m) for _, m in module.named_modules(remove_duplicate=False)]
    return len(every) > len(set(every)) or not all(p.requires_grad for p in module.parameters())


# The last two are what `reduction` of torch's losses was once called, as Hardtanh has older names for its bounds.
_NOT_ARCHITECTURE = ("device", "dtype", "self", "size_average", "reduce")


def _module_to_plain(module: nn.Module) -> dict[str, Any] | None:
    """``module`` as class path and arguments, or None unless rebuilding them gives the same architecture.

    Arguments are read from the attributes of the same names, where torch's layers keep theirs.
    """
    if isinstance(module, nn.Sequential) and type(module) in (nn.Sequential, networks.sequential):
        layers = [_module_to_plain(layer) for layer in module]
        if None in layers or list(module._modules) != [str(i) for i in range(len(layers))]:
            return None
        return {"class_path": "lightning_nobp.nn.sequential", "init_args": {"layers": layers}}
    cls = type(module)
    arguments = {}
    # Without a constructor of its own, a layer would seem to take whatever nn.Module takes.
    parameters = {} if cls.__init__ is nn.Module.__init__ else inspect.signature(cls).parameters
    for name, parameter in parameters.items():
        if name in _NOT_ARCHITECTURE or (cls is nn.Hardtanh and name in ("min_value", "max_value")):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return None
        value = getattr(module, name, inspect.Parameter.empty)
        if name == "bias" and not isinstance(value, bool):
            value = value is not None
        if isinstance(value, nn.Module):
            value = _module_to_plain(value)
        if value is inspect.Parameter.empty or not _is_plain(value):
            return None
        arguments[name] = list(value) if isinstance(value, tuple) else value
    plain = {"class_path": import_path(cls), "init_args": arguments}
    return plain if _importable(cls) and _rebuilds(module, plain) else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(v) for v in value)
    if isinstance(value, dict):
        return all(_is_plain(v) for v in value.values())
    return value is None or isinstance(value, bool | int | float | str)


def _rebuilds(module: nn.Module, plain: dict[str, Any]) -> bool:
    try:
        with torch.device("meta"):
            twin = _build(plain)
    except Exception:  # a constructor may refuse in any way it likes; then it has no plain form
        return False
    shapes = {k: v.shape for k, v in module.state_dict().items()}
    return repr(twin) == repr(module) and {k: v.shape for k, v in twin.state_dict().items()} == shapes


def _build(plain: Any) -> Any:
    if isinstance(plain, list):
        return [_build(item) for item in plain]
    if not (isinstance(plain, dict) and "class_path" in plain):
        return plain
    module, _, name = plain["class_path"].rpartition(".")
    arguments = {k: _build(v) for k, v in plain["init_args"].items()}
    return getattr(importlib.import_module(module), name)(**arguments)
