"""Long proofs: ``make test-reliability`` runs them, plain ``pytest`` leaves them out.

What they count goes to ``--counts FOLDER``, from which ``docs/make_reliability.py`` writes a page.
"""

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_nobp.cli.report import conditions

Count = Callable[..., None]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--counts", type=Path, help="folder for what the proofs counted, a JSON file for each of theirs")
    parser.addoption("--scale", type=float, default=1.0, help="fraction of the repetitions, for a quick look")


@pytest.fixture(scope="session")
def repetitions(request: pytest.FixtureRequest) -> Callable[[int], int]:
    """How often to try something that counts so often at full scale; at least once."""
    scale = request.config.getoption("--scale")
    return lambda full: max(1, round(full * scale))


@pytest.fixture(scope="module")
def count(request: pytest.FixtureRequest) -> Iterator[Count]:
    """Adds a row to a table of this file: ``count("Title", rule="Backprop", kills=20)``."""
    tables: dict[str, list[dict[str, Any]]] = {}
    start = time.time()

    def add(title: str, **row: str | int | float) -> None:
        tables.setdefault(title, []).append(row)

    yield add
    folder = request.config.getoption("--counts")
    if folder is None or not tables:
        return
    arguments = [a for a in sys.argv[1:] if not a.startswith("--counts") and a != str(folder)]
    about = conditions() | {
        "command": "pytest " + shlex.join(arguments),
        "seconds": round(time.time() - start),
        "failed": request.session.testsfailed,
        "tables": [{"title": title, "rows": rows} for title, rows in tables.items()],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{request.path.stem}.json").write_text(json.dumps(about, indent=1) + "\n")
