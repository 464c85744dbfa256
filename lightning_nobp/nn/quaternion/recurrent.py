"""Recurrent layers of quaternions.

Only the weights multiply by the Hamilton product, those of the inputs and those of the state before. Everything else
goes component by component: gates are split activations, and they multiply states as real numbers do.

No vector-Jacobian product is registered: these layers are trained by autograd.

References:
    Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_nobp.functional.quaternion.linear import PRODUCT
from lightning_nobp.functional.quaternion.products import Algorithm, Side, chosen, hamilton_block
from lightning_nobp.nn.quaternion.init import Criterion, Initialisation
from lightning_nobp.nn.quaternion.linear import QuaternionLinear, check_positive, check_quaternions
from lightning_nobp.typed import Typed

State = tuple[Tensor, ...]
"""Of one layer in one direction: the hidden state ``(batch, 4, M)`` first, then a cell if there is one."""


class _Gates(QuaternionLinear):
    """The weights of all gates, one beneath the other within each component: ``(4, gates * M, N)``."""

    def __init__(self, inputs: int, hidden: int, gates: int, bias: bool, **options: Any) -> None:
        self.gates = gates
        super().__init__(inputs, gates * hidden, bias, **options)

    def _by_group(self, weight: Tensor) -> tuple[Tensor, ...]:
        # Each gate starts as a layer of its own.
        return weight.chunk(self.gates, dim=1)

    def split(self, z: Tensor) -> Tensor:
        """Features ``(..., 4 * gates * M)`` as ``(..., 4, gates, M)``."""
        return torch.unflatten(z, -1, (4, self.gates, -1))

    def at_each_step(self, hidden: Tensor) -> Callable[[Tensor], Tensor]:
        """The layer from hidden states ``(batch, 4, M)`` to gates, made ready for many steps."""
        if chosen(self.algorithm, hidden, self.weight, PRODUCT) == "fast8":
            return lambda h: self.split(self(h.flatten(-2)))
        # Written once a sequence: at small batches that takes longer than the product.
        block = hamilton_block(self.weight, self.side)
        return lambda h: self.split(F.linear(h.flatten(-2), block, self.bias))


class QuaternionRecurrent(Typed, nn.Module):
    """What the recurrent layers share: layers, directions, and the way through time.

    Attributes:
        inputs: Weights of the inputs, of each layer and direction in torch's order: layer by layer, forwards first.
        recurrent: Weights of the hidden state, likewise.
    """

    gates: ClassVar[int]
    states: ClassVar[int] = 1
    recurrent_bias: ClassVar[bool] = False

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        init: Initialisation = "polar",
        criterion: Criterion = "glorot",
        side: Side = "left",
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        check_quaternions(input_size=input_size, hidden_size=hidden_size)
        check_positive(num_layers=num_layers)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout={dropout} must lie between 0 and 1")
        self.input_size, self.hidden_size, self.num_layers, self.bias = input_size, hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.bidirectional = batch_first, dropout, bidirectional
        self.init, self.criterion, self.side, self.algorithm = init, criterion, side, algorithm
        directions = 1 + bidirectional
        widths = [input_size] * directions + [directions * hidden_size] * (directions * (num_layers - 1))
        options = {"init": init, "criterion": criterion, "side": side, "algorithm": algorithm}
        options |= {"device": device, "dtype": dtype}
        again = bias and self.recurrent_bias
        self.inputs = nn.ModuleList(_Gates(width, hidden_size, self.gates, bias, **options) for width in widths)
        self.recurrent = nn.ModuleList(_Gates(hidden_size, hidden_size, self.gates, again, **options) for _ in widths)

    def reset_parameters(self) -> None:
        """Draw the weights anew; biases become 0."""
        for layer in (*self.inputs, *self.recurrent):
            assert isinstance(layer, _Gates)
            layer.reset_parameters()

    def flatten_parameters(self) -> None:
        """Nothing to do: for networks that were written for torch's layers."""

    def extra_repr(self) -> str:
        """Sizes and what is unusual, for printing."""
        usual = {"num_layers": 1, "bias": True, "batch_first": False, "dropout": 0.0, "bidirectional": False}
        other = [f", {name}={getattr(self, name)}" for name, value in usual.items() if getattr(self, name) != value]
        return f"{self.input_size}, {self.hidden_size}{''.join(other)}"

    @abstractmethod
    def _step(self, z: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
        """The state after one step, for the gates' inputs ``z`` ``(batch, 4, gates, M)``."""
        raise NotImplementedError

    def _run(self, x: Tensor, initial: State | None) -> tuple[Tensor, State]:
        """Outputs and last states, as torch arranges them."""
        batched = self._check(x, initial)
        x = x.unsqueeze(1) if not batched else x.transpose(0, 1) if self.batch_first else x
        starts = self._starts(x, initial, batched)
        ends = []
        for layer in range(self.num_layers):
            x = F.dropout(x, self.dropout, self.training) if layer and self.dropout else x
            outputs = []
            for backwards in range(1 + self.bidirectional):
                place = layer * (1 + self.bidirectional) + backwards
                y, end = self._through_time(place, x.flip(0) if backwards else x, starts[place])
                outputs.append(y.flip(0) if backwards else y)
                ends.append(end)
            # Directions side by side within each component, so that the whole is component-major.
            x = torch.cat(outputs, dim=-1).flatten(-2)
        last = tuple(torch.stack(parts).flatten(-2) for parts in zip(*ends, strict=True))
        if not batched:
            return x.squeeze(1), tuple(part.squeeze(1) for part in last)
        return x.transpose(0, 1) if self.batch_first else x, last

    def _through_time(self, place: int, x: Tensor, state: State) -> tuple[Tensor, State]:
        inputs, recurrent = self.inputs[place], self.recurrent[place]
        assert isinstance(inputs, _Gates)
        assert isinstance(recurrent, _Gates)
        run, hidden = recurrent.at_each_step(state[0]), []
        for z in inputs.split(inputs(x)).unbind(0):
            state = self._step(z, run, state)
            hidden.append(state[0])
        return torch.stack(hidden), state

    def _starts(self, x: Tensor, initial: State | None, batched: bool) -> list[State]:
        """The first states of each layer and direction."""
        quaternions = self.hidden_size // 4
        if initial is None:
            zero = x.new_zeros(x.shape[1], 4, quaternions)
            return [(zero,) * self.states] * len(self.inputs)
        given = [part if batched else part.unsqueeze(1) for part in initial]
        return list(zip(*(torch.unflatten(part, -1, (4, quaternions)).unbind(0) for part in given), strict=True))

    def _check(self, x: Tensor, initial: State | None) -> bool:
        """Whether there is a batch."""
        if not isinstance(x, Tensor):
            raise TypeError(f"x is a {type(x).__name__}: pad sequences of different lengths (torch.nn.utils.rnn)")
        if x.dim() not in (2, 3) or x.shape[-1] != self.input_size:
            order = "batch, length" if self.batch_first else "length, batch"
            raise ValueError(
                f"x of shape {tuple(x.shape)} is neither ({order}, {self.input_size}) nor (length, {self.input_size})"
            )
        batched = x.dim() == 3
        if not x.shape[1 if batched and self.batch_first else 0]:
            raise ValueError(f"x of shape {tuple(x.shape)} has a length of 0: there is no step to take")
        batch = [x.shape[0 if self.batch_first else 1]] if batched else []
        shape = (len(self.inputs), *batch, self.hidden_size)
        if initial is not None and (len(initial) != self.states or any(part.shape != shape for part in initial)):
            shapes = ", ".join(str(tuple(part.shape)) for part in initial)
            raise ValueError(f"hx holds {shapes}: give {self.states} of shape {shape}")
        return batched


class QuaternionLSTM(QuaternionRecurrent):
    """A long short-term memory of quaternions, with the arguments of ``nn.LSTM`` but ``proj_size``, and its results.

    ``i, f, g, o = w x + b + v h``, through sigmoids, g through a tanh; ``c' = f c + i g``, ``h' = o tanh(c')``,
    component by component. It has a quarter of the weights, and one bias a gate where torch has two that add up.
    Trained by autograd: no vector-Jacobian product is registered.

    Packed sequences are not taken, and parameters have other names than torch's: ``inputs.0.weight`` for
    ``weight_ih_l0``, ``recurrent.0.weight`` for ``weight_hh_l0``.

    Args:
        input_size: Real features of the inputs, four a quaternion: ``4N``.
        hidden_size: Real features of the hidden state: ``4M``.
        num_layers: Each takes the outputs of the one before.
        bias: Whether to add biases.
        batch_first: Whether sequences are ``(batch, length, features)``, not ``(length, batch, features)``.
        dropout: Share of components dropped from the outputs of every layer but the last.
        bidirectional: Whether to go through time backwards too. Outputs are ``8M`` features, component-major: within
            each component first those of the way forwards.
        init: See :func:`quaternion_init_`; each gate starts as a layer of its own.
        criterion: See :func:`quaternion_init_`.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: Sizes that are no whole numbers.
        ValueError: Features that are not divisible by 4, or an argument outside its range.

    References:
        Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418. Hochreiter and Schmidhuber, "Long
        Short-Term Memory", Neural Computation 9 (1997).
    """

    gates, states = 4, 2

    def forward(self, x: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Go through sequences.

        Args:
            x: ``(length, batch, 4N)``, component-major; with ``batch_first`` ``(batch, length, 4N)``; or without the
                batch.
            hx: First hidden state and cell, ``(num_layers * directions, batch, 4M)`` each; None for 0.

        Returns:
            The hidden states of the last layer at every step, ``(length, batch, directions * 4M)`` or as ``x`` is; and
            the last hidden state and cell of every layer and direction.

        Raises:
            TypeError: ``hx`` is something else; or ``x`` is packed, which these layers do not take.
            ValueError: Shapes that do not fit.
        """
        if hx is not None and not (isinstance(hx, tuple | list) and all(isinstance(part, Tensor) for part in hx)):
            raise TypeError(f"hx is a {type(hx).__name__}, no pair of tensors: give (hidden state, cell)")
        y, (hidden, cell) = self._run(x, None if hx is None else tuple(hx))
        return y, (hidden, cell)

    def _step(self, z: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
        hidden, cell = state
        enter, forget, new, leave = (z + recurrent(hidden)).unbind(-2)
        cell = forget.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell


class _OneState(QuaternionRecurrent):
    def forward(self, x: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Go through sequences.

        Args:
            x: ``(length, batch, 4N)``, component-major; with ``batch_first`` ``(batch, length, 4N)``; or without the
                batch.
            hx: First hidden state, ``(num_layers * directions, batch, 4M)``; None for 0.

        Returns:
            The hidden states of the last layer at every step, ``(length, batch, directions * 4M)`` or as ``x`` is; and
            the last hidden state of every layer and direction.

        Raises:
            TypeError: ``hx`` is something else; or ``x`` is packed, which these layers do not take.
            ValueError: Shapes that do not fit.
        """
        if hx is not None and not isinstance(hx, Tensor):
            raise TypeError(f"hx is a {type(hx).__name__}: give one tensor, the hidden state")
        y, (hidden,) = self._run(x, None if hx is None else (hx,))
        return y, hidden


class QuaternionGRU(_OneState):
    """A gated recurrent unit of quaternions, with the arguments and results of ``nn.GRU``.

    ``r = sigmoid(w_r x + b_r + v_r h + a_r)``, likewise z; ``n = tanh(w_n x + b_n + r (v_n h + a_n))``,
    ``h' = (1 - z) n + z h``, component by component. The arguments are those of :class:`QuaternionLSTM`, and what it
    says of packed sequences and names holds here too. Trained by autograd: no vector-Jacobian product is registered.

    References:
        Cho et al., "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation",
        arXiv 1406.1078. Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418.
    """

    gates = 3
    recurrent_bias = True

    def _step(self, z: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
        (hidden,) = state
        reset, update, new = z.unbind(-2)
        reset_again, update_again, new_again = recurrent(hidden).unbind(-2)
        new = (new + (reset + reset_again).sigmoid() * new_again).tanh()
        return (new + (update + update_again).sigmoid() * (hidden - new),)


class QuaternionRNN(_OneState):
    """The plain recurrent layer of quaternions, with the arguments and results of ``nn.RNN``.

    ``h' = tanh(w x + b + v h)``, the tanh component by component, with one bias where torch has two that add up.
    Trained by autograd: no vector-Jacobian product is registered. All arguments but ``nonlinearity`` are those of
    :class:`QuaternionLSTM`, and what it says of packed sequences and names holds here too.

    Args:
        input_size: Real features of the inputs, ``4N``.
        hidden_size: Real features of the hidden state, ``4M``.
        num_layers: Each takes the outputs of the one before.
        nonlinearity: ``'tanh'`` or ``'relu'``.
        bias: Whether to add biases.
        batch_first: Whether sequences are ``(batch, length, features)``.
        dropout: Share of components dropped between layers.
        bidirectional: Whether to go through time backwards too.
        init: See :func:`quaternion_init_`.
        criterion: Likewise.
        side: ``'left'`` for ``w x``, ``'right'`` for ``x w``.
        algorithm: See :func:`lightning_nobp.functional.quaternion.quaternion_linear`.
        device: Of the parameters.
        dtype: Of the parameters.

    Raises:
        TypeError: As :class:`QuaternionLSTM`.
        ValueError: An unknown nonlinearity, or as :class:`QuaternionLSTM`.

    References:
        Parcollet et al., "Quaternion Recurrent Neural Networks", arXiv 1806.04418.
    """

    gates = 1

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: Literal["tanh", "relu"] = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        *,
        init: Initialisation = "polar",
        criterion: Criterion = "glorot",
        side: Side = "left",
        algorithm: Algorithm = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"nonlinearity={nonlinearity!r} is not one of 'tanh', 'relu'")
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            init=init,
            criterion=criterion,
            side=side,
            algorithm=algorithm,
            device=device,
            dtype=dtype,
        )
        self.nonlinearity = nonlinearity

    def extra_repr(self) -> str:
        """Sizes and what is unusual, for printing."""
        other = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity!r}"
        return f"{super().extra_repr()}{other}"

    def _step(self, z: Tensor, recurrent: Callable[[Tensor], Tensor], state: State) -> State:
        new = (z + recurrent(state[0])).squeeze(-2)
        return (new.tanh() if self.nonlinearity == "tanh" else new.relu(),)
