"""Functions given tensors of all kinds.

Every public function is called with valid arguments of random sizes, then with one argument changed: other strides and
expanded tensors, other types, other shapes (0 and 1 among them), numbers that are none or extreme, no tensors at all,
numbers and options out of range. What comes out must agree with a reference (loops, closed forms, real matrices,
autograd or the readable version), or be refused with an error that says what is wrong; never a bare error of torch, a
crash, or a wrong result. What the function does and the reference cannot (as a step back in time) counts as not judged.
"""

import importlib
import inspect
import random
import warnings

import pytest
import torch
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from reliability.dynamics_cases import CASES_OF_DYNAMICS
from reliability.echo_cases import CASES_OF_ECHOES
from reliability.fuzzing import KINDS, difference, finite, largest, mutated, tolerance, widened
from reliability.inference_cases import CASES_OF_INFERENCE
from reliability.quaternion_cases import CASES as CASES_OF_QUATERNIONS
from reliability.quaternion_layer_cases import CASES_OF_LAYERS
from reliability.refusals import outcome
from reliability.spike_cases import CASES_OF_SPIKES

pytestmark = pytest.mark.reliability

CASES = {
    "dynamics": CASES_OF_DYNAMICS,
    "hamiltonian": CASES_OF_ECHOES,
    "network_inference": CASES_OF_INFERENCE,
    "quaternion": CASES_OF_QUATERNIONS | CASES_OF_LAYERS,
    "spiking": CASES_OF_SPIKES,
}
ALL = [(package, name) for package, cases in CASES.items() for name in cases]


def test_every_public_function_is_tried():
    for package, cases in CASES.items():
        module = importlib.import_module(f"lightning_nobp.functional.{package}")
        functions = {n for n in module.__all__ if inspect.isfunction(getattr(module, n))}
        assert functions == set(cases), package


def judged(case, kind, chance):
    """``'agreed'``, ``'refused'``, ``'not judged'``, or what is wrong."""
    valid = case.make(chance)
    changed = mutated(case, valid, kind, chance)
    found = outcome(lambda: case.call(**changed))
    if found.kind == "ours":
        return "not judged" if kind != "none" else f"{found.result}"
    if found.kind != "works":
        return "refused" if found.kind == "refused" and kind != "none" else f"{found.result}"
    if any(v == "nonsense" and isinstance(valid[n], str) for n, v in changed.items() if isinstance(v, str)):
        return f"took 'nonsense', and gave {found.result}"
    try:
        expected = case.reference(**{n: widened(valid[n], v) for n, v in changed.items()})
    except Exception as error:
        # Beyond what the reference can do, but never with valid arguments.
        return "not judged" if kind not in ("none", "strides") else f"the reference: {error!r}"
    of_finite, scale = finite(changed), largest(changed) if kind in ("values", "number") else 0.0
    return difference(found.result, expected, tolerance(changed), of_finite, scale) or "agreed"


@pytest.mark.parametrize(("package", "name"), ALL)
def test_a_function_agrees_with_its_reference_or_refuses(package, name, count, repetitions):
    case, found = CASES[package][name], {"agreed": 0, "refused": 0, "not judged": 0}

    @seed(0)
    @settings(max_examples=repetitions(75), deadline=None, database=None, phases=[Phase.generate])
    @given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1))
    def try_one(kind, number):
        kind = "none" if kind in case.without else kind
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = judged(case, kind, random.Random(number))
        assert result in found, f"{kind}, {number}: {result}"
        found[result] += 1

    torch.manual_seed(0)
    try_one()
    row = {name.replace(" ", "_"): n for name, n in found.items()}
    count("Functions", function=f"{package}.{name}", tried=sum(found.values()), **row)
