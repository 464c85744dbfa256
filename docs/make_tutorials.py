"""Runs a tutorial and writes what it prints into it: python docs/make_tutorials.py docs/tutorials/PAGE.md [--check].

All blocks run in order, in one empty folder: ``python`` in one module, ``sh`` in bash. A block whose first line is a
comment with nothing but a file name (``# my_rule.py``) is that file. The first ``text`` block behind a block that runs
is what it printed, of Python only by its own ``print``. Pictures of the page come from the same folder.

``--check`` writes nothing: words must be those of the page, and numbers agree within a twentieth or two hundredths,
since other processors round otherwise.
"""

import argparse
import contextlib
import io
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import types
from functools import partial
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh|yaml|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# ([\w.-]+\.\w+)\n")
PICTURE = re.compile(r"^!\[[^\]]*\]\(([\w-]+\.png)\)$", re.MULTILINE)
NUMBER = re.compile(r"-?\b\d+(?:\.\d+)?(?:e[-+]?\d+)?")


def rewritten(page: Path) -> str:
    """The page with what its blocks print, run in the current folder."""
    text = page.read_text()
    module = types.ModuleType(f"tutorial_{page.stem.replace('-', '_')}")
    # Checkpoints name its classes.
    sys.modules[module.__name__] = module
    printed: str | None = None

    def run(block: re.Match[str]) -> str:
        nonlocal printed
        language, body = block.groups()
        if file := FILE.match(body):
            Path(file[1]).write_text(body)
        elif language == "python":
            # Tracebacks show the lines of the page.
            source = "\n" * text.count("\n", 0, block.start(2)) + body
            printed = run_python(compile(source, str(page), "exec"), module)
        elif language == "sh":
            printed = run_shell(body)
        elif language == "text" and printed is not None:
            body, printed = printed, None
        return f"```{language}\n{body}```"

    return BLOCK.sub(run, text)


def run_python(code: types.CodeType, module: types.ModuleType) -> str:
    """Run a block and return what it printed itself, without what Lightning says meanwhile."""
    said = io.StringIO()
    vars(module)["print"] = partial(print, file=said)
    with contextlib.redirect_stdout(io.StringIO()):
        exec(code, vars(module))
    return said.getvalue()


def run_shell(body: str) -> str:
    """Run a block and return its output, without progress bars, which start their lines anew."""
    command = ["bash", "-e", "-o", "pipefail", "-c", body]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return "".join(line.rstrip() + "\n" for line in output.stdout.splitlines() if "\r" not in line)


def differences(page: str, run: str) -> list[str]:
    """Lines of a page that do not agree with those of a run."""
    old, new = page.splitlines(), run.splitlines()
    if len(old) != len(new):
        return [f"the page has {len(old)} lines, with what it printed now {len(new)}:", run]
    return [f"- {a}\n+ {b}" for a, b in zip(old, new, strict=True) if not agree(a, b)]


def agree(old: str, new: str) -> bool:
    """Whether two lines have the same words, and numbers that are nearly the same."""
    if NUMBER.sub("#", old).split() != NUMBER.sub("#", new).split():
        return False
    numbers = zip(NUMBER.findall(old), NUMBER.findall(new), strict=True)
    return all(math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=0.02) for a, b in numbers)


def main() -> int:
    """Run one page; the exit status says whether it printed what it says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    arguments = parser.parse_args()
    page = arguments.page.resolve()
    os.environ["MPLBACKEND"] = "agg"
    # Commands are those that belong to this Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        # Modules that the page writes are found, as in a script of its reader.
        sys.path.insert(0, folder)
        text = rewritten(page)
        pictures = PICTURE.findall(text)
        if not arguments.check:
            page.write_text(text)
            for name in pictures:
                shutil.copy(name, page.parent)
        wrong = [f"{name} was not drawn" for name in pictures if not Path(name).exists()]
        wrong += differences(page.read_text(), text)
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
