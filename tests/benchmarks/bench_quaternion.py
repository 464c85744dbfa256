"""Quaternion layers beside the real layer of the same width and the usual way.

    python tests/benchmarks/bench_quaternion.py [--rounds 5]

Forward and backward by autograd, float32. *Real* is torch's layer of the same width, with four times as many weights;
*concatenated* is how public quaternion layers do it: the block matrix by `torch.cat`, one real product, autograd for
the rest. *block* and *fast8* are the two algorithms of this package.

`fast8` takes half the multiplications and some passes over memory, which pay off from 64 quaternions on with 256
samples, from 128 with 32, and in wider layers always, since writing the block alone takes long there;
`algorithm="auto"` chooses by that. These layers live by what is in the cache, and ratios move between machines.
"""

from collections.abc import Callable

import torch
from report import Plot, Report, options
from timing import Run, medians
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion import hamilton_block
from lightning_nobp.nn import QuaternionConv2d, QuaternionLinear

CONV = ((16, 32, 16), (32, 32, 16), (64, 32, 16), (128, 16, 8))
"""Quaternion channels, batch, height and width."""
BATCHES = (128, 1024)
WIDTHS = (16, 32, 64, 128, 256, 512)


def there_and_back(run: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor, grad: Tensor) -> Run:
    return lambda: torch.autograd.grad(run(x), [x, *parameters], grad)


def linear_runs(width: int, batch: int) -> dict[str, Run]:
    x, grad = torch.randn(batch, 4 * width, requires_grad=True), torch.randn(batch, 4 * width)
    real = nn.Linear(4 * width, 4 * width)
    layers = {a: QuaternionLinear(4 * width, 4 * width, algorithm=a) for a in ("block", "fast8")}
    weight, bias = layers["block"].weight, layers["block"].bias
    assert bias is not None
    runs = {
        "real": there_and_back(real, list(real.parameters()), x, grad),
        "concatenated": there_and_back(lambda x: F.linear(x, hamilton_block(weight), bias), [weight, bias], x, grad),
    }
    return runs | {a: there_and_back(layer, list(layer.parameters()), x, grad) for a, layer in layers.items()}


def conv_runs(width: int, batch: int, size: int) -> dict[str, Run]:
    x = torch.randn(batch, 4 * width, size, size, requires_grad=True)
    grad = torch.randn(batch, 4 * width, size, size)
    real = nn.Conv2d(4 * width, 4 * width, 3, padding=1)
    layers = {a: QuaternionConv2d(4 * width, 4 * width, 3, padding=1, algorithm=a) for a in ("block", "fast8")}
    weight, bias = layers["block"].weight, layers["block"].bias
    assert bias is not None
    runs = {
        "real": there_and_back(real, list(real.parameters()), x, grad),
        "concatenated": there_and_back(
            lambda x: F.conv2d(x, hamilton_block(weight), bias, padding=1), [weight, bias], x, grad
        ),
    }
    return runs | {a: there_and_back(layer, list(layer.parameters()), x, grad) for a, layer in layers.items()}


def compared(about: dict, found: dict[str, float]) -> dict:
    return {
        **about,
        **found,
        **{f"{other} / fast8": found[other] / found["fast8"] for other in ("concatenated", "real")},
    }


def main() -> None:
    choices = options(__doc__, rounds=5)
    report = Report(choices)
    lines = ("real", "concatenated", "block", "fast8")
    for batch in BATCHES:
        plot = Plot(lines, f"quaternions in and out, batch {batch}", "forward and backward, ms")
        rows = [compared({"quaternions": n}, medians(linear_runs(n, batch), choices.rounds)) for n in WIDTHS]
        report.table(f"Linear layers, batch {batch}, ms", rows, plot)
    rows = [
        compared({"quaternions": n, "map": f"{s}x{s}", "batch": b}, medians(conv_runs(n, b, s), choices.rounds))
        for n, b, s in CONV
    ]
    report.table("3x3 convolutions, ms", rows)


if __name__ == "__main__":
    main()
