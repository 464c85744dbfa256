"""Small trainings of every rule, what may be wrong with their numbers, and what comes of it."""

import math
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer

from lightning_nobp.datamodules import CoupledOscillatorsDataModule
from lightning_nobp.nn import (
    CNN,
    MLP,
    DuffingClassifier,
    ForwardForwardCNN,
    ForwardForwardMLP,
    HashingNetwork,
    LocalDynamics,
    LogCoshClassifier,
    QuaternionCNN,
    QuaternionLinear,
    QuaternionMLP,
    ResCNet,
    SpikingCNN,
    SpikingMLP,
    TwoBeamNetwork,
    TwoFieldNLSE,
)
from lightning_nobp.rules import (
    Backprop,
    DynamicalNetworkBackprop,
    ForwardForward,
    HamiltonianEcho,
    LearningRule,
    MultiplexedGradientDescent,
    PCANet,
    QuaternionBackprop,
    ResidualCompensation,
    SelfLearningMachine,
    SparseProp,
    SpikeTimingBackprop,
    SymBa,
)
from lightning_nobp.rules.faults import learned

REFUSALS = (FloatingPointError, ValueError, TypeError, MisconfigurationException)
BATCH = 8
WRONG = 12
"""The sample with what is wrong: one of the second batch, since the first is looked at more closely."""

Data = tuple[Tensor, ...]


# Data


def images(count: int = 24, classes: int = 3) -> Data:
    """Patterns of three kinds, with values from 0 to 1."""
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(count) % classes
    patterns = torch.rand(classes, 1, 8, 8, generator=generator)
    return 0.7 * patterns[target] + 0.3 * torch.rand(count, 1, 8, 8, generator=generator), target


def numbers(count: int = 24, classes: int = 3) -> Data:
    """Eight numbers of a sample, and the four that they are to become."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, 8, generator=generator)
    return x, torch.tanh(x @ torch.randn(8, 4, generator=generator))


@cache
def _windows() -> Tensor:
    options = {"num_nodes": 4, "density": 0.6, "num_steps": 241, "num_trajectories": 2, "transient": 300}
    data = CoupledOscillatorsDataModule(**options, num_test=2, window=12, horizon=120, batch_size=8, shuffle=False)
    data.setup("fit")
    return torch.cat([batch[0] if isinstance(batch, list | tuple) else batch for batch in data.train_dataloader()])


def windows(count: int = 24, classes: int = 3) -> Data:
    """Series of coupled oscillators."""
    return (_windows()[:count].clone(),)


# Trainings


@dataclass(frozen=True)
class Training:
    """A rule for so many classes, and its data."""

    make: Callable[..., LearningRule]
    data: Callable[..., Data] = images
    closed_form: bool = False

    def rule(self, classes: int = 3, **options: Any) -> LearningRule:
        torch.manual_seed(0)
        if self.data is images:
            options |= {"num_classes": classes, "input_shape": (1, 8, 8)}
        return self.make(**options)

    @property
    def classifies(self) -> bool:
        return self.data is images


def _mgd(**options: Any) -> Training:
    return Training(partial(MultiplexedGradientDescent, network=partial(MLP, hidden_dims=(5,)), **options))


def _regression(rule: Any, make: Callable[[], nn.Module], **options: Any) -> Training:
    return Training(lambda **more: rule(network=make(), task="regression", **options, **more), numbers)


def _dynamical(**options: Any) -> Training:
    shape = {"num_nodes": 4, "components": 3, "dt": 0.02, "num_steps": 6}
    return Training(partial(DynamicalNetworkBackprop, **shape, **options), windows, "method" not in options)


_SMALL = partial(MLP, hidden_dims=(8,))
_NORMED = partial(CNN, channels=(3, 4), hidden_dim=8, batch_norm=True)
TRAININGS = {
    "Backprop": Training(partial(Backprop, network=_SMALL, loss="cross_entropy")),
    "Backprop, mse": Training(partial(Backprop, network=_SMALL, loss="mse")),
    "Backprop, autograd": Training(partial(Backprop, network=_SMALL, loss="cross_entropy", engine="autograd")),
    "Backprop, batch norm": Training(partial(Backprop, network=_NORMED, loss="cross_entropy")),
    "SparseProp": Training(partial(SparseProp, network=_SMALL, loss="cross_entropy", sparsity=0.6)),
    "ForwardForward": Training(partial(ForwardForward, network=partial(ForwardForwardMLP, hidden_dims=(8, 7)))),
    "ForwardForward, cnn": Training(
        partial(ForwardForward, network=partial(ForwardForwardCNN, channels=(3, 4, 5)), readout="softmax")
    ),
    "ForwardForward, hybrid": Training(
        partial(
            ForwardForward,
            network=partial(ForwardForwardMLP, hidden_dims=(8, 7), label="none"),
            negatives="hybrid",
            readout="softmax",
        )
    ),
    "SymBa": Training(partial(SymBa, network=partial(ForwardForwardMLP, hidden_dims=(8, 7)))),
    "MultiplexedGradientDescent": _mgd(num_perturbations=3),
    "MultiplexedGradientDescent, in place": _mgd(engine="in_place"),
    "MultiplexedGradientDescent, per sample": _mgd(engine="per_sample"),
    "MultiplexedGradientDescent, jvp": _mgd(engine="jvp"),
    "MultiplexedGradientDescent, analog": _mgd(mode="analog", tau_x=2, tau_theta=2),
    "MultiplexedGradientDescent, activations": _mgd(perturb="activations"),
    "MultiplexedGradientDescent, regression": _regression(
        MultiplexedGradientDescent, lambda: nn.Linear(8, 4), loss="mse"
    ),
    "QuaternionBackprop": Training(partial(QuaternionBackprop, network=partial(QuaternionMLP, hidden_dims=(8,)))),
    "QuaternionBackprop, cnn": Training(
        partial(QuaternionBackprop, network=partial(QuaternionCNN, channels=(4, 8), norm="whiten"))
    ),
    "QuaternionBackprop, unit_mse": _regression(QuaternionBackprop, lambda: QuaternionLinear(8, 4), loss="unit_mse"),
    "QuaternionBackprop, geodesic": _regression(QuaternionBackprop, lambda: QuaternionLinear(8, 4), loss="geodesic"),
    "SpikeTimingBackprop": Training(
        partial(SpikeTimingBackprop, network=partial(SpikingMLP, hidden_dims=(10,), tau_v=1.0, tau_i=0.5))
    ),
    "SpikeTimingBackprop, cnn": Training(
        partial(SpikeTimingBackprop, network=partial(SpikingCNN, channels=(3,), kernel_size=3), loss="mse")
    ),
    "HamiltonianEcho": Training(partial(HamiltonianEcho, network=partial(DuffingClassifier, hidden_units=4))),
    "HamiltonianEcho, log cosh": Training(
        partial(HamiltonianEcho, network=partial(LogCoshClassifier, n_units=12, hidden_features=8), loss="mse")
    ),
    "SelfLearningMachine": Training(
        partial(
            SelfLearningMachine,
            network=partial(TwoBeamNetwork, system=TwoFieldNLSE((6, 6)), n_steps=5),
            loss="cross_entropy",
        )
    ),
    "ResidualCompensation": Training(
        partial(ResidualCompensation, network=partial(ResCNet, depth=2, channels=5, first_kernel_size=3)),
        closed_form=True,
    ),
    "ResidualCompensation, second order": Training(
        partial(
            ResidualCompensation,
            network=partial(ResCNet, depth=2, channels=4, pooling={"second_order": 2, "crelu_mean": 2}),
        ),
        closed_form=True,
    ),
    "PCANet": Training(
        partial(PCANet, network=partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4)), closed_form=True
    ),
    "PCANet, ridge": Training(
        partial(
            PCANet,
            network=partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4, sketch_dim=20),
            classifier="ridge",
        ),
        closed_form=True,
    ),
    "DynamicalNetworkBackprop": _dynamical(),
    "DynamicalNetworkBackprop, alternation": _dynamical(
        method="alternation", local=partial(LocalDynamics, hidden_dims=(8,)), initial_epochs=1
    ),
}
"""Of every rule, by its name and what is special."""


# What may be wrong


@dataclass(frozen=True)
class Hazard:
    """What is done to data, to a rule before it is trained, or to a step."""

    spoil: Callable[[Data], Data] = lambda data: data
    options: dict[str, Any] | None = None
    of_step: Callable[[LearningRule, dict[str, Tensor]], dict[str, Tensor]] | None = None
    applies: Callable[[Training], bool] = lambda training: True
    batch_size: int = BATCH
    classes: int = 3
    precision: str = "32-true"
    everywhere: bool = False
    """Whether the data of the validation are so too."""

    def loader(self, training: Training, spoilt: bool = True) -> DataLoader[Any]:
        data = training.data(classes=self.classes)
        return DataLoader(TensorDataset(*(self.spoil(data) if spoilt else data)), self.batch_size if spoilt else BATCH)


def _put(part: int, value: float) -> Callable[[Data], Data]:
    def spoil(data: Data) -> Data:
        # The last: some networks write labels over the first.
        data[part][WRONG].view(-1)[-1] = value
        return data

    return spoil


def _label(value: int) -> Callable[[Data], Data]:
    def spoil(data: Data) -> Data:
        data[1][WRONG] = value
        return data

    return spoil


def _inputs(change: Callable[[Tensor], Tensor]) -> Callable[[Data], Data]:
    return lambda data: (change(data[0]), *data[1:])


def _targets(change: Callable[[Tensor], Tensor]) -> Callable[[Data], Data]:
    return lambda data: (data[0], change(data[1]))


def _first(count: int) -> Callable[[Data], Data]:
    return lambda data: tuple(part[:count] for part in data)


def _spoilt_gradient(value: float) -> Callable[[LearningRule, dict[str, Tensor]], dict[str, Tensor]]:
    def of_step(rule: LearningRule, values: dict[str, Tensor]) -> dict[str, Tensor]:
        found = [p.grad for p in rule.parameters() if p.grad is not None]
        # In place: what a rule wrote is what is spoilt.
        found[0].view(-1)[0] = value
        return values

    return of_step


def _spoilt_loss(value: float) -> Callable[[LearningRule, dict[str, Tensor]], dict[str, Tensor]]:
    return lambda rule, values: values | {"loss": torch.tensor(value)}


def _classifies(training: Training) -> bool:
    return training.classifies


def _has_gradients(training: Training) -> bool:
    return not training.closed_form


def _has_numbers(training: Training) -> bool:
    return training.data is numbers


_VALUES = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}
DATA_HAZARDS = (
    {f"{name} in an input": Hazard(_put(0, value)) for name, value in _VALUES.items()}
    | {f"{name} in a target": Hazard(_put(1, value), applies=_has_numbers) for name, value in _VALUES.items()}
    | {
        "inputs times 1e-30": Hazard(_inputs(lambda x: x * 1e-30), everywhere=True),
        "inputs times 1e30": Hazard(_inputs(lambda x: x * 1e30), everywhere=True),
        "float64 inputs times 1e300": Hazard(
            _inputs(lambda x: x.double() * 1e300), precision="64-true", everywhere=True
        ),
        "float64 inputs of float32 weights": Hazard(_inputs(torch.Tensor.double), everywhere=True),
        "integer inputs": Hazard(_inputs(lambda x: (255 * x).to(torch.uint8)), everywhere=True),
        "constant inputs": Hazard(_inputs(lambda x: torch.full_like(x, 0.5)), everywhere=True),
        "zeros": Hazard(_inputs(torch.zeros_like), everywhere=True),
        "one class only": Hazard(_targets(torch.zeros_like), applies=_classifies),
        "no samples": Hazard(_first(0)),
        "one sample": Hazard(_first(1)),
        "batches of one": Hazard(batch_size=1),
        "1000 classes": Hazard(classes=1000, applies=_classifies),
        "a label too large": Hazard(_label(3), applies=_classifies),
        "a label below 0": Hazard(_label(-1), applies=_classifies),
        "a label of -100": Hazard(_label(-100), applies=_classifies),
        "labels of floating point": Hazard(_targets(torch.Tensor.float), applies=_classifies),
    }
)
STEP_HAZARDS = (
    {
        f"{name} in a weight": Hazard(options={"weight": value}, applies=_has_gradients)
        for name, value in _VALUES.items()
    }
    | {
        f"{name} in a gradient": Hazard(of_step=_spoilt_gradient(value), applies=_has_gradients)
        for name, value in _VALUES.items()
    }
    | {
        f"{name} as loss": Hazard(of_step=_spoilt_loss(value), applies=_has_gradients)
        for name, value in _VALUES.items()
    }
    | {"steps of 1e38": Hazard(options={"lr": 1e38}, applies=_has_gradients)}
)
HAZARDS = DATA_HAZARDS | STEP_HAZARDS
SKIPPED = [
    f"{value} {where}" for value in _VALUES for where in ("in an input", "in a target", "in a gradient", "as loss")
]
"""What ``on_nonfinite='skip'`` leaves out."""


def value_of(name: str) -> float:
    """What is called nan, inf or -inf."""
    return _VALUES[name]


# What comes of it


class Spoil(L.Callback):
    """Does to the second step what a hazard says, and remembers the parameters after each."""

    def __init__(self, hazard: Hazard) -> None:
        self.hazard = hazard
        self.before: dict[str, Tensor] = {}

    def on_fit_start(self, trainer: L.Trainer, rule: Any) -> None:
        self._remember(rule)

    def on_train_batch_start(self, trainer: L.Trainer, rule: Any, batch: Any, batch_idx: int) -> None:
        if trainer.fit_loop.total_batch_idx == 1:
            self._spoil(rule)
            self._remember(rule)

    def on_train_batch_end(self, trainer: L.Trainer, rule: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        vars(rule).pop("compute_gradients", None)
        self._remember(rule)

    def _spoil(self, rule: Any) -> None:
        options = self.hazard.options or {}
        if "weight" in options:
            with torch.no_grad():
                max(rule.parameters(), key=Tensor.numel).view(-1)[0] = options["weight"]
        if self.hazard.of_step is not None:
            compute, spoil = rule.compute_gradients, self.hazard.of_step
            rule.compute_gradients = lambda batch: spoil(rule, dict(compute(batch)))

    def _remember(self, rule: Any) -> None:
        self.before = {name: p.detach().clone() for name, p in rule.named_parameters()}

    def assert_untouched(self, rule: nn.Module | None) -> None:
        for name, before in self.before.items():
            assert rule is not None
            now = rule.get_parameter(name).detach()
            torch.testing.assert_close(now, before, rtol=0, atol=0, equal_nan=True, msg=f"{name} has moved")


def train(name: str, hazard_name: str, folder: Path, **options: Any) -> str:
    """``'finite'``, or ``'refused: '`` or ``'warned: '`` and what was said.

    Raises:
        AssertionError: Neither, or a refused step has moved the weights.
    """
    training, hazard = TRAININGS[name], HAZARDS[hazard_name]
    loaders = [hazard.loader(training), hazard.loader(training, spoilt=hazard.everywhere)]
    if hazard.options and "lr" in hazard.options:
        options["optimizer"] = partial(torch.optim.SGD, lr=hazard.options["lr"])
    spoil, epochs = Spoil(hazard), -1 if training.closed_form else 2
    run = trainer(folder, max_epochs=epochs, callbacks=[spoil], precision=hazard.precision, num_sanity_val_steps=0)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            rule = training.rule(hazard.classes, **options)
            run.fit(rule, *loaders)
        except Exception as error:
            said = refusal(error)
            spoil.assert_untouched(run.lightning_module)
            return said
    return outcome(learned(rule) | run.callback_metrics, [str(warning.message) for warning in warned])


def outcome(values: dict[str, Tensor], warned: list[str]) -> str:
    """``'finite'``, or what a warning says of a validation that is not.

    Raises:
        AssertionError: Something is not finite, and nothing was said.
    """
    lost = [name for name, value in values.items() if not bool(value.detach().isfinite().all())]
    said = [text for text in warned for name in lost if name.startswith("val/") and text.startswith(f"{name}=")]
    assert len(lost) <= len(said), f"not finite, and nothing was said: {', '.join(lost)}"
    return f"warned: {said[0]}" if said else "finite"


def refusal(error: Exception) -> str:
    """What one of our own errors says; any other is raised."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    is_ours = "lightning_nobp" in frame.filename and (frame.line or "").startswith("raise")
    if not (is_ours and isinstance(error, REFUSALS)):
        raise AssertionError(f"{type(error).__name__} from {frame.filename}:{frame.lineno}: {error}") from error
    return f"refused: {error}"


def evaluate(name: str, stage: str, value: float, folder: Path) -> str:
    """``'ran'``, or what was said, of ``'validate'``, ``'test'`` or ``'predict'`` with such an input."""
    training = TRAININGS[name]
    data = _put(0, value)(training.data())
    rule = training.rule()
    run = trainer(folder, max_epochs=-1 if training.closed_form else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(rule, DataLoader(TensorDataset(*training.data()), BATCH))
        try:
            getattr(run, stage)(
                rule, DataLoader(TensorDataset(*data), BATCH), **({} if stage == "predict" else {"verbose": False})
            )
        except Exception as error:
            return refusal(error)
    return "ran"
