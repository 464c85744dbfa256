"""Time of a Forward-Forward step and of a prediction, beside the ways in which others write them.

    python tests/benchmarks/bench_forward_forward.py [--rounds 40] [--threads 1]

All variants train the same network on the same batch, run interleaved in one process, and include the optimizer's step;
times are medians. *Public style* is what the widespread scripts do: two forward passes a layer, a backward pass and an
Adam of its own for each layer, and the activity computed again with the new weights for the next. *Autograd* is the
same by the book: positives and negatives as one batch, one backward pass through layers that are cut apart, one fused
Adam.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.forward_forward import overlay_label, sample_wrong_labels, symba_loss
from lightning_nobp.nn import MLP, ForwardForwardMLP
from lightning_nobp.rules import Backprop, SymBa

Step = Callable[[Tensor, Tensor], object]
AMPLITUDE = 14.0


def normalised(h: Tensor) -> Tensor:
    return h / (h.norm(dim=1, keepdim=True) / h.shape[1] ** 0.5 + 1e-6)


def linear_layers(hidden_dims: tuple[int, ...]) -> list[nn.Linear]:
    return [nn.Linear(a, b) for a, b in zip((784, *hidden_dims), hidden_dims, strict=False)]


def public_style(hidden_dims: tuple[int, ...]) -> Step:
    layers = linear_layers(hidden_dims)
    optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-3, foreach=False) for layer in layers]

    def step(x: Tensor, y: Tensor) -> None:
        positive = overlay_label(x, y, 10, AMPLITUDE)
        negative = overlay_label(x, sample_wrong_labels(y, 10), 10, AMPLITUDE)
        for layer, optimizer in zip(layers, optimizers, strict=True):
            g_pos, g_neg = (layer(normalised(u)).relu().square().mean(1) for u in (positive, negative))
            optimizer.zero_grad()
            symba_loss(g_pos, g_neg, 10.0).backward()
            optimizer.step()
            positive, negative = (layer(normalised(u)).relu().detach() for u in (positive, negative))

    return step


def by_autograd(hidden_dims: tuple[int, ...]) -> Step:
    layers = linear_layers(hidden_dims)
    optimizer = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=1e-3, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        h = torch.cat([overlay_label(x, t, 10, AMPLITUDE) for t in (y, sample_wrong_labels(y, 10))])
        losses = []
        for layer in layers:
            h = layer(F.rms_norm(h.detach(), h.shape[1:])).relu()
            losses.append(symba_loss(*h.square().mean(1).chunk(2), alpha=10.0))
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    return step


def by_rule(rule: SymBa | Backprop) -> Step:
    optimizer = torch.optim.Adam(rule.parameters(), lr=1e-3, fused=True)

    def step(x: Tensor, y: Tensor) -> None:
        optimizer.zero_grad()
        rule.compute_gradients((x, y))
        optimizer.step()

    return step


def symba(hidden_dims: tuple[int, ...], **kwargs: object) -> SymBa:
    return SymBa(hidden_dims=hidden_dims, input_dim=784, num_classes=10, **kwargs)


def one_label_after_another(network: ForwardForwardMLP) -> Step:
    def predict(x: Tensor, y: Tensor) -> Tensor:
        scores = []
        for label in range(10):
            activities = network.activities(x, torch.full_like(y, label))
            scores.append(sum(h.square().mean(1) for h in activities))
        return torch.stack(scores, 1).argmax(1)

    return predict


def all_labels_as_a_batch(network: ForwardForwardMLP) -> Step:
    def predict(x: Tensor, y: Tensor) -> Tensor:
        activities = network.activities(x.repeat(10, 1), torch.arange(10).repeat_interleave(len(x)))
        return sum(h.square().mean(1) for h in activities).view(10, -1).argmax(0)

    return predict


def milliseconds(variants: dict[str, Step], batch: tuple[Tensor, Tensor], rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds + 3):
        for name, call in variants.items():
            start = time.perf_counter()
            call(*batch)
            if number >= 3:
                times[name].append(time.perf_counter() - start)
    return {name: 1e3 * statistics.median(each) for name, each in times.items()}


def show(title: str, medians: dict[str, float], references: list[str]) -> None:
    table = Table(title=title)
    table.add_column("variant")
    table.add_column("ms", justify="right")
    for reference in references:
        table.add_column(f"{reference} / this", justify="right")
    for name, value in medians.items():
        table.add_row(name, f"{value:.2f}", *(f"{medians[r] / value:.2f}" for r in references))
    Console(width=140).print(table)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    for hidden_dims, rounds in (((500, 500), options.rounds), ((2000, 2000, 2000), max(5, options.rounds // 4))):
        batch = (torch.randn(250, 784), torch.randint(10, (250,)))
        size = "-".join(map(str, (784, *hidden_dims)))
        steps = {
            "public style": public_style(hidden_dims),
            "autograd": by_autograd(hidden_dims),
            "SymBa, random negatives": by_rule(symba(hidden_dims, negatives="random")),
            "SymBa, hard negatives": by_rule(symba(hidden_dims)),
            "SymBa, hard negatives of all layers": by_rule(symba(hidden_dims, hard_scope="all")),
            "backprop of the same widths": by_rule(
                Backprop(network=MLP((784,), 10, hidden_dims), num_classes=10, input_shape=(784,), loss="cross_entropy")
            ),
        }
        title = f"One step of {size}, batch 250, {options.threads} thread(s), float32"
        show(title, milliseconds(steps, batch, rounds), ["public style", "autograd"])
        rule = symba(hidden_dims)
        pruned = symba(hidden_dims, predict_top_k=3)
        pruned.load_state_dict(rule.state_dict())
        predictions = {
            "one label after another": one_label_after_another(rule.network),
            "all labels as one batch": all_labels_as_a_batch(rule.network),
            "SymBa": lambda x, y, rule=rule: rule(x).argmax(1),
            "SymBa, predict_top_k=3": lambda x, y, pruned=pruned: pruned(x).argmax(1),
        }
        with torch.no_grad():
            medians = milliseconds(predictions, batch, rounds)
        show(f"Prediction of 250 samples, {size}", medians, ["one label after another"])


if __name__ == "__main__":
    main()
