"""Reads the command line and recipes, and says in a line or two what is wrong with them."""

import re
from inspect import signature
from pydoc import locate
from typing import Any, NoReturn

import torch
from jsonargparse import Namespace
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch import loggers as pl_loggers
from lightning.pytorch.cli import LightningArgumentParser

import lightning_nobp.datamodules  # short class names work for what is imported
import lightning_nobp.nn
import lightning_nobp.rules
from lightning_nobp.cli.recipes import UsageError, nearest

_NOT_SAID = re.compile(
    r"Does not validate against any|Subtypes: |Errors:|Given value|Expected a <class 'NoneType'>"
    r"|Problem with given class_path|Parser key|Expected a path but|Expected a <class 'str'>$"
    # Of the last alternative, a class that is called later; what is known and not accepted has a wrong value.
    r"|expects a function or a callable class: Option '[\w.]+' is not accepted"
)
"""Lines of the parser's messages that only lead to the one that counts."""

_OF_HELP = {"--model.help": (lightning_nobp.rules,), "--data.help": (lightning_nobp.datamodules,)}
"""Where the classes are that these options explain."""


class NobpParser(LightningArgumentParser):
    """Says what is wrong in a line or two, with the nearest names."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # An abbreviated --config would pass by the names of recipes.
        super().__init__(*args, **kwargs | {"allow_abbrev": False})

    def dump(self, cfg: Namespace, **kwargs: Any) -> str:
        """The configuration with the shape of the data that the rule was given by hand: it is nowhere else."""
        return str(super().dump(cfg, **{"skip_link_targets": False} | kwargs))

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise a :class:`UsageError`."""
        if not self.exit_on_error:
            # One alternative of several: the caller tries the others.
            super().error(message, ex)
        unknown = re.search(r"(?:Option|Key) '([\w.]+)' is not|nrecognized arguments: --([\w.]+)", message)
        said = unknown and self._unknown(unknown[1] or unknown[2], message)
        raise UsageError(said or bad_value(message))

    def _unknown(self, name: str, message: str) -> str | None:
        """That there is no such option, and which there are; None if there is one."""
        # Classes are named from the outside in; after "Given value" the arguments are only repeated.
        owners = re.findall(r"class_path[ =]'([\w.]+)'", message.partition("Given value")[0])
        known = _parameters(owners[-1]) if owners else {a.dest.rpartition(".")[2] for a in self._actions}
        of = f" of {owners[-1]}" if owners else ""
        # In a.b.c any part may be the wrong one; the first that no one knows is.
        part = next((p for p in name.split(".") if p not in known), None if owners else name)
        if part is None:
            return None
        return f"there is no option {name!r}{of}{nearest(part, known)}"


def bad_value(message: str) -> str:
    """The option's name and what was wrong with its value, of a message that lists every attempt."""
    option = ".".join(dict.fromkeys(re.findall(r'Parser key "([\w.]+)"', message)))
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    said = dict.fromkeys(line for line in lines if line and not _NOT_SAID.search(line))
    return (f"{option}: " if option else "") + "\n".join(said) + _nearest_class(message)


def _nearest_class(message: str) -> str:
    """Classes of about the name that could not be imported."""
    name = re.search(r"Expected a dot import path string: (\w+)$", message, re.MULTILINE)
    if not name:
        return ""
    option = message.partition(":")[0]
    modules = _OF_HELP.get(option, (torch.optim, torch.optim.lr_scheduler, lightning_nobp.nn, pl_callbacks, pl_loggers))
    return nearest(name.group(1), {k for module in modules for k, v in vars(module).items() if isinstance(v, type)})


def _parameters(class_path: str) -> set[str]:
    """Names that the constructors of a class and its bases take from a user."""
    names: set[str] = set()
    for base in getattr(locate(class_path), "__mro__", ()):
        parameters = signature(base.__init__).parameters
        names |= set(parameters) - {"self"}
        # What a constructor does not hand on, those of its bases get from nobody.
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            break
    return names


__all__ = ["NobpParser", "bad_value"]
