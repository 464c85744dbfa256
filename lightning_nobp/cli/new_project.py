"""``nobp new``: a project with a rule, an experiment and a test of its own."""

import argparse
import keyword
from pathlib import Path

from lightning_nobp.cli.recipes import UsageError
from lightning_nobp.files import write_whole

_TEMPLATE = Path(__file__).parent / "template"
_PACKAGE, _DISTRIBUTION = "my_project", "my-project"
_RENAMED = {"gitignore": ".gitignore"}


def main(arguments: list[str]) -> int:
    """Carry out ``new``."""
    parser = argparse.ArgumentParser(prog="nobp new", description="Start a project of your own in a new folder.")
    parser.add_argument("folder", type=Path, help="its last part is the project's name, like my-rules")
    create(parser.parse_args(arguments[1:]).folder)
    return 0


def create(folder: Path) -> None:
    """Write the project, and say what to do next.

    Raises:
        UsageError: The folder holds something, or its name is none for a package.
    """
    package = folder.resolve().name.replace("-", "_").lower()
    if not package.isidentifier() or keyword.iskeyword(package) or package in ("tests", "configs", "lightning_nobp"):
        raise UsageError(
            f"{folder.name!r} is no name for a Python package: take letters, digits and dashes, like my-rules"
        )
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        raise UsageError(f"{folder} is not empty: give a new folder")
    for source in sorted(path for path in _TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"):
        relative = source.relative_to(_TEMPLATE)
        target = folder / str(relative.with_name(_RENAMED.get(relative.name, relative.name))).replace(_PACKAGE, package)
        text = source.read_text().replace(_PACKAGE, package).replace(_DISTRIBUTION, package.replace("_", "-"))
        write_whole(target, text)
    print(f"{folder}\nnext: cd {folder} && pip install -e '.[test]' && pytest && nobp fit --config configs/digits.yaml")
