"""Recipes that are damaged.

Every shipped recipe is damaged at random: a value of another type, a huge number, null, one level deeper, a key that is
missing, unknown or there twice, a file that is cut short, holds tabs or binary garbage, anchors that would unfold to
billions of values, tags that would run code. ``nobp fit --config FILE`` must then either run (recipes on data that need
no files train two batches of each loop; of the others everything is built, and what is missing then are the files), or
say what is wrong in a message that begins with ``nobp:``, and end with status 1 or 2. A traceback, an endless run, or
code that was run is a fault.
"""

import copy
import io
import random
import traceback
from contextlib import chdir, redirect_stderr, redirect_stdout

import pytest
import yaml
from reliability.refusals import little_memory, outcome

from lightning_nobp.cli import main, recipes

pytestmark = [pytest.mark.reliability, pytest.mark.filterwarnings("ignore")]

VALUES = (
    *(None, True, 0, -1, 1, 10**9, 10**30, 0.5, -0.5, 1e30, float("nan"), float("inf")),
    *("", "nonsense", "1e-3", "a.b.C", "torch.nn.Linear", "os.system", [], {}, [1, -1], ["x"], {"x": 1}),
    *({"class_path": "nonsense"}, {"class_path": "torch.nn.Linear", "init_args": {}}, {"init_args": {"lr": 1}}, [[[]]]),
)

BOMB = "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9) if n else 'x'}]\n" for n in range(9))


def places(tree, at=()):
    """Paths of every value."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [found for key, value in items for found in ((*at, key), *places(value, (*at, key)))]


def parent(tree, path):
    for key in path[:-1]:
        tree = tree[key]
    return tree


def of_tree(change):
    """A change of a value at a random place."""

    def damage(text, chance):
        tree = copy.deepcopy(yaml.safe_load(text))
        path = chance.choice(places(tree))
        change(parent(tree, path), path[-1], chance)
        return yaml.safe_dump(tree).encode()

    return damage


def another_value(tree, key, chance):
    tree[key] = chance.choice(VALUES)


def missing(tree, key, chance):
    del tree[key]


def unknown(tree, key, chance):
    if isinstance(tree, dict):
        tree[f"{key}_"] = tree.pop(key) if chance.random() < 0.5 else 1


def deeper(tree, key, chance):
    tree[key] = {key: tree[key]} if chance.random() < 0.5 else [tree[key]]


def of_lines(change):
    """A change of a random line."""

    def damage(text, chance):
        lines = text.splitlines(keepends=True)
        place = chance.randrange(1, len(lines))
        return "".join([*lines[:place], change(lines[place]), *lines[place + 1 :]]).encode()

    return damage


def garbage(text, chance):
    data = bytearray(text.encode())
    for _ in range(chance.randint(1, 20)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data)


def tagged(text, chance):
    """Code in the place of a value, in the forms that unsafe loaders carry out."""
    code = chance.choice(
        (
            "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [RAN]]",
            "!!python/object/new:os.system [touch RAN]",
            "!!python/name:os.system",
            '!!python/object/apply:os.system ["touch RAN"]',
        )
    )
    return of_lines(lambda line: f"{line.partition(':')[0]}: {code}\n")(text, chance)


DAMAGES = {
    "another value": of_tree(another_value),
    "a missing key": of_tree(missing),
    "an unknown key": of_tree(unknown),
    "one level deeper": of_tree(deeper),
    "a key twice": of_lines(lambda line: line + line),
    "cut short": lambda text, chance: text[: chance.randrange(len(text))].encode(),
    "tabs": of_lines(lambda line: "\t" + line.replace(" ", "\t", 2)),
    "wrong indentation": of_lines(lambda line: "   " + line),
    "garbage": garbage,
    "code": tagged,
    "anchors that unfold": lambda text, chance: (
        BOMB + chance.choice(("", "model: *a8\n", "trainer: *a8\n")) + text
    ).encode(),
    "an empty file": lambda text, chance: chance.choice(
        (b"", b"\n\n", b"null", b"[]", b"42", b"- 1", b"a: [", b"\xff\xfe")
    ),
}

NEEDS_NO_FILES = (
    "digits/",
    "xor/",
    "parity/",
    "nist7x7/",
    "yin_yang/",
    "attitude/",
    "wave_field/",
    "lorenz16/",
    "chua16/",
)


def run(file, folder):
    """Status and standard error of ``nobp fit``."""
    options = (
        "--trainer.fast_dev_run=2",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
    )
    out, err = io.StringIO(), io.StringIO()
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            status = main(["fit", "--config", str(file), *options])
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, err.getvalue()


def judged(data, folder):
    """``'ran'``, ``'refused'``, or what is wrong."""
    file = folder / "recipe.yaml"
    file.write_bytes(data)
    with little_memory(2**31):
        found = outcome(lambda: run(file, folder), seconds=60)
    if (folder / "RAN").exists():
        return "code was run"
    if found.kind != "works":
        error = found.result
        shown = "".join(traceback.format_exception(error)[-3:]) if isinstance(error, BaseException) else str(error)
        return f"{found.kind}: {shown}"
    status, said = found.result
    if status == 0:
        return "ran"
    return "refused" if status in (1, 2) and "nobp: " in said and "Traceback" not in said else f"{status}: {said}"


@pytest.fixture
def no_files(tmp_path, monkeypatch):
    """A folder without data, and no way to download any."""
    monkeypatch.setenv("NOBP_DATA", str(tmp_path / "none"))
    monkeypatch.setattr("urllib.request.urlopen", no_network)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    return tmp_path


def no_network(*args, **kwargs):
    raise OSError("no network")


@pytest.mark.timeout(0)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_recipe_runs_or_is_refused_in_a_message(damage, no_files, count, repetitions):
    chance, found, faults = random.Random(damage), {"ran": 0, "refused": 0}, []
    names = recipes.recipe_names()
    small = [name for name in names if name.startswith(NEEDS_NO_FILES)]
    for _ in range(repetitions(12)):
        name = chance.choice(small if chance.random() < 0.5 else names)
        data = DAMAGES[damage](recipes.find(name).read_text(), chance)
        result = judged(data, no_files)
        if result not in found:
            faults.append(f"{name}: {result}\n{data.decode(errors='replace')[:2000]}")
        else:
            found[result] += 1
    count("Damaged recipes", damage=damage, tried=sum(found.values()) + len(faults), **found, faults=len(faults))
    assert not faults, "\n\n".join(faults)
