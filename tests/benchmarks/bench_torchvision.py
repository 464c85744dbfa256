"""Training steps of untouched torchvision models under the rules that take them.

    python tests/benchmarks/bench_torchvision.py [--rounds 7] [--batch 32] [--only resnet18 mobilenet_v3_small vit]

Images of 3x32x32, float32, one thread. A step is the gradient of one batch and plain SGD. The variants run in turn;
times are medians of the processor's time. Sparse networks keep random weights, as many in every layer but the first.
"""

from collections.abc import Callable
from functools import partial

import torch
from report import Report, options
from timing import medians
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


def step(rule: ClassificationRule, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    optimizer = torch.optim.SGD(rule.parameters(), lr=1e-3)
    optimizer.zero_grad()
    rule.compute_gradients(batch)
    optimizer.step()


def main() -> None:
    batch_size = {"type": int, "default": 32, "help": "images in a batch"}
    only = {"nargs": "*", "choices": tuple(MODELS), "default": tuple(MODELS), "help": "models to measure"}
    chosen = options(__doc__, rounds=7, batch=batch_size, only=only)
    report = Report(chosen)
    batch = torch.randn(chosen.batch, 3, 32, 32), torch.randint(10, (chosen.batch,))
    for name in chosen.only:
        rules = variants(name)
        times = medians({variant: partial(step, rule, batch) for variant, rule in rules.items()}, chosen.rounds)
        rows = [
            {
                "variant": variant,
                "weights": sum(p.numel() for p in rule.parameters()),
                "ms": times[variant],
                "dense / this": times["dense"] / times[variant],
            }
            for variant, rule in rules.items()
        ]
        report.table(f"Training step of `{name}`, batch {chosen.batch}", rows)


if __name__ == "__main__":
    main()
