"""What ``rule.network.compile()`` does to a training step of each rule.

    python tests/benchmarks/bench_compile.py [--rounds 20] [--only NAME ...]

Networks for 1x28x28 images, batch 128, float32, one thread. A step is ``compute_gradients`` without the optimizer. The
two forms run in turn; times are medians of the processor's time. *Compile* is the wall-clock time of the first two
steps, which includes the compiler's; the *note* says whether training goes through the compiled forward pass at all;
*gradient* is the largest difference of the two gradients, relative to the largest entry.
"""

import copy
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from report import Report, options
from timing import medians

from lightning_nobp import rules
from lightning_nobp.nn import CNN, MLP, LogCoshClassifier

SHAPE = {"num_classes": 10, "input_shape": (1, 28, 28)}
SMALL = partial(MLP, hidden_dims=(128,))
ENTROPY = {"loss": "cross_entropy"}
RULES: dict[str, Callable[[], rules.ClassificationRule]] = {
    "Backprop, explicit": lambda: rules.Backprop(**SHAPE, **ENTROPY),
    "Backprop, autograd": lambda: rules.Backprop(**SHAPE, **ENTROPY, engine="autograd"),
    "Backprop, autograd, CNN": lambda: rules.Backprop(**SHAPE, **ENTROPY, network=CNN, engine="autograd"),
    "SparseProp, explicit": lambda: rules.SparseProp(**SHAPE, **ENTROPY, sparsity=0.95),
    "SparseProp, autograd": lambda: rules.SparseProp(**SHAPE, **ENTROPY, sparsity=0.95, engine="autograd"),
    "QuaternionBackprop, ghr": lambda: rules.QuaternionBackprop(**SHAPE),
    "QuaternionBackprop, autograd": lambda: rules.QuaternionBackprop(**SHAPE, backward_mode="autograd"),
    "MGD, in_place": lambda: rules.MultiplexedGradientDescent(
        **SHAPE, network=SMALL, engine="in_place", num_perturbations=16
    ),
    "MGD, vmap": lambda: rules.MultiplexedGradientDescent(**SHAPE, network=SMALL, engine="vmap", num_perturbations=16),
    "MGD, jvp": lambda: rules.MultiplexedGradientDescent(**SHAPE, network=SMALL, engine="jvp", num_perturbations=16),
    "ForwardForward": lambda: rules.ForwardForward(**SHAPE),
    "SymBa": lambda: rules.SymBa(**SHAPE),
    "SpikeTimingBackprop": lambda: rules.SpikeTimingBackprop(**SHAPE),
    "HamiltonianEcho": lambda: rules.HamiltonianEcho(**SHAPE, network=LogCoshClassifier),
}
CLOSED_FORM = "not used: solved in closed form, there is no step that repeats"
NOT_TIMED = {
    "MGD, per_sample": "not supported: compiled code does not see the hooks that perturb samples",
    "ResidualCompensation": CLOSED_FORM,
    "PCANet": CLOSED_FORM,
    "DynamicalNetworkBackprop": "not used: closed form, or an adjoint of its own",
    "SelfLearningMachine": "not used: the echo runs the simulation itself",
}


def step(rule: rules.ClassificationRule, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    rule.zero_grad()
    rule.compute_gradients(batch)


def gradient(rule: rules.ClassificationRule) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in rule.parameters() if p.grad is not None])


def measure(build: Callable[[], rules.ClassificationRule], rounds: int) -> dict[str, str | float]:
    """A rule's row, but for its name."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    batch = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    eager = build()
    compiled = build()
    compiled.load_state_dict(copy.deepcopy(eager.state_dict()))
    compiled.built_network().compile()
    seconds = time.perf_counter()
    for rule in (eager, compiled):
        torch.manual_seed(1)
        step(rule, batch)
        if rule is eager:
            seconds = time.perf_counter()
    first, second = gradient(eager), gradient(compiled)
    step(compiled, batch)
    seconds = time.perf_counter() - seconds
    difference = float((first - second).abs().max() / first.abs().max())
    if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        return {"gradient": difference, "note": "not used: training calls no compiled forward pass"}
    times = medians({"eager": partial(step, eager, batch), "compiled": partial(step, compiled, batch)}, rounds)
    return {
        "eager, ms": times["eager"],
        "compiled, ms": times["compiled"],
        "eager / compiled": times["eager"] / times["compiled"],
        "compile, s": seconds,
        "gradient": difference,
        "note": "used",
    }


def row(name: str, rounds: int) -> dict[str, str | float]:
    """What is found of a rule, or why nothing is."""
    if name in NOT_TIMED:
        return {"note": NOT_TIMED[name]}
    try:
        return measure(RULES[name], rounds)
    except Exception as error:  # whatever the compiler makes of it
        return {"note": f"not supported: {type(error).__name__}: {str(error).splitlines()[0][:80]}"}


def main() -> None:
    names = (*RULES, *NOT_TIMED)
    chosen = options(__doc__, rounds=20, only={"nargs": "*", "choices": names, "default": names, "help": "of the rows"})
    warnings.filterwarnings("ignore")
    rows = [{"rule": name} | row(name, chosen.rounds) for name in chosen.only]
    Report(chosen).table("Gradient of one batch of 128", rows)


if __name__ == "__main__":
    main()
