"""Constructors given nonsense.

Every argument of every public constructor (rules, networks and layers, data modules, callbacks, metrics) is given
values of the wrong type, out of range and far too large, one argument at a time and then in random pairs. What comes
out must be an object that can be used, or an error that names the argument; never a failure somewhere inside torch, and
no endless construction. What no memory is left for (the process may take 512 MB more) counts by itself: torch or numpy
then say how many bytes were wanted. So does what was only built: for other inputs than the one that it is tried on, or
for more time steps than five seconds are enough for.
"""

import functools
import inspect
import random

import pytest
import torch
from reliability.constructors import BASES, RECORDS, VALID, arguments_of, public_classes
from reliability.refusals import Outcome, little_memory, outcome
from torch import nn

pytestmark = [pytest.mark.reliability, pytest.mark.filterwarnings("ignore")]

HOSTILE = {
    **{"a word": "nonsense", "no word": "", "None": None, "a list": [], "a dictionary": {}, "an object": object()},
    **{"True": True, "False": False, "0": 0, "-1": -1, "1": 1, "10**9": 10**9, "10**30": 10**30, "0.5": 0.5},
    **{"1e30": 1e30, "nan": float("nan"), "inf": float("inf"), "-inf": float("-inf"), "-0.5": -0.5},
    **{"[0]": [0], "[-1]": [-1], "[10**9]": [10**9], "['x']": ["x"], "[nan]": [float("nan")], "[None]": [None]},
    **{"many": [2] * 9, "nested": [[1], [2]], "{'x': -1}": {"x": -1}, "a tensor": torch.zeros(2, 3)},
    **{"a function": len, "a class": int, "a module": nn.Identity()},
}


def tried(cls, changes):
    """What becomes of a valid call of ``cls`` with ``changes``, and of a first use of what it built."""
    torch.manual_seed(0)
    valid = VALID[cls]
    arguments = valid.arguments() | changes
    with little_memory():
        built = outcome(functools.partial(cls, **arguments), changes, others=arguments_of(cls))
        if built.kind != "works":
            return built
        said = outcome(lambda: repr(built.result))
        if said.kind != "works" or valid.use is None:
            return said
        x = torch.rand(valid.use)
        used = outcome(lambda: built.result(x), seconds=5)
        # The input that was right before need not fit what was built, nor a billion time steps into five seconds.
        return used if used.kind == "works" or not changes else Outcome("only built", used.result)


def try_all(count, title, cls, many):
    found = {"works": 0, "only built": 0, "refused": 0, "no memory": 0, "fault": 0}
    faults = []
    for changes in many:
        result = tried(cls, changes)
        found[result.kind] += 1
        if result.kind == "fault":
            faults.append(f"{changes}: {result.result}")
    row = {kind.replace(" ", "_").replace("fault", "faults"): n for kind, n in found.items()}
    count(title, constructor=cls.__name__, tried=len(many), **row)
    assert not faults, "\n".join(faults)


def all_classes():
    return [cls for classes in public_classes().values() for cls in classes if cls not in BASES | RECORDS]


def test_every_public_constructor_is_tried():
    assert [c.__name__ for c in all_classes() if c not in VALID and not getattr(c, "_is_protocol", False)] == []
    assert [c.__name__ for c in BASES if c in VALID] == []
    # A base that nobody builds is one that others are derived from.
    assert [c.__name__ for c in BASES if not any(issubclass(k, c) for k in VALID)] == []


@pytest.mark.parametrize("cls", VALID, ids=lambda cls: cls.__name__)
def test_the_valid_call_is_valid(cls):
    assert tried(cls, {}).kind == "works", tried(cls, {}).result


@pytest.mark.parametrize("cls", VALID, ids=lambda cls: cls.__name__)
def test_a_wrong_argument_is_refused_by_name_or_the_object_works(cls, count):
    many = [
        {name: value}
        for name in arguments_of(cls)
        for value in HOSTILE.values()
        # Which devices there are, the machine decides.
        if name != "device" or not isinstance(value, int)
    ]
    try_all(count, "One wrong argument", cls, [*many, {"no_such_argument": 1}])


@pytest.mark.parametrize("cls", VALID, ids=lambda cls: cls.__name__)
def test_two_wrong_arguments_are_refused_by_name_or_the_object_works(cls, count, repetitions):
    names, chance = arguments_of(cls), random.Random(cls.__name__)
    if len(names) < 2:
        assert inspect.isclass(cls)
        return
    pairs = [chance.sample(names, 2) for _ in range(repetitions(20))]
    many = [{name: chance.choice(list(HOSTILE.values())) for name in pair} for pair in pairs]
    try_all(count, "Two wrong arguments", cls, many)
