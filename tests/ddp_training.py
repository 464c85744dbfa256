"""A training that runs on one process or two, importable by spawned processes."""

import multiprocessing
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from toys import backprop, blobs, trainer, weights

from lightning_nobp.callbacks import AttitudeError, LayerAccuracy, LayerGoodness, PredictionWriter, SparsityMask
from lightning_nobp.datamodules import AttitudeDataModule, CoupledOscillatorsDataModule, DigitsDataModule
from lightning_nobp.nn import (
    MLP,
    DuffingClassifier,
    EquivariantMLP,
    ForwardForwardMLP,
    LocalDynamics,
    QuaternionAdam,
    ResCNet,
    SpikingMLP,
    TwoBeamNetwork,
    TwoFieldNLSE,
)
from lightning_nobp.rules import (
    Backprop,
    DynamicalNetworkBackprop,
    HamiltonianEcho,
    MultiplexedGradientDescent,
    QuaternionBackprop,
    ResidualCompensation,
    SelfLearningMachine,
    SparseProp,
    SpikeTimingBackprop,
    SymBa,
)

# Processes that need not import everything again; autograd's threads for a GPU would not survive that.
FORKED = "ddp_fork" if sys.platform == "linux" and not torch.cuda.is_available() else "ddp_spawn"


class ShardedBlobs(L.LightningDataModule):
    """Rank r sees every second sample of each batch; the last batch is uneven: 103 = 6 * 16 + 7 = 4 + 3."""

    def train_dataloader(self) -> Any:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        x, target = blobs(103).tensors
        batches = [(x[k : k + 16][rank::world], target[k : k + 16][rank::world]) for k in range(0, 103, 16)]
        return DataLoader(batches, batch_size=None)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


class SaveRank(L.Callback):
    """Each rank writes its final weights and metrics."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = {k: float(v) for k, v in trainer.callback_metrics.items()}
        result = {"weights": weights(pl_module), "metrics": metrics, "steps": trainer.global_step}
        result["counts"] = [getattr(pl_module, name, 0) for name in ("cost_evaluations", "samples_seen")]
        torch.save(result, self.folder / f"rank{trainer.global_rank}of{trainer.world_size}.pt")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # A process that ends with threads of its group still running is aborted now and then.
        if multiprocessing.parent_process() is not None and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def train(
    folder: Path,
    strategy: str,
    on_digits: bool = False,
    save_at: int | None = None,
    ckpt_path: Path | None = None,
    **kwargs: Any,
) -> None:
    """Two epochs; on two processes unless ``strategy`` is 'auto'. The joined batches are the same."""
    devices = 1 if strategy == "auto" else 2
    data: L.LightningDataModule = ShardedBlobs()
    rule = backprop(optimizer=partial(torch.optim.Adam, lr=0.01), **kwargs)
    if on_digits:
        torch.manual_seed(0)
        data = DigitsDataModule(subset=401, val_size=101, batch_size=64 // devices)
        rule = Backprop(loss="cross_entropy", optimizer=partial(torch.optim.SGD, lr=0.1), **kwargs)
    callbacks: list[L.Callback] = [SaveRank(folder)]
    if save_at is not None:
        callbacks.append(ModelCheckpoint(folder, every_n_train_steps=save_at, save_top_k=-1, filename="{step}"))
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False}
    run = trainer(folder, max_epochs=2, callbacks=callbacks, enable_checkpointing=save_at is not None, **settings)
    run.fit(rule, datamodule=data, ckpt_path=ckpt_path)


def train_symba(folder: Path, strategy: str) -> None:
    """SymBa with negatives that do not depend on the rank, on one process or two."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    network = partial(ForwardForwardMLP, hidden_dims=(8, 7))
    optimizer = partial(torch.optim.SGD, lr=0.1)
    rule = SymBa(network=network, num_classes=3, input_shape=(1, 2, 3), negatives="argmax", optimizer=optimizer)
    callbacks = [SaveRank(folder), LayerAccuracy(), LayerGoodness(figure=False)]
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False}
    trainer(folder, max_epochs=2, callbacks=callbacks, **settings).fit(rule, datamodule=ShardedBlobs())


def train_mgd(
    folder: Path, strategy: str, case: str, save_at: int | None = None, ckpt_path: Path | None = None
) -> None:
    """Multiplexed gradient descent on one process or two, with the same perturbations of the same samples."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    window = {"tau_theta": 6, "tau_x": 3} if devices == 1 else {"num_perturbations": 3}
    options: dict[str, Any] = {
        "per_sample": {"engine": "per_sample", "num_perturbations": 2},
        "activations": {"perturb": "activations"},
        "window": {"engine": "vmap", "lr_scale": "mgd", **window},
        "accumulated": {"engine": "per_sample", "accumulate_grad_batches": 3},
    }[case]
    rule = MultiplexedGradientDescent(
        network=partial(MLP, hidden_dims=(8,), activation="tanh"),
        num_classes=3,
        input_shape=(1, 2, 3),
        optimizer=partial(torch.optim.SGD, lr=0.05),
        **options,
    )
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "precision": "64-true"}
    run = trainer(folder, max_epochs=2, callbacks=[SaveRank(folder)], **settings)
    run.fit(rule, datamodule=ShardedBlobs())


def train_sparse(folder: Path, strategy: str, mask: dict[str, Any] | None, **kwargs: Any) -> None:
    """Backpropagation under masks on one process or two; with sparse layers if ``sparsity`` is given."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    defaults = {"num_classes": 3, "input_shape": (1, 2, 3), "loss": "cross_entropy"}
    defaults |= {
        "network": partial(MLP, hidden_dims=(40,)),
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9),
    }
    kind = SparseProp if "sparsity" in kwargs else Backprop
    callbacks = [SaveRank(folder), *([] if mask is None else [SparsityMask(**mask)])]
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "precision": "64-true"}
    trainer(folder, max_epochs=2, callbacks=callbacks, **settings).fit(
        kind(**defaults | kwargs), datamodule=ShardedBlobs()
    )


def fit_closed_form(folder: Path, strategy: str, cache: str) -> None:
    """Residual compensation on digits whose number is odd, on one process or two."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    network = partial(ResCNet, depth=2, channels=5, first_kernel_size=3, pooling={"crelu_mean": 2})
    rule = ResidualCompensation(network=network, cache=cache, stat_dtype="float64", pca_fraction=0.5)
    data = DigitsDataModule(
        subset=402, val_size=101, batch_size=100 // devices, shuffle=False, with_index=True, pad_shards=False
    )
    settings = {"strategy": strategy, "devices": devices, "precision": "64-true"}
    trainer(folder, max_epochs=-1, callbacks=[SaveRank(folder)], **settings).fit(rule, datamodule=data)


def load(folder: Path, rank: int, world: int) -> dict[str, Tensor]:
    result: dict[str, Tensor] = torch.load(folder / f"rank{rank}of{world}.pt")
    return result


def predict_spawned(folder: Path) -> None:
    """Predict the digits' test set on two processes and write the rows to ``folder/predictions.csv``."""
    rule = Backprop(num_classes=10, input_shape=(1, 8, 8))
    writer = PredictionWriter(str(folder / "predictions.csv"))
    run = trainer(folder, strategy="ddp_spawn", devices=2, callbacks=[writer])
    run.predict(rule, datamodule=DigitsDataModule(eval_batch_size=50), return_predictions=False)


def train_quaternion(folder: Path, strategy: str) -> None:
    """Two epochs of attitude prediction, the last batches uneven."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    rule = QuaternionBackprop(
        network=EquivariantMLP(32, hidden_dims=(16,)).double(),
        loss="unit_mse",
        task="regression",
        optimizer=partial(QuaternionAdam, lr=1e-2),
    )
    data = AttitudeDataModule(num_train=110, val_size=10, batch_size=20 // devices, test_size=20, shuffle=False)
    run = trainer(
        folder,
        max_epochs=2,
        devices=devices,
        strategy=strategy,
        precision="64-true",
        callbacks=[SaveRank(folder), AttitudeError()],
    )
    run.fit(rule, datamodule=data)


def train_dynamical(folder: Path, strategy: str, method: str) -> None:
    """A network of oscillators from windows whose number is odd, on one process or two."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    options: dict[str, Any] = {}
    if method == "alternation":
        options = {"local": partial(LocalDynamics, hidden_dims=(8,)), "initial_epochs": 1, "l1": 0.1}
    rule = DynamicalNetworkBackprop(method=method, num_steps=6, **options)
    data = CoupledOscillatorsDataModule(
        **{"num_nodes": 4, "density": 0.5, "num_steps": 154, "num_trajectories": 3, "transient": 200, "horizon": 30},
        **{"window": 10, "batch_size": 20 // devices, "pad_shards": False, "shuffle": False},
    )
    run = trainer(
        folder, max_epochs=3, devices=devices, strategy=strategy, precision="64-true", callbacks=[SaveRank(folder)]
    )
    run.fit(rule, datamodule=data)


def train_spiking(folder: Path, strategy: str) -> None:
    """Two epochs of a spiking network that scales its weights on the first batch, the last batches uneven."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    rule = SpikeTimingBackprop(
        # A bound that is felt: it is that of a sample, in however many processes.
        network=partial(SpikingMLP, hidden_dims=(20,), tau_v=1.0, tau_i=0.5, p_max=0.5, delays=True, learn_tau=True),
        num_classes=3,
        input_shape=(1, 2, 3),
        spike_penalty=0.1,
        optimizer=partial(torch.optim.SGD, lr=1e-3),
    )
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "precision": "64-true"}
    run = trainer(folder, max_epochs=2, callbacks=[SaveRank(folder)], **settings)
    run.fit(rule, datamodule=ShardedBlobs())


def train_hamiltonian(folder: Path, strategy: str) -> None:
    """Two epochs of coupled oscillators, the last batches uneven."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    rule = HamiltonianEcho(
        network=partial(DuffingClassifier, hidden_units=4),
        num_classes=3,
        input_shape=(1, 2, 3),
        optimizer=partial(torch.optim.SGD, lr=1e-2),
    )
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "precision": "64-true"}
    run = trainer(folder, max_epochs=2, callbacks=[SaveRank(folder)], **settings)
    run.fit(rule, datamodule=ShardedBlobs())


def train_self_learning_machine(folder: Path, strategy: str, **kwargs: Any) -> None:
    """Two epochs of two beams, the last batches uneven."""
    devices = 1 if strategy == "auto" else 2
    torch.manual_seed(0)
    rule = SelfLearningMachine(
        network=partial(TwoBeamNetwork, system=TwoFieldNLSE((6, 6)), n_steps=10),
        num_classes=3,
        input_shape=(1, 2, 3),
        loss="cross_entropy",
        **kwargs,
    )
    settings = {"strategy": strategy, "devices": devices, "use_distributed_sampler": False, "precision": "64-true"}
    run = trainer(folder, max_epochs=2, callbacks=[SaveRank(folder)], **settings)
    run.fit(rule, datamodule=ShardedBlobs())
