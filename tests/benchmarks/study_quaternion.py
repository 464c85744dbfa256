"""What quaternion derivatives do that hold and that do not, and what equivariance is worth: the pictures of the docs.

    python tests/benchmarks/study_quaternion.py [--docs docs]

With ``--docs`` writes ``quaternion_rules.png``, the loss of a network of 3-8-6-2 quaternions under every backward mode,
at three learning rates, and ``quaternion_attitude.png``, from what ``nobp compare --record`` noted of ``attitude/*``.
"""

import argparse
import json
import math
from pathlib import Path
from typing import get_args

import torch
from matplotlib.figure import Figure
from torch import nn

from lightning_nobp.cli import recipes
from lightning_nobp.nn import QuaternionLinear
from lightning_nobp.rules import QuaternionBackprop
from lightning_nobp.rules.quaternion import BackwardMode

RATES = (0.4, 0.04, 0.004)
STEPS = 500
ANGLES = {"angle_known_frames": "frames of training", "angle_any_frame": "any frame"}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [QuaternionLinear(n, m, dtype=torch.float64) for n, m in ((12, 32), (32, 24), (24, 8))]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


def losses(mode: str, rate: float) -> list[float]:
    """The loss at every step; it ends where it is no longer a number."""
    rule = QuaternionBackprop(network=network(), loss="mse", task="regression", backward_mode=mode)
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(64, n, dtype=torch.float64, generator=generator) for n in (12, 8))
    optimizer, found = torch.optim.SGD(rule.parameters(), rate), []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = float(rule.compute_gradients((x, target))["loss"])
        if not math.isfinite(loss):
            break
        found.append(loss)
        optimizer.step()
    return found


def rules_picture() -> Figure:
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    for axis, rate in zip(figure.subplots(1, len(RATES), sharey=True), RATES, strict=True):
        for mode in get_args(BackwardMode):
            found = losses(mode, rate)
            ended = "" if len(found) == STEPS else f", no number after {len(found)} steps"
            print(f"{mode:10} rate {rate}: {found[0]:.3g} to {found[-1]:.3g}{ended}")
            axis.plot(found, "--" if mode == "autograd" else "-", label=mode)
        axis.set_yscale("log")
        axis.set_ylim(0.1, 100)
        axis.set_title(f"learning rate {rate}")
        axis.set_xlabel("steps")
    figure.axes[0].set_ylabel("loss")
    figure.axes[-1].legend()
    return figure


def attitude_picture() -> Figure:
    measured = json.loads((recipes.folder() / "measured.json").read_text())
    found = {name: r for name, r in measured.items() if name.startswith("attitude/")}
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axis = figure.subplots()
    for shift, (key, label) in enumerate(
        (("angle_known_frames", "frames of training"), ("angle_any_frame", "any frame"))
    ):
        values = [r["test_others"][key] for r in found.values()]
        places = [number + 0.4 * (shift - 0.5) for number in range(len(found))]
        spreads = [value["std"] or 0.0 for value in values]
        axis.bar(places, [value["mean"] for value in values], 0.38, yerr=spreads, label=label)
    names = [f"{name.partition('/')[2]}\n{r['parameters']:,} weights" for name, r in found.items()]
    axis.set_xticks(range(len(found)), names)
    axis.set_ylabel("error of the attitude, degrees")
    axis.legend(loc="upper left")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--docs", type=Path, help="folder to draw the pictures into")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pictures = {"quaternion_rules.png": rules_picture(), "quaternion_attitude.png": attitude_picture()}
    for name, figure in pictures.items() if options.docs else ():
        figure.savefig(options.docs / name, dpi=130)


if __name__ == "__main__":
    main()
