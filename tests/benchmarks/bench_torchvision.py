"""Training steps of untouched torchvision models under the rules that take them.

    python tests/benchmarks/bench_torchvision.py [--rounds 7] [--batch 32] [--only resnet18 mobilenet_v3_small vit]

Images of 3x32x32, float32, one thread. A step is the gradient of one batch and plain SGD. The variants run in turn;
times are medians of the processor's time. Sparse networks keep random weights, as many in every layer but the first.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision import models

from lightning_nobp.nn import sparsify, to_quaternion
from lightning_nobp.rules import (
    Backprop,
    ClassificationRule,
    MultiplexedGradientDescent,
    QuaternionBackprop,
    SparseProp,
)

SIZES = {"num_layers": 6, "num_heads": 4, "hidden_dim": 256, "mlp_dim": 1024}
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": models.resnet18,
    "mobilenet_v3_small": partial(models.mobilenet_v3_small, dropout=0.0),
    "vit": partial(models.VisionTransformer, image_size=32, patch_size=4, **SIZES),
}
FIRST = {"resnet18": "conv1", "mobilenet_v3_small": "features.0.0", "vit": "conv_proj"}


def variants(name: str) -> dict[str, ClassificationRule]:
    """Rules with the model, by what they are called in the table."""
    make, options = partial(MODELS[name], num_classes=10), {"num_classes": 10, "loss": "cross_entropy"}
    found: dict[str, ClassificationRule] = {"dense": Backprop(network=make(), engine="autograd", **options)}
    for sparsity in (0.9, 0.95, 0.98):
        network = sparsify(make(), sparsity, method="random", exclude=[FIRST[name]], rescale=True)
        found[f"{sparsity:.0%} sparse"] = SparseProp(network=network, **options)
    found["quaternion"] = QuaternionBackprop(network=to_quaternion(make()), backward_mode="autograd", **options)
    found["MGD, 1 perturbation"] = MultiplexedGradientDescent(network=make().eval(), engine="in_place", **options)
    return found


def step(rule: ClassificationRule, batch: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Milliseconds of a step."""
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-3)
    start = time.thread_time()
    optimizer.zero_grad()
    rule.compute_gradients(batch)
    optimizer.step()
    return 1e3 * (time.thread_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", nargs="*", choices=tuple(MODELS), default=tuple(MODELS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    batch = torch.randn(options.batch, 3, 32, 32), torch.randint(10, (options.batch,))
    table = Table(title=f"Training step, batch {options.batch} of 3x32x32, 1 thread, float32")
    for column in ("model", "variant", "parameters", "ms", "dense : this"):
        table.add_column(column, justify="left" if column in ("model", "variant") else "right")
    for name in options.only:
        rules = variants(name)
        # The first round pays for memory, and for choosing engines and algorithms.
        times = [{v: step(rule, batch) for v, rule in rules.items()} for _ in range(options.rounds + 1)][1:]
        medians = {v: statistics.median(row[v] for row in times) for v in rules}
        for variant, rule in rules.items():
            size = sum(p.numel() for p in rule.parameters())
            ratio = medians["dense"] / medians[variant]
            table.add_row(name, variant, f"{size:,}", f"{medians[variant]:.1f}", f"{ratio:.2f}")
        table.add_section()
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
