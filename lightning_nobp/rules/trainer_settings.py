"""What a Trainer may be given when a rule writes its own gradients."""

from collections.abc import Sequence

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


def check_trainer(trainer: Trainer, rule: str, precisions: Sequence[str]) -> None:
    """Refuse settings of the Trainer that a rule cannot honour.

    Args:
        trainer: That runs it.
        rule: Name of the rule's class.
        precisions: Values of ``Trainer(precision=...)`` under which it is right.

    Raises:
        MisconfigurationException: Names the setting, and what to give instead.
    """
    for name, unset in (("gradient_clip_val", (None, 0)), ("accumulate_grad_batches", (1,))):
        value = getattr(trainer, name)
        if value not in unset:
            raise MisconfigurationException(
                f"Trainer({name}={value}): {rule} writes its own gradients, so give it {rule}({name}={value}), "
                f"on the command line --model.{name}={value}, and leave the Trainer's away."
            )
    if trainer.precision not in precisions:
        raise MisconfigurationException(
            f"Trainer(precision={trainer.precision!r}): {rule} supports {', '.join(precisions)}."
        )
    if type(trainer.strategy).__name__ not in _STRATEGIES:
        raise MisconfigurationException(
            f"Trainer(strategy=...) gave {type(trainer.strategy).__name__}: {rule} supports a single device, "
            "'ddp' and 'ddp_spawn', since it needs whole parameters and writes their gradients itself."
        )
