"""What a simulation refuses."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_nobp.functional.hamiltonian.integrator import Step, run
from lightning_nobp.functional.hamiltonian.phase_space import CANONICAL, PhaseSpace, State

_PRECISIONS = {False: "float32 or float64", True: "complex64 or complex128"}


def check_run(dt: float, n_steps: int, damping: float, fractional_bits: int | None, every: int | None = None) -> None:
    """Refuse times that are none.

    Raises:
        ValueError: Names the argument.
    """
    if not 0 < dt < float("inf"):
        raise ValueError(f"dt={dt!r} must be positive, and finite")
    if not hasattr(n_steps, "__index__") or n_steps < 1:
        raise ValueError(f"n_steps={n_steps!r} must be a whole number, at least 1")
    if every is not None and (every < 1 or n_steps % every):
        raise ValueError(f"every={every!r} must divide n_steps={n_steps}")
    if not -float("inf") < damping < float("inf"):
        raise ValueError(f"damping={damping!r} must be finite")
    if fractional_bits is not None and not 1 <= fractional_bits <= 50:
        raise ValueError(f"fractional_bits={fractional_bits!r} must be from 1 to 50, or None")
    if fractional_bits is not None and damping:
        raise ValueError(
            f"damping={damping} with fractional_bits={fractional_bits}: a loss cannot be taken back bit for bit, leave "
            "one of them away"
        )


def check_digits(state: State, grid: float) -> None:
    """Refuse fixed-point numbers that floating point cannot hold.

    Raises:
        ValueError: Says how large they may be.
    """
    if not grid:
        return
    most = grid * 2 / torch.finfo(state[0].dtype).eps
    largest = max((float(part.abs().max()) for part in state if part.numel()), default=0.0)
    if largest > most:
        raise ValueError(
            f"fractional_bits={-math.log2(grid):g} leaves {state[0].dtype} numbers up to {most:.3g}, and the "
            f"simulation reaches {largest:.3g}: take fewer bits, or float64"
        )


def check_system(system: Any, space: PhaseSpace, like: Tensor) -> None:
    """Refuse a system of the other kind, or of another precision: one rounded number spoils an echo.

    Raises:
        TypeError: Says what to call instead.
    """
    name = type(system).__name__
    if system.space is not space:
        kind = "positions and momenta" if system.space is CANONICAL else "complex fields"
        functions = "leapfrog or hamiltonian_echo" if system.space is CANONICAL else "strang or field_echo"
        raise TypeError(f"{name} is a system of {kind}: simulate it by {functions}")
    expected = like.dtype.to_real()
    for parameter in system.parameters():
        if parameter.is_floating_point() and parameter.dtype != expected:
            raise TypeError(
                f"{name} has parameters of type {parameter.dtype} and states of {like.dtype}: give both the same "
                f"precision, by system.to({expected}) for one"
            )


def check_state(state: State, drives: Sequence[Tensor], space: PhaseSpace) -> None:
    """Refuse what is no state, and arithmetic that rounds too much for an echo.

    Raises:
        TypeError: Numbers of the wrong kind, or of several precisions.
        ValueError: Shapes that do not fit, or reduced precision.
    """
    first = state[0]
    for part in state:
        if space is CANONICAL and not part.is_floating_point():
            raise TypeError(f"positions and momenta of type {part.dtype}: give real floating point numbers")
        if space is not CANONICAL and not part.is_complex():
            raise TypeError(f"a field of type {part.dtype}: give complex numbers, psi.to(torch.complex64)")
        if part.dtype in (torch.float16, torch.bfloat16, torch.complex32):
            raise TypeError(f"a state of type {part.dtype}: an echo needs {_PRECISIONS[part.is_complex()]}")
        if not part.dim() or part.shape[0] != first.shape[0] or part.dtype != first.dtype:
            raise ValueError(
                f"states of shape {tuple(part.shape)}, {part.dtype}, and {tuple(first.shape)}, {first.dtype}: give "
                "(batch, ...) of the same batch and type"
            )
    if space is CANONICAL and state[0].shape != state[1].shape:
        raise ValueError(f"momenta {tuple(state[1].shape)} must have the shape of positions, {tuple(first.shape)}")
    for drive in drives:
        if not drive.dim() or drive.shape[0] != first.shape[0]:
            raise ValueError(f"a drive of shape {tuple(drive.shape)}: give (batch, ...) with batch={len(first)}")
        if drive.dtype != first.dtype.to_real():
            raise TypeError(f"a drive of type {drive.dtype} for states of {first.dtype}: give {first.dtype.to_real()}")
    _check_arithmetic(first)


def _check_arithmetic(like: Tensor) -> None:
    if torch.is_autocast_enabled(like.device.type):
        raise ValueError(
            "autocast rounds the way there and the echo to 8 or 11 bits, and the echo drowns: simulate under "
            "torch.autocast(..., enabled=False)"
        )
    if like.is_cuda and like.dtype in (torch.float32, torch.complex64) and torch.backends.cuda.matmul.allow_tf32:
        raise ValueError("TF32 is switched on, and echoes drown in its rounding: set allow_tf32 to False")


def check_start(start: State, drives: Sequence[Tensor] = ()) -> None:
    """Refuse a start that is not finite, and drives that are not.

    Raises:
        FloatingPointError: Says so.
    """
    if torch.compiler.is_exporting():
        return  # A graph cannot stop.
    if not all(bool(part.isfinite().all()) for part in start):
        raise FloatingPointError("the state at the start is not finite: check the inputs")
    if not all(bool(drive.isfinite().all()) for drive in drives):
        raise FloatingPointError("a drive is not finite: check the inputs")


def check_finite(end: State, flows: Sequence[Step], start: State, dt: float, n_steps: int) -> None:
    """Refuse a simulation that has left the finite numbers.

    Raises:
        FloatingPointError: Names the step.
    """
    if torch.compiler.is_exporting() or all(bool(part.isfinite().all()) for part in end):
        return
    check_start(start)

    def look(done: int, state: State) -> State:
        if not all(bool(part.isfinite().all()) for part in state):
            raise FloatingPointError(
                f"the simulation is not finite after step {done} of {n_steps}: take a smaller dt than {dt}, a weaker "
                "coupling, or a potential of bounded curvature"
            )
        return state

    with torch.no_grad():
        run(flows, start, dt=dt, order=range(n_steps), every=1, visit=look)
    raise FloatingPointError("the simulation is not finite at its end")
