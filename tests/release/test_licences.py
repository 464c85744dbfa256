"""docs/licences.md lists what an install brings, and says of everything that is not permissive."""

import re
import runpy
import tomllib
from email.message import Message
from pathlib import Path
from types import SimpleNamespace

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "licences.md").read_text()
TEXT, _, TABLE = PAGE.partition("<!-- written by docs/make_licences.py -->")
ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in TABLE.strip().splitlines()[2:]]
script = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "make_licences.py")))


def package(requires=(), files=(), **fields):
    """A distribution that is installed nowhere."""
    metadata = Message()
    for name, value in fields.items():
        metadata[name.replace("_", "-")] = value
    return SimpleNamespace(metadata=metadata, requires=list(requires), files=[Path(file) for file in files])


def test_the_page_lists_every_dependency_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    listed = {name for name, _, _, asked_by in ROWS if "lightning-nobp" in asked_by.split(", ")}
    assert listed == {script.normal(Requirement(text).name) for text in project["dependencies"]}


def test_the_page_lists_what_each_listed_package_is_asked_for_by():
    listed = {name for name, *_ in ROWS}
    assert len(listed) == len(ROWS)
    for name, _, _, asked_by in ROWS:
        assert set(asked_by.split(", ")) <= listed | {"lightning-nobp"}, name


def test_what_is_not_permissive_is_bold_and_told_of():
    for name, _, licence, _ in ROWS:
        found = licence.partition("; holds")[0]
        assert script.restricted(found.strip("*")) == found.startswith("**"), name
        if found.startswith("**"):
            assert name in TEXT or name.startswith(("nvidia-", "cuda-")), name
    assert not [name for name, _, licence, _ in ROWS if re.search(r"GPL", licence)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"License_Expression": "MIT", "License": "see LICENSE"}, "MIT"),
        ({"License": "BSD-2-Clause", "Classifier": "License :: OSI Approved :: BSD License"}, "BSD-2-Clause"),
        ({"License": "Copyright\nall of it", "Classifier": "License :: OSI Approved :: BSD License"}, "BSD License"),
        ({"License": "UNKNOWN", "Classifier": "Topic :: Software Development"}, "not stated"),
    ],
)
def test_the_expression_goes_before_the_field_and_the_field_before_the_classifier(fields, expected):
    assert script.licence(package(**fields)) == expected


@pytest.mark.parametrize(
    ("licence", "restricted"),
    [("MIT", False), ("Apache-2.0 AND MIT", False), ("MIT AND MPL-2.0", True), ("LGPL-3.0-only", True), ("mine", True)],
)
def test_what_is_not_known_to_be_permissive_is_restricted(licence, restricted):
    assert script.restricted(licence) is restricted


def test_requirements_hold_for_the_extras_that_are_asked_for():
    found = package(["numpy", "docs-only; extra == 'docs'", "never; python_version < '3'"])
    assert [r.name for r in script.requirements(found, frozenset())] == ["numpy"]
    assert [r.name for r in script.requirements(found, frozenset({"docs"}))] == ["numpy", "docs-only"]


def test_libraries_of_gcc_in_a_wheel_are_found():
    files = ["x.libs/libgfortran-040039e1.so.5.0.0", "torch/lib/libgomp.so.1", "x/libgompette.py", "x/libz-1.so.1"]
    assert script.gcc_libraries(package(files=files)) == ["libgfortran", "libgomp"]
