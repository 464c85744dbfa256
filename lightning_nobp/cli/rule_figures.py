"""Which figures belong to a run, by its rule."""

from collections.abc import Iterator

from lightning.pytorch import Callback

from lightning_nobp.callbacks import DepthCurve, FilterFigure, LayerGoodness, LogFigures, NetworkFigures, SpikeRaster
from lightning_nobp.rules import (
    ForwardForward,
    LearningRule,
    NetworkRule,
    PCANet,
    ResidualCompensation,
    SpikeTimingBackprop,
)


def figures(rule: LearningRule, every_n_epochs: int) -> Iterator[Callback]:
    """Callbacks that draw what a report of this rule shows: those of any rule, and its own.

    Args:
        rule: The rule.
        every_n_epochs: Epochs from one set of figures to the next; what shows a whole training comes at its end.
    """
    yield LogFigures(every_n_epochs)
    if isinstance(rule, ForwardForward):
        yield LayerGoodness(every_n_epochs)
    elif isinstance(rule, SpikeTimingBackprop):
        yield SpikeRaster(every_n_epochs)
    elif isinstance(rule, NetworkRule):
        yield NetworkFigures(every_n_epochs)
    elif isinstance(rule, ResidualCompensation):
        yield from (DepthCurve(), FilterFigure())
    elif isinstance(rule, PCANet):
        yield FilterFigure()


def spacing(max_epochs: int | None, sets: int) -> int:
    """Epochs from one set of figures to the next: the fewest that make no more sets, with one at the very end.

    Args:
        max_epochs: Of the training; None and -1 for one without a known end, which is drawn after every epoch.
        sets: The most sets of figures, at least 1.
    """
    if max_epochs is None or max_epochs < 1:
        return 1
    return next(n for n in range(1, max_epochs + 1) if max_epochs % n == 0 and max_epochs // n <= sets)
