"""Physical systems that learn by their echo."""

from lightning_nobp.nn.hamiltonian.system import HamiltonianSystem

__all__ = ["HamiltonianSystem"]
