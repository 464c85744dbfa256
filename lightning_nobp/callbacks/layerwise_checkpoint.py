"""Checkpoints of a network that grows, a file for each layer."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_nobp.callbacks.growth import check_growth
from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.checkpoints import load_whole, save_whole
from lightning_nobp.nn.residual_compensation import ResCNet
from lightning_nobp.rules.residual_compensation import ResidualCompensation
from lightning_nobp.typed import Typed


class LayerwiseCheckpoint(Typed, Callback):
    """Write each layer once, when it is solved, to ``layer_0001.pt``, ``layer_0002.pt``, ...

    A checkpoint of the whole network after every layer of hundreds would write each layer hundreds of times.
    :func:`load_layers` puts the files together again.

    Args:
        dirpath: Folder of the files; by default ``layers`` in the run's folder.

    Raises:
        MisconfigurationException: The module is no ResidualCompensation.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a rule whose network does not grow, or whose layers change later."""
        check_growth(self, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Write the layer that was solved."""
        assert isinstance(pl_module, ResidualCompensation)
        if not trainer.is_last_batch or not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        network = pl_module.rescnet
        if pl_module.stage - 1 != network.num_fitted or not network.num_fitted:
            return
        folder = self._folder(trainer)
        if network.num_fitted == 1:
            _remove_from(folder, 2)
        save_whole(_file(folder, network.num_fitted), network.compensation(network.num_fitted).state_dict())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove layers that the network does not use in the end."""
        assert isinstance(pl_module, ResidualCompensation)
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            _remove_from(self._folder(trainer), pl_module.rescnet.num_fitted + 1)

    def _folder(self, trainer: Trainer) -> Path:
        return Path(self.dirpath) if self.dirpath else run_folder(trainer) / "layers"


def load_layers(network: ResCNet, folder: str | Path, depth: int | None = None) -> int:
    """Fill a network with the layers that :class:`LayerwiseCheckpoint` wrote.

    Args:
        network: Of the same architecture; its depth may be another.
        folder: Of the files.
        depth: How many layers; by default as many as there are files, one after the other.

    Returns:
        How many layers were loaded.

    Raises:
        FileNotFoundError: A layer is missing.
        ValueError: The network has fewer layers, or the files are of another architecture.
    """
    folder, count = Path(folder), 0
    while depth is None or count < depth:
        path = _file(folder, count + 1)
        if not path.is_file():
            if depth is None and count:
                break
            raise FileNotFoundError(f"{path}: there is no such layer")
        if count >= network.depth:
            raise ValueError(f"{folder} holds more layers than the network's depth={network.depth}: give depth=...")
        state = load_whole(path)
        try:
            network.compensation(count + 1).load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            raise ValueError(f"{path} does not fit the network: {error}") from error
        count += 1
    network.num_fitted = count
    return count


def _file(folder: Path, number: int) -> Path:
    return folder / f"layer_{number:04d}.pt"


def _remove_from(folder: Path, number: int) -> None:
    """Remove a layer and those behind it."""
    while _file(folder, number).is_file():
        _file(folder, number).unlink()
        number += 1
