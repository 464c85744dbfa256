"""Forward-Forward and SymBa beside the ways in which others write them.

    python tests/benchmarks/bench_forward_forward.py [--rounds 9] [--threads 1]

A step is of the same network on the same batch, with the optimizer's part. *Public style* is what the widespread
scripts do: two forward passes a layer, a backward pass and an Adam of its own for each layer, and the activity once
more with the new weights. *Autograd* is the same by the book: positives and negatives as one batch, one backward pass
through layers that are cut apart, one fused Adam. Both draw random negatives; the row with random negatives does the
same work.

What is saved is the first layer's: one product for both labels, and for its gradient too. In wide networks, whose upper
layers dominate, that is little; pruned candidates help their predictions. Hard negatives by the first layer's goodness
cost a part of a step, by all layers' two to three steps.
"""

from collections.abc import Callable

import torch
from report import Plot, Report, options
from timing import medians
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.forward_forward import overlay_label, sample_wrong_labels, symba_loss
from lightning_nobp.nn import MLP, ForwardForwardMLP
from lightning_nobp.rules import Backprop, ForwardForward, SymBa

Step = Callable[[Tensor, Tensor], object]
AMPLITUDE = 14.0
DEPTHS = (1, 2, 4, 8, 16)


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


def timed(variants: dict[str, Step], batch: tuple[Tensor, Tensor], rounds: int) -> dict[str, float]:
    return medians({name: lambda step=step: step(*batch) for name, step in variants.items()}, rounds, warm_up=2)


def compared(found: dict[str, float], references: list[str]) -> list[dict]:
    return [
        {"variant": name, "ms": value, **{f"{r} / this": found[r] / value for r in references}}
        for name, value in found.items()
    ]


def backprop(hidden_dims: tuple[int, ...]) -> Step:
    network = MLP((784,), 10, hidden_dims)
    return by_rule(Backprop(network=network, num_classes=10, input_shape=(784,), loss="cross_entropy"))


def training_steps(hidden_dims: tuple[int, ...]) -> dict[str, Step]:
    return {
        "public style": public_style(hidden_dims),
        "autograd": by_autograd(hidden_dims),
        "SymBa, random negatives": by_rule(symba(hidden_dims, negatives="random")),
        "SymBa, hard negatives": by_rule(symba(hidden_dims)),
        "SymBa, hard negatives of all layers": by_rule(symba(hidden_dims, hard_scope="all")),
        "backprop of the same widths": backprop(hidden_dims),
    }


def predictions(hidden_dims: tuple[int, ...]) -> dict[str, Step]:
    rule = symba(hidden_dims)
    pruned = symba(hidden_dims, predict_top_k=3)
    pruned.load_state_dict(rule.state_dict())
    return {
        "one label after another": one_label_after_another(rule.network),
        "all labels as one batch": all_labels_as_a_batch(rule.network),
        "SymBa": lambda x, y: rule(x).argmax(1),
        "SymBa, predict_top_k=3": lambda x, y: pruned(x).argmax(1),
    }


def depths(batch: tuple[Tensor, Tensor], rounds: int) -> list[dict]:
    rows = []
    for depth in DEPTHS:
        hidden_dims = (500,) * depth
        steps = {
            "public style": public_style(hidden_dims),
            "autograd": by_autograd(hidden_dims),
            "Forward-Forward": by_rule(ForwardForward(hidden_dims=hidden_dims, input_dim=784, num_classes=10)),
            "SymBa": by_rule(symba(hidden_dims)),
            "backprop": backprop(hidden_dims),
        }
        rows.append({"layers": depth, **timed(steps, batch, rounds)})
    return rows


def main() -> None:
    choices = options(__doc__, rounds=9)
    report = Report(choices)
    batch = (torch.randn(250, 784), torch.randint(10, (250,)))
    for hidden_dims, rounds in (((500, 500), choices.rounds), ((2000, 2000, 2000), max(2, choices.rounds // 3))):
        size = "-".join(map(str, (784, *hidden_dims)))
        found = timed(training_steps(hidden_dims), batch, rounds)
        report.table(f"One step of {size}, batch 250", compared(found, ["public style", "autograd"]))
        with torch.no_grad():
            found = timed(predictions(hidden_dims), batch, rounds)
        report.table(f"Prediction of 250 samples, {size}", compared(found, ["one label after another"]))
    lines = ("public style", "autograd", "Forward-Forward", "SymBa", "backprop")
    title = "One step against the number of layers of 500 units, batch 250, ms"
    report.table(title, depths(batch, choices.rounds), Plot(lines, "layers of 500 units", "a step, ms"))


if __name__ == "__main__":
    main()
