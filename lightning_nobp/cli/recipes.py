"""Recipes: configurations found by name, in the installed package or in a checkout."""

import difflib
import fnmatch
from collections.abc import Iterable
from pathlib import Path

import lightning_nobp

EXTRAS = ("loggers", "sweeps")
"""Folders of configurations that are no recipe of their own."""


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why, and lists the nearest names."""


def folder() -> Path:
    """Where the recipes lie: inside the package, or beside it in a checkout that is installed in place."""
    package = Path(lightning_nobp.__file__).parent
    packaged = package / "recipes"
    return packaged if packaged.is_dir() else package.parent / "recipes"


def names() -> list[str]:
    """Every configuration, like ``digits/backprop`` or ``loggers/wandb``."""
    return sorted(str(p.relative_to(folder()).with_suffix("").as_posix()) for p in folder().glob("*/*.yaml"))


def recipe_names() -> list[str]:
    """Every recipe: what can be trained."""
    return [name for name in names() if name.split("/")[0] not in EXTRAS]


def find(name: str) -> Path:
    """The file of a configuration: an existing path, or the shipped one of that name.

    Raises:
        UsageError: There is neither.
    """
    path = Path(name)
    if path.is_file():
        return path
    shipped = folder() / f"{name.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    raise UsageError(f"no recipe and no file {name!r}{nearest(name, names())}; nobp list shows all")


def expand(patterns: Iterable[str]) -> list[str]:
    """Recipes that the patterns name, each once: ``digits/*``, ``digits`` for the same, names, files.

    Raises:
        UsageError: A pattern names none.
    """
    found: list[str] = []
    for pattern in patterns:
        if Path(pattern).is_file():
            matches = [pattern]
        else:
            wild = f"{pattern}/*" if pattern in {name.split("/")[0] for name in recipe_names()} else pattern
            matches = fnmatch.filter(recipe_names(), wild)
        if not matches:
            raise UsageError(f"no recipe matches {pattern!r}{nearest(pattern, recipe_names())}")
        found += [name for name in matches if name not in found]
    return found


def summary(name: str) -> str:
    """The first comment of a configuration."""
    line = find(name).read_text().partition("\n")[0]
    return line.removeprefix("#").strip() if line.startswith("#") else ""


def nearest(name: str, known: Iterable[str]) -> str:
    """'; did you mean a, b?', or nothing."""
    options = sorted(known)
    close = difflib.get_close_matches(name, options, n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""
