"""Rules whose network is compiled in place: where training goes through it, and that it changes nothing."""

import copy
from functools import partial

import pytest
import torch

from lightning_nobp.nn import MLP, LogCoshClassifier
from lightning_nobp.rules import (
    Backprop,
    ForwardForward,
    HamiltonianEcho,
    MultiplexedGradientDescent,
    QuaternionBackprop,
    SparseProp,
    SpikeTimingBackprop,
    SymBa,
)

SHAPE = {"num_classes": 4, "input_shape": (1, 6, 6)}
SMALL = {**SHAPE, "network": partial(MLP, hidden_dims=(8,))}
MGD = partial(MultiplexedGradientDescent, **SMALL, num_perturbations=3)
USED = {
    "backprop": partial(Backprop, **SMALL, engine="autograd"),
    "cnn": partial(Backprop, **SHAPE, network="cnn", engine="autograd"),
    "sparse": partial(SparseProp, **SMALL, sparsity=0.5, engine="autograd"),
    "quaternions": partial(QuaternionBackprop, **SHAPE, backward_mode="autograd"),
    "perturbed, in place": partial(MGD, engine="in_place"),
    "echo": partial(HamiltonianEcho, **SHAPE, network=partial(LogCoshClassifier, n_steps=5)),
}
UNUSED = {
    "backprop": partial(Backprop, **SMALL),
    "sparse": partial(SparseProp, **SMALL, sparsity=0.5),
    "quaternions": partial(QuaternionBackprop, **SHAPE),
    "perturbed, jvp": partial(MGD, engine="jvp"),
    "forward-forward": partial(ForwardForward, **SHAPE),
    "symba": partial(SymBa, **SHAPE),
    "spikes": partial(SpikeTimingBackprop, **SHAPE),
}


@pytest.fixture(autouse=True)
def _a_compiler_without_memory():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def gradients(rule, steps=2):
    """Of several steps, joined; the same random numbers at every call."""
    torch.manual_seed(1)
    batch = torch.rand(5, 1, 6, 6, dtype=next(rule.parameters()).dtype), torch.tensor([0, 1, 2, 3, 0])
    found = []
    for _ in range(steps):
        rule.zero_grad()
        rule.compute_gradients(batch)
        found += [p.grad.flatten() for p in rule.parameters() if p.grad is not None]
    return torch.cat(found)


def graphs(make):
    """Both gradients, and how many graphs the compiler made."""
    torch.manual_seed(0)
    eager, compiled = make().double(), make().double()
    compiled.load_state_dict(copy.deepcopy(eager.state_dict()))
    # Torch's own tracer without the C++ compiler behind it, which not every machine has.
    compiled.built_network().compile(backend="eager")
    torch.testing.assert_close(gradients(compiled), gradients(eager), atol=1e-10, rtol=1e-6)
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("make", USED.values(), ids=USED)
def test_training_goes_through_the_compiled_network_and_finds_the_same_gradient(make):
    assert graphs(make) > 0


@pytest.mark.parametrize("make", UNUSED.values(), ids=UNUSED)
def test_training_that_goes_through_the_layers_itself_does_not_notice(make):
    assert graphs(make) == 0


@pytest.mark.parametrize("engine", ["vmap", "auto"])
def test_batched_perturbations_find_the_same_gradient_whether_the_compiler_takes_part_or_not(engine):
    assert graphs(partial(MGD, engine=engine)) <= 1


@pytest.mark.parametrize("options", [{"engine": "per_sample"}, {"perturb": "activations"}])
def test_perturbations_of_single_samples_are_refused(options):
    rule = MGD(**options)
    rule.network.compile(backend="eager")
    with pytest.raises(TypeError, match=r"does not see the hooks that perturb single samples.*engine='vmap'"):
        gradients(rule)
