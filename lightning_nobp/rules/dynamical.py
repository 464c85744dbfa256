"""Backpropagation on dynamical networks: couplings and local motion from time series."""

from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from lightning_nobp.functional import dynamics
from lightning_nobp.functional.dynamics import Adjoint, Derivative, coupling, coupling_adjoint, differentiate
from lightning_nobp.metrics.network_statistics import NetworkStatistics
from lightning_nobp.nn.dynamical import DynamicalNetwork, NetworkDescent, NodeDynamics
from lightning_nobp.nn.dynamical.local import field_vjp
from lightning_nobp.rules.network_rule import NetworkRule, free_run
from lightning_nobp.rules.network_solution import add_windows, empty_sums, solve_network
from lightning_nobp.rules.synchronisation import from_ranks, is_main_rank, ranks_where, sum_over_ranks

Method = Literal["variable_projection", "alternation"]
Phase = Literal["local", "couplings", "sums", "done"]

_STATE_KEY = "dynamical"


class DynamicalNetworkBackprop(NetworkRule):
    """Who is coupled to whom, and how each node moves alone, from time series.

    With ``method='variable_projection'`` an epoch sums statistics of states and velocities, and its last batch solves
    for couplings and local motion, jointly and in closed form. ``initial_epochs`` before it fit a local motion that is
    not linear in its parameters to the velocities; of that the closed form then finds the last layer anew.

    With ``method='alternation'`` the local motion is fitted to the velocities first, where the couplings act as a
    disturbance (``initial_epochs``). Then ``coupling_epochs`` descend the error of predictions over windows by the
    couplings alone, and ``local_epochs`` fit the local motion to what the couplings leave of the velocities, again and
    again, until neither the couplings nor the error change by more than ``tolerance``.

    The gradient by the couplings is backpropagation through time written out, that by the local motion its own
    pullback; no autograd graph is built, but for local motions that are modules of one's own.

    Args:
        method: ``'variable_projection'`` or ``'alternation'``.
        adjoint: ``'exact'``, or ``'linearised'`` as in the paper, at a quarter of the cost of the way back: see
            :func:`~lightning_nobp.functional.dynamics.coupling_adjoint`.
        derivative: How velocities are found: ``'central5'`` for clean series, ``'savgol'`` for noisy ones,
            ``'forward'`` for maps, with ``integrator='euler'``: see
            :func:`~lightning_nobp.functional.dynamics.differentiate`.
        ridge: Regularisation of the closed form, relative to the mean of what it is added to.
        density: Fraction of possible links that the closed form keeps, the weakest being left out step by step; None
            for all.
        l1: Weight of the mean absolute coupling in the loss that couplings descend.
        symmetric: Whether couplings act both ways alike.
        non_negative: Whether no coupling is negative.
        freeze_local: Whether the local motion stays as it is given.
        initial_epochs: Fit the local motion before the couplings.
        coupling_epochs: Of each cycle of an alternation.
        local_epochs: Likewise.
        tolerance: Relative change of couplings, and of the error, over a cycle at which an alternation ends.
        optimizer: See :class:`LearningRule`; by default :class:`~lightning_nobp.nn.NetworkDescent`, with the paper's
            steps of fixed length for couplings.
        **kwargs: See :class:`NetworkRule`.

    Raises:
        ValueError: An argument out of its range, or options that do not go together.

    References:
        Tan, Correa, Stemler and Small, "Backpropagation on Dynamical Networks", arXiv 2207.03093; Golub and Pereyra,
        "Separable nonlinear least squares: the variable projection method and its applications", Inverse Problems 19,
        R1 (2003).
    """

    def __init__(
        self,
        *,
        method: Method = "variable_projection",
        adjoint: Adjoint = "exact",
        derivative: Derivative = "central5",
        ridge: float = 1e-10,
        density: float | None = None,
        l1: float = 0.0,
        symmetric: bool = False,
        non_negative: bool = False,
        freeze_local: bool = False,
        initial_epochs: int = 0,
        coupling_epochs: int = 1,
        local_epochs: int = 1,
        tolerance: float = 1e-3,
        optimizer: OptimizerCallable = NetworkDescent,
        **kwargs: Any,
    ) -> None:
        self.method, self.adjoint, self.derivative = method, adjoint, derivative
        self.ridge, self.density, self.l1 = ridge, density, l1
        self.symmetric, self.non_negative, self.freeze_local = symmetric, non_negative, freeze_local
        self.initial_epochs, self.coupling_epochs, self.local_epochs = initial_epochs, coupling_epochs, local_epochs
        self.tolerance = tolerance
        self._check_numbers()
        super().__init__(optimizer=optimizer, **kwargs)
        self._check_together()
        self.statistics: NetworkStatistics | None = None
        """The sums of this epoch, if it has any."""
        self._before: tuple[Tensor, float] | None = None
        self._has_converged = False
        self._restored_search: dict[str, Any] | None = None

    def _check_numbers(self) -> None:
        for name, choices in (("method", Method), ("adjoint", Adjoint), ("derivative", Derivative)):
            if getattr(self, name) not in get_args(choices):
                known = ", ".join(map(repr, get_args(choices)))
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {known}")
        for name in ("ridge", "l1", "tolerance"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0, and finite")
        if self.density is not None and not 0 < self.density <= 1:
            raise ValueError(f"density={self.density} must be above 0 and at most 1, or None for all links")
        for name, least in (("initial_epochs", 0), ("coupling_epochs", 1), ("local_epochs", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")

    def _check_together(self) -> None:
        if (self.derivative == "forward") != (self.integrator == "euler"):
            raise ValueError(
                f"derivative={self.derivative!r} does not go with integrator={self.integrator!r}: differences to the "
                "next sample ('forward') are the velocities of a map ('euler'), and of nothing else"
            )
        if self.method == "alternation" and self.density is not None:
            raise ValueError(
                f"density={self.density} belongs to method='variable_projection': take l1 for fewer links of an "
                "alternation"
            )
        if self.method == "variable_projection" and self.l1:
            raise ValueError(
                f"l1={self.l1} belongs to method='alternation': take density for fewer links of the closed form"
            )
        if self.freeze_local and self.initial_epochs:
            raise ValueError(f"initial_epochs={self.initial_epochs} would fit what freeze_local=True keeps: take 0")

    def check_network(self, network: DynamicalNetwork) -> None:
        """Freeze the local motion if asked for; refuse one of which the closed form finds nothing."""
        if self.freeze_local:
            network.local.requires_grad_(False)
        elif self.method == "variable_projection" and not isinstance(network.local, NodeDynamics):
            raise ValueError(
                f"local={type(network.local).__name__} has no coefficients that the closed form could find: give a "
                "NodeDynamics, like PolynomialDynamics, freeze_local=True, or method='alternation'"
            )

    # What an epoch is for

    @property
    def phase(self) -> Phase:
        """What this epoch moves: ``'local'`` motion, ``'couplings'``, both by their ``'sums'``, or nothing."""
        epoch = self._ended_epochs - self.initial_epochs
        if epoch < 0:
            return "local"
        if self.method == "variable_projection":
            return "sums" if epoch == 0 else "done"
        if self._has_converged:
            return "done"
        return "couplings" if self._of_cycle(epoch) < self.coupling_epochs else "local"

    def _of_cycle(self, epoch: int) -> int:
        """Which epoch of a cycle it is."""
        return epoch % (self.coupling_epochs + (0 if self.freeze_local else self.local_epochs))

    def end_epoch(self) -> dict[str, float]:
        """Without a Trainer: end an epoch; returns the ``loss`` of the closed form if it was one of sums."""
        found = self._solve() if self.phase == "sums" else {}
        self._ended_epochs += 1
        return found

    # A step

    @torch.no_grad()
    def compute_gradients(self, batch: Any) -> Mapping[str, Tensor]:
        """Add the gradient of what this epoch moves to ``p.grad``, or the batch to the sums.

        Args:
            batch: Windows ``(batch, steps + 1, nodes, components)``, or a tuple of them.

        Returns:
            ``loss``: the mean square error of velocities or predictions; of sums the closed form's, after the last.
        """
        windows, phase = self.windows(batch), self.phase
        if phase == "local":
            return {"loss": self._local_step(windows)}
        if phase == "couplings":
            return {"loss": self._coupling_step(windows)}
        if phase == "sums":
            self._sum(batch)
            if self._trainer is not None and self.trainer.is_last_batch:
                return {name: torch.tensor(value) for name, value in self._solve().items()}
        return {}

    def _local_step(self, windows: Tensor) -> Tensor:
        x, wanted = self._velocities(windows)
        y, pullback = field_vjp(self.built_network().local, train=True)(x)
        error = y - wanted
        pullback(2 / error.numel() * error)
        return error.square().mean()

    def _coupling_step(self, windows: Tensor) -> Tensor:
        network = self.built_network()
        found = coupling_adjoint(
            field_vjp(network.local, train=False),
            windows[:, : self.num_steps + 1],
            network.weights,
            network.dt,
            integrator=network.integrator,
            adjoint=self.adjoint,
        )
        pairs = network.num_nodes * (network.num_nodes - 1)
        grad = found.weights + self.l1 / pairs * network.weights.sign()
        grad = (grad + grad.T) / 2 if self.symmetric else grad
        network.weights.grad = grad if network.weights.grad is None else network.weights.grad + grad
        return found.loss + self.l1 / pairs * network.weights.abs().sum()

    def _velocities(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """States, and what the couplings leave of their velocities."""
        network = self.built_network()
        x, velocity = differentiate(windows, network.dt, self.derivative)
        velocity = velocity.clone()
        velocity[..., 0] -= coupling(x[..., 0], network.weights.detach())
        return x, velocity

    def global_loss(self, batch: Any) -> Tensor | None:
        """The loss that this epoch descends, with its autograd graph; None while there are sums alone."""
        network, windows, phase = self.built_network(), self.windows(batch), self.phase
        if phase == "local":
            x, wanted = self._velocities(windows)
            return F.mse_loss(network.local(x), wanted)
        if phase != "couplings":
            return None
        kept = {n: p.detach() for n, p in network.local.named_parameters()}
        windows = windows[:, : self.num_steps + 1]

        def alone(x: Tensor) -> Tensor:
            found: Tensor = functional_call(network.local, kept, (x,))
            return found

        predicted = free_run(
            lambda x: dynamics.step(alone, x, network.weights, network.dt, network.integrator), windows
        )
        off_diagonal = network.weights - torch.diag(network.weights.diagonal())
        mean_size = off_diagonal.abs().sum() / (network.num_nodes * (network.num_nodes - 1))
        return F.mse_loss(predicted[:, 1:], windows[:, 1:]) + self.l1 * mean_size

    # The closed form

    def _sum(self, batch: Any) -> None:
        """Add a batch to the sums, in float64."""
        windows = batch if isinstance(batch, Tensor) else batch[0]
        if culprits := ranks_where(not windows.isfinite().all()):
            if self.on_nonfinite == "skip":
                self._skipped_steps += 1
                return
            step = "" if self._trainer is None else f" at step {self.trainer.global_step}"
            raise FloatingPointError(
                f"{type(self).__name__}: windows of a batch are not finite{step}{from_ranks(culprits)}. The sums are "
                "untouched. Check the data, or go on without such batches: on_nonfinite='skip'."
            )
        network = self.built_network()
        if self.statistics is None:
            self.statistics = empty_sums(network, self.freeze_local)
        add_windows(self.statistics, network, windows, self.derivative, self.freeze_local)

    def _solve(self) -> dict[str, float]:
        """Set couplings and local motion to what fits the sums best."""
        if self.statistics is None:
            raise RuntimeError("no batch was summed in this epoch: call compute_gradients(batch) first")
        sums, self.statistics = self.statistics.statistics(), None
        options = {
            name: getattr(self, name) for name in ("derivative", "density", "ridge", "symmetric", "non_negative")
        }
        options["names"] = getattr(getattr(self._trainer, "datamodule", None), "node_names", ())
        try:
            return {"loss": solve_network(self.built_network(), sums, frozen=self.freeze_local, **options)}
        except (ValueError, RuntimeError) as error:
            raise MisconfigurationException(str(error)) from error

    # The end

    def on_train_start(self) -> None:
        """Stop where nothing is left to do."""
        super().on_train_start()
        self.trainer.should_stop = self.trainer.should_stop or self.phase == "done"

    def on_train_epoch_end(self) -> None:
        """See whether the couplings have come to rest, and stop the Trainer behind the last epoch."""
        loss, place = self._means.compute().get("loss"), self._of_cycle(self._ended_epochs - self.initial_epochs)
        ends_descent = self.phase == "couplings" and place == self.coupling_epochs - 1
        super().on_train_epoch_end()
        if ends_descent and loss is not None:
            self._compare(float(loss))
        if self.phase == "done":
            self.trainer.should_stop = True

    def _compare(self, loss: float) -> None:
        """Note couplings and error at the end of a cycle, and whether they have changed."""
        weights = self.built_network().weights.detach().clone()
        if self._before is not None:
            earlier, error = self._before
            moved = float((weights - earlier).norm()) <= self.tolerance * float(weights.norm())
            self._has_converged = moved and abs(loss - error) <= self.tolerance * error
        self._before = (weights, loss)

    def configure_optimizers(self) -> Any:
        """The base's, for couplings and the rest in groups of their own; constraints hold after each of its steps."""
        configured = super().configure_optimizers()
        if self.symmetric or self.non_negative:
            optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
            network = self.built_network()
            optimizer.register_step_post_hook(lambda *_: network.constrain_(self.symmetric, self.non_negative))
        return configured

    def optimised(self) -> list[dict[str, Any]]:
        """Couplings, and the parameters of the local motion that move."""
        return self.built_network().parameter_groups()

    # Exact resume

    def on_fit_start(self) -> None:
        """Start anew, or with what a checkpoint holds."""
        super().on_fit_start()
        state, self._restored_search = self._restored_search, None
        self.statistics, self._before, self._has_converged = None, None, False
        if state is None:
            return
        self._has_converged = state["has_converged"]
        if state["weights"] is not None:
            self._before = (state["weights"].to(self.device), state["loss"])
        if state["statistics"]:
            self.statistics = empty_sums(self.built_network(), self.freeze_local)
            if is_main_rank():
                # What all processes had summed counts once.
                self.statistics.merge(state["statistics"])

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the sums over all processes, and the last cycle's couplings."""
        super().on_save_checkpoint(checkpoint)
        sums = {} if self.statistics is None else self.statistics.sums()
        weights, loss = (None, 0.0) if self._before is None else self._before
        checkpoint[_STATE_KEY] = {
            "statistics": {name: sum_over_ranks(value).clone() for name, value in sums.items()},
            "weights": weights,
            "loss": loss,
            "has_converged": self._has_converged,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep them for the start of the fit that is resumed."""
        super().on_load_checkpoint(checkpoint)
        if self._restored is not None:
            self._restored_search = checkpoint.get(_STATE_KEY)
