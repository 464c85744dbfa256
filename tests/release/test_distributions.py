"""What is in the sdist and in the wheel: everything that is meant for others, and nothing else."""

import configparser
import email
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

import pytest

import lightning_nobp

ROOT = Path(__file__).parents[2]
VERSION = lightning_nobp.__version__
NAME = f"lightning_nobp-{VERSION}"
SHIPPED = {".py", ".yaml", ".json", ".typed"}
TEMPLATE = PurePosixPath("lightning_nobp/cli/template")


def sources(folder):
    """The files of a folder of the checkout, without what was compiled or cached beside them."""
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path for path in map(PurePosixPath, files) if "__pycache__" not in path.parts and path.suffix != ".so"}


@pytest.fixture(scope="module")
def wheel(distributions):
    """Texts of the wheel's files by their names."""
    with zipfile.ZipFile(distributions[1]) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(wheel):
    return email.message_from_string(wheel[f"{NAME}.dist-info/METADATA"])


def test_the_sdist_holds_the_package_the_recipes_and_what_builds_them(distributions):
    with tarfile.open(distributions[0]) as archive:
        names = {PurePosixPath(member.name).relative_to(NAME) for member in archive if member.isfile()}
    own = {name for name in names if name.parts[0] != "lightning_nobp.egg-info"}
    built = {"LICENSE", "MANIFEST.in", "PKG-INFO", "README.md", "pyproject.toml", "setup.cfg", "setup.py"}
    assert own == sources("lightning_nobp") | sources("recipes") | set(map(PurePosixPath, built))


def test_the_wheel_holds_python_recipes_results_and_the_template(wheel):
    package = {p for p in sources("lightning_nobp") if p.suffix in SHIPPED or TEMPLATE in p.parents}
    recipes = {PurePosixPath("lightning_nobp") / p for p in sources("recipes")}
    about = {"METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "top_level.txt"}
    expected = package | recipes | {PurePosixPath(f"{NAME}.dist-info") / name for name in about}
    assert set(map(PurePosixPath, wheel)) == expected
    assert {"lightning_nobp/py.typed", "lightning_nobp/recipes/measured.json"} <= set(wheel)


def test_one_wheel_serves_every_python(distributions, wheel):
    assert distributions[1].name.startswith(f"{NAME}-py3-none-")
    about = email.message_from_string(wheel[f"{NAME}.dist-info/WHEEL"])
    assert about["Root-Is-Purelib"] == "false"
    assert about["Tag"].startswith("py3-none-")


def test_the_wheel_brings_the_command(wheel):
    scripts = configparser.ConfigParser()
    scripts.read_string(wheel[f"{NAME}.dist-info/entry_points.txt"])
    assert dict(scripts["console_scripts"]) == {"nobp": "lightning_nobp.cli:main"}


def test_metadata_names_the_licence_once_as_an_expression(metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata.get_all("License-File") == ["LICENSE"]
    assert not [c for c in metadata.get_all("Classifier") if c.startswith("License ::")]


def test_metadata_describes_the_package(metadata):
    assert (metadata["Name"], metadata["Version"]) == ("lightning-nobp", VERSION)
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()
    groups = {c.partition(" ::")[0] for c in metadata.get_all("Classifier")}
    assert {"Development Status", "Intended Audience", "Operating System", "Programming Language", "Topic"} <= groups
    assert metadata["Keywords"].count(",") >= 3
