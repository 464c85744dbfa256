"""What callbacks ask of a rule whose network grows."""

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule

from lightning_nobp.rules.residual_compensation import ResidualCompensation


def check_growth(callback: Callback, rule: LightningModule, layer_by_layer: bool = True) -> None:
    """Refuse a rule whose network does not grow.

    Args:
        callback: That watches it.
        rule: What it is to watch.
        layer_by_layer: Whether each layer must be final once it is solved.

    Raises:
        MisconfigurationException: The module is no ResidualCompensation, or solves layers together.
    """
    name = type(callback).__name__
    if not isinstance(rule, ResidualCompensation):
        raise MisconfigurationException(f"{name} watches a ResidualCompensation rule, not a {type(rule).__name__}")
    if layer_by_layer and rule.combine in ("joint", "backfit"):
        raise MisconfigurationException(f"{name}: combine={rule.combine!r} solves layers together, at the end")
