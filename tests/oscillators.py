"""Systems of positions and momenta that tests of the echo share, in float64."""

import torch
from torch import nn

from lightning_nobp.functional.hamiltonian import leapfrog
from lightning_nobp.nn import DuffingNetwork, HamiltonianSystem, KleinGordonField, LogCoshNetwork


class Pendulums(HamiltonianSystem):
    """A user's own: a potential alone, with masses that are not 1, under a drive of another shape than positions."""

    def __init__(self):
        super().__init__()
        self.depth = nn.Parameter(torch.rand(5) + 0.5)
        self.tie = nn.Parameter(0.3 * torch.randn(5, 5))
        self.lever = nn.Parameter(torch.randn(3, 5))

    def potential(self, q, u):
        energy = (self.depth * (1 - q.cos())).sum(1) + (q @ self.tie).square().sum(1) / 2
        return energy if u is None else energy - ((u @ self.lever) * q.sin()).sum(1)

    def kinetic(self, p):
        return p.square().sum(1) / 4

    def velocity(self, p):
        return p / 2


MAKERS = {
    "duffing": (lambda: DuffingNetwork(6), (6,), (6,)),
    "linear": (lambda: DuffingNetwork(6, beta=0.0), (6,), (6,)),
    "log cosh": (lambda: LogCoshNetwork(6, 9), (6,), (9,)),
    "log cosh without bias": (lambda: LogCoshNetwork(6, 9, alpha=0.5, bias=False), (6,), (9,)),
    "ring": (lambda: KleinGordonField(2, (8,)), (2, 8), (2, 8)),
    "string": (lambda: KleinGordonField(2, (7,), kernel_size=1, boundary="fixed"), (2, 7), (2, 7)),
    "torus": (lambda: KleinGordonField(2, (4, 5)), (2, 4, 5), (2, 4, 5)),
    "drum": (lambda: KleinGordonField(1, (5, 6), kernel_size=5, c=0.8, boundary="fixed"), (1, 5, 6), (1, 5, 6)),
    "pendulums": (Pendulums, (5,), (3,)),
}
DRIVES = ("none", "static", "of every step")


def make(name, drive="none", n_steps=30, batch=4, seed=0):
    """A system whose parameters are all different, positions, momenta, and what acts on it."""
    torch.manual_seed(seed)
    maker, shape, drive_shape = MAKERS[name]
    system = maker().double()
    with torch.no_grad():
        for parameter in system.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    q, p = (0.7 * torch.randn(2, batch, *shape, dtype=torch.float64)).unbind()
    u = {
        "none": None,
        "static": torch.randn(batch, *drive_shape, dtype=torch.float64),
        "of every step": list(torch.randn(n_steps, batch, *drive_shape, dtype=torch.float64)),
    }[drive]
    return system, q, p, u


def cost(q, p):
    """Of positions and momenta at the end, different for all samples, and not quadratic."""
    rows = torch.arange(1, q[0].numel() + 1, dtype=q.dtype).view(q.shape[1:]) / q[0].numel()
    return ((rows * q).sin() + 0.3 * p.square() * rows + 0.1 * q.pow(4)).sum()


def gradients(simulate, system, q, p, u, of=cost):
    """Gradients by everything: positions, momenta, drives and parameters."""
    q, p = q.clone().requires_grad_(), p.clone().requires_grad_()
    drives = [] if u is None else [u] if isinstance(u, torch.Tensor) else list(u)
    drives = [drive.clone().requires_grad_() for drive in drives]
    given = None if u is None else drives[0] if isinstance(u, torch.Tensor) else drives
    loss = of(*simulate(system, q, p, given))
    # Without a drive, not all parameters matter.
    return torch.autograd.grad(loss, [q, p, *drives, *system.parameters()], allow_unused=True, materialize_grads=True)


def by_autograd(system, q, p, u, of=cost, **options):
    """Gradients of the same simulation through all of its steps."""
    return gradients(lambda *state: leapfrog(*state, **options), system, q, p, u, of)


def error(found, expected):
    """The largest relative error of a tensor."""
    pairs = zip(found, expected, strict=True)
    return max(float((f - e).norm() / e.norm()) if bool(e.any()) else float(f.norm()) for f, e in pairs)
