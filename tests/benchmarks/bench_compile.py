"""What ``rule.network.compile()`` does to a training step of each rule.

    python tests/benchmarks/bench_compile.py [--rounds 20] [--only NAME ...]

Networks for 1x28x28 images, batch 128, float32, one thread. A step is ``compute_gradients`` without the optimizer. The
two forms run in turn; times are medians of the processor's time. *Compile* is the wall-clock time of the first two
steps, which includes the compiler's; *used* says whether training goes through the compiled forward pass at all;
*gradient* is the largest difference of the two gradients, relative to the largest entry.
"""

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table

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


def step(rule: rules.ClassificationRule, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Milliseconds of one gradient."""
    rule.zero_grad()
    start = time.thread_time()
    rule.compute_gradients(batch)
    return 1e3 * (time.thread_time() - start)


def gradient(rule: rules.ClassificationRule) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in rule.parameters() if p.grad is not None])


def measure(build: Callable[[], rules.ClassificationRule], rounds: int) -> list[str]:
    """Cells of a rule's row."""
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
    difference = f"{float((first - second).abs().max() / first.abs().max()):.0e}"
    if not torch._dynamo.utils.counters["stats"]["unique_graphs"]:
        return ["", "", "", "", difference, "not used: training calls no compiled forward pass"]
    times = [(step(eager, batch), step(compiled, batch)) for _ in range(rounds)]
    before, after = (statistics.median(column) for column in zip(*times, strict=True))
    return [f"{before:.2f}", f"{after:.2f}", f"{before / after:.2f}", f"{seconds:.0f}", difference, "used"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--only", nargs="*", choices=(*RULES, *NOT_TIMED), default=(*RULES, *NOT_TIMED))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    table = Table(title="Gradient of one batch of 128, 1 thread, float32")
    for column in ("rule", "eager ms", "compiled ms", "ratio", "compile s", "gradient", ""):
        table.add_column(column, justify="left" if column in ("rule", "") else "right")
    for name in options.only:
        if name in NOT_TIMED:
            table.add_row(name, *[""] * 5, NOT_TIMED[name])
            continue
        try:
            row = measure(RULES[name], options.rounds)
        except Exception as error:  # whatever the compiler makes of it
            row = [*[""] * 5, f"not supported: {type(error).__name__}: {str(error).splitlines()[0][:80]}"]
        table.add_row(name, *row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
