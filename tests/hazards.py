"""What may be wrong with the numbers of a training, and what comes of it."""

import math
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from every_rule import TRAININGS, Data, Training, numbers
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer

from lightning_nobp.rules import LearningRule
from lightning_nobp.rules.faults import learned

REFUSALS = (FloatingPointError, ValueError, TypeError, MisconfigurationException)
BATCH = 8
WRONG = 12
"""The sample with what is wrong: one of the second batch, since the first is looked at more closely."""

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
