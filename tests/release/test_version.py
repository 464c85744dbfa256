"""The version stands in lightning_nobp/__init__.py; whatever else must name it agrees."""

import re
import runpy
import tomllib
from pathlib import Path

import pytest
import yaml

import lightning_nobp
from lightning_nobp.cli import main

ROOT = Path(__file__).parents[2]
VERSION = lightning_nobp.__version__
RELEASES = re.findall(r"^## (\S+) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
CITATION = yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_the_version_is_one_that_semantic_versioning_knows():
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", VERSION)


def test_the_command_says_it(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split()[-1] == VERSION


def test_the_changelog_begins_with_it_and_goes_back_in_time():
    versions, dates = zip(*RELEASES, strict=True)
    assert versions[0] == VERSION
    assert len(set(versions)) == len(versions)
    released = [date for date in dates if date != "unreleased"]
    assert released == list(dates[len(dates) - len(released) :])
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in released)
    assert released == sorted(released, reverse=True)


def test_the_citation_names_it_and_the_day_of_its_release():
    date = RELEASES[0][1]
    assert CITATION["version"] == VERSION
    assert str(CITATION.get("date-released", "unreleased")) == date


@pytest.mark.filterwarnings("ignore")
def test_the_site_names_it():
    conf = runpy.run_path(str(ROOT / "docs" / "conf.py"))
    assert conf["version"] == conf["release"] == VERSION


def test_the_metadata_take_it_from_the_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in settings["project"]
    assert settings["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "lightning_nobp.__version__"}
