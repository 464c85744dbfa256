"""Adam with one second moment a quaternion."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_nobp.functional.quaternion.algebra import normalize
from lightning_nobp.nn.quaternion.linear import QuaternionLayer
from lightning_nobp.typed import Typed


class QuaternionAdam(Typed, Optimizer):
    """Adam whose step turns with its gradient: the four components of a quaternion share their second moment.

    Plain Adam scales each component by itself, and so depends on the axes. Here the second moment of a quaternion is
    the running mean of ``|g|^2 / 4``. Parameters that are not marked move as by Adam.

    Args:
        params: Parameters, or groups of them.
        lr: Learning rate.
        betas: Of the running means of gradient and squared gradient.
        eps: Added to the root of the second moment.
        weight_decay: Decoupled: weights shrink by ``lr * weight_decay`` a step.
        quaternions: Those of the parameters that are quaternions, or the only one: component first ``(4, ...)`` or
            component-major ``(4M,)``; see :func:`quaternion_parameters`. They stay so in groups that are added later.
            :class:`~lightning_nobp.rules.QuaternionBackprop` marks them itself.

    Raises:
        ValueError: An argument outside its range.

    References:
        Kingma and Ba, "Adam: A Method for Stochastic Optimization", arXiv 1412.6980.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        quaternions: Tensor | Iterable[Tensor] = (),
    ) -> None:
        # Before the base adds the groups.
        self._wanted: dict[int, Tensor] = {}
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.mark(quaternions)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a pickled optimizer, or of another one, whose groups hold their marks or none."""
        self.__dict__.setdefault("_wanted", {})
        super().__setstate__(state)
        for group in self.param_groups:
            self._mark(group)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, with options of its own; those that were marked before are marked in it.

        Raises:
            ValueError: An option outside its range.
        """
        options = self.defaults | param_group
        _check_options(options["lr"], options["betas"], options["eps"], options["weight_decay"])
        super().add_param_group(param_group)
        self._mark(self.param_groups[-1])

    def mark(self, quaternions: Tensor | Iterable[Tensor]) -> None:
        """Let these parameters share second moments, from the next step on.

        Parameters that the optimizer does not have are passed over until a group with them is added.

        Raises:
            ValueError: A parameter whose first dimension is not divisible by 4.
        """
        for parameter in _each(quaternions):
            _check_quaternions(parameter)
            self._wanted[id(parameter)] = parameter
        for group in self.param_groups:
            self._mark(group)

    def _mark(self, group: dict[str, Any]) -> None:
        # By position, which checkpoints and copies of the optimizer keep.
        marked = {place for place, parameter in enumerate(group["params"]) if id(parameter) in self._wanted}
        group["quaternions"] = sorted(marked.union(group.get("quaternions", ())))

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Move every parameter that has a gradient.

        Args:
            closure: Computes the loss anew, with gradients.

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            marked = set(group.get("quaternions", ()))
            for place, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group, place in marked)
        return loss

    def _move(self, parameter: Tensor, grad: Tensor, group: dict[str, Any], shares: bool) -> None:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step = float(state["step"])
        first, second = group["betas"]
        square = self._shared(grad.square()) if shares else grad.square()
        state["exp_avg"].lerp_(grad, 1 - first)
        state["exp_avg_sq"].lerp_(square, 1 - second)
        size = (state["exp_avg_sq"] / (1 - second**step)).sqrt_().add_(group["eps"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.addcdiv_(state["exp_avg"], size, value=-group["lr"] / (1 - first**step))

    @staticmethod
    def _shared(square: Tensor) -> Tensor:
        by_component = torch.unflatten(square, 0, (4, -1))
        return by_component.mean(0, keepdim=True).expand_as(by_component).flatten(0, 1)


def _check_options(lr: float, betas: Sequence[float], eps: float, weight_decay: float) -> None:
    if not lr >= 0:
        raise ValueError(f"lr={lr} must not be negative")
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas={betas!r} must be two numbers in [0, 1)")
    if not eps >= 0 or not weight_decay >= 0:
        raise ValueError(f"eps={eps} and weight_decay={weight_decay} must not be negative")


def _each(quaternions: Tensor | Iterable[Tensor]) -> Iterable[Tensor]:
    # A tensor is an iterable of tensors too, of its rows.
    return (quaternions,) if isinstance(quaternions, Tensor) else quaternions


def _check_quaternions(parameter: Tensor) -> None:
    if parameter.dim() == 0 or parameter.shape[0] % 4:
        raise ValueError(f"a parameter of shape {tuple(parameter.shape)} holds no whole quaternions")


@torch.no_grad()
def retract_(quaternions: Tensor | Iterable[Tensor]) -> None:
    """Put each quaternion of these parameters back to length 1; 0 has no direction and stays.

    After every step, for weights that shall stay rotations. Any optimizer does it by a hook::

        optimizer.register_step_post_hook(lambda *_: retract_(layer.weight))

    Args:
        quaternions: A parameter or several, component first ``(4, ...)`` or component-major ``(4M,)``.

    Raises:
        ValueError: A parameter whose first dimension is not divisible by 4.
    """
    for parameter in _each(quaternions):
        _check_quaternions(parameter)
        by_component = torch.unflatten(parameter, 0, (4, parameter.shape[0] // 4))
        by_component.copy_(normalize(by_component, dim=0))


def quaternion_parameters(module: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the quaternion layers of a module."""
    layers = [layer for layer in module.modules() if isinstance(layer, QuaternionLayer)]
    return [p for layer in layers for p in (layer.weight, layer.bias) if p is not None]
