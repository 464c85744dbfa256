"""Random generators and their state, in a form that checkpoints may hold."""

import random
from typing import Any

import numpy as np
import torch

from lightning_nobp.rules.synchronisation import rank


def collect_random_state() -> dict[str, Any]:
    """Python's, numpy's and torch's global generators (every CUDA device's too), as tensors and numbers."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what :func:`collect_random_state` returned."""
    python, numpy_state = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    np.random.set_state(
        {
            "bit_generator": "MT19937",
            "state": {"key": numpy_state["key"].numpy().astype(np.uint32), "pos": numpy_state["pos"]},
            "has_gauss": numpy_state["has_gauss"],
            "gauss": numpy_state["gauss"],
        }
    )
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class RankGenerator:
    """A rule's own random numbers: others on each rank, and the same again after a restart.

    Args:
        seed: Of the main rank; the others count on from it.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._generator: torch.Generator | None = None

    def on(self, device: torch.device) -> torch.Generator:
        """The generator, on ``device``."""
        if self._generator is None or self._generator.device != device:
            self._generator = torch.Generator(device).manual_seed(self.seed + rank())
        return self._generator

    def reset(self) -> None:
        """Start anew."""
        self._generator = None

    def state_dict(self) -> dict[str, Any]:
        """Where it stands, and on which kind of device; empty before the first number was drawn."""
        if self._generator is None:
            return {}
        return {"device": self._generator.device.type, "state": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from a state; on another kind of device, whose numbers are others, from the seed."""
        self.reset()
        if state and state["device"] == device.type:
            self.on(device).set_state(state["state"].cpu())

    def __getstate__(self) -> dict[str, Any]:
        """For another process: torch's generators do not travel, but their state does."""
        return {"seed": self.seed, "state": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Come back where it stood."""
        self.seed, self._generator = state["seed"], None
        if state["state"]:
            self.load_state_dict(state["state"], torch.device(state["state"]["device"]))
