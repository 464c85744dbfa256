"""Trainings on several processes in which one goes wrong, and what came of each.

By :func:`run_forked` nothing watches over the processes, as on several machines; as a script, started by a launcher.
"""

import contextlib
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import sklearn.datasets  # noqa: F401  # once, and not in every process that is forked
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, Dataset, IterableDataset
from toys import weights

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.nn import MLP, DuffingClassifier, ForwardForwardMLP, ResCNet
from lightning_nobp.rules import (
    Backprop,
    HamiltonianEcho,
    LearningRule,
    MultiplexedGradientDescent,
    ResidualCompensation,
    SparseProp,
    SymBa,
)

_MARK = "NOBP_TEST_OF_FAULTS"
"""Environment variable by which the processes of a run are found."""

# As in ddp_training: forked processes need not import everything again.
_FORK = "fork" if sys.platform == "linux" and not torch.cuda.is_available() else "spawn"

BATCHES = 6
"""Of an epoch, on each rank."""


def build(name: str, **kwargs: Any) -> LearningRule:
    """A small rule of that kind for images of 8 x 8 pixels."""
    torch.manual_seed(0)
    hidden = kwargs.pop("hidden", 8)
    kwargs = {"num_classes": 3, "input_shape": (1, 8, 8)} | kwargs
    if name != "ResidualCompensation":
        kwargs["optimizer"] = partial(torch.optim.SGD, lr=kwargs.pop("lr", 0.05))
    mlp = {"network": partial(MLP, hidden_dims=(hidden,)), "loss": "cross_entropy"}
    rescnet = partial(ResCNet, depth=1, channels=hidden // 2, first_kernel_size=3, pooling={"crelu_mean": 2})
    make: dict[str, Any] = {
        "Backprop": partial(Backprop, **mlp),
        "ForwardForward": partial(
            SymBa, network=partial(ForwardForwardMLP, hidden_dims=(hidden, 7)), negatives="argmax"
        ),
        "MultiplexedGradientDescent": partial(MultiplexedGradientDescent, **mlp, num_perturbations=2),
        "SparseProp": partial(SparseProp, **mlp, sparsity=0.5),
        "ResidualCompensation": partial(ResidualCompensation, network=rescnet, cache="none"),
        "HamiltonianEcho": partial(
            HamiltonianEcho, network=partial(DuffingClassifier, hidden_units=hidden // 2, dt=0.1)
        ),
    }
    rule: LearningRule = make[name](**kwargs)
    return rule


class Shard(Dataset[Any]):
    """The batches of a rank; reading number ``broken`` fails."""

    def __init__(self, rank: int, length: int, broken: int | None = None) -> None:
        self.rank, self.length, self.broken = rank, length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        if number >= self.length:
            raise IndexError(number)
        if number == self.broken:
            raise OSError("the disk is gone")
        generator = torch.Generator().manual_seed(1000 * self.rank + number)
        target = torch.arange(9) % 3
        x = torch.randn(9, 1, 8, 8, generator=generator) + target.view(-1, 1, 1, 1)
        return x, target


class Stream(IterableDataset[Any]):
    """The same batches, and nobody knows how many."""

    def __init__(self, shard: Shard) -> None:
        self.shard = shard

    def __iter__(self) -> Any:
        return (self.shard[number] for number in range(len(self.shard)))


class Fault(L.Callback):
    """Does something to one rank before one step."""

    def __init__(self, kind: str | None, step: int, victim: int) -> None:
        self.kind, self.step, self.victim = kind, step, victim

    def on_train_batch_start(self, trainer: L.Trainer, rule: L.LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank != self.victim or trainer.global_step != self.step:
            return
        # Once: a launcher that starts all again shall succeed.
        if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0":
            return
        if self.kind in ("SIGKILL", "SIGSTOP", "SIGTERM"):
            os.kill(os.getpid(), getattr(signal, self.kind))
        if self.kind == "error in a callback":
            raise ArithmeticError("this callback fails")
        if self.kind == "nan in data":
            batch[0].fill_(torch.nan)
        if self.kind == "nan in weights":
            next(rule.parameters()).data.fill_(torch.nan)
        if self.kind == "nan in gradients":
            _spoil_gradients(rule)


def _spoil_gradients(rule: Any) -> None:
    original = rule.compute_gradients

    def spoilt(batch: Any) -> Any:
        values = original(batch)
        next(p for p in rule.parameters() if p.grad is not None).grad.flatten()[0] = torch.inf
        return values

    rule.compute_gradients = spoilt


class Watched(L.Trainer):
    """Notes each process, and with what it ended, in ``default_root_dir``."""

    def _run(self, *args: Any, **kwargs: Any) -> Any:
        own = Path(self.default_root_dir) / f"rank{self.global_rank}"
        own.with_suffix(".pid").write_text(str(os.getpid()))
        try:
            result = super()._run(*args, **kwargs)
        except BaseException as error:
            own.with_suffix(".error").write_text(f"{type(error).__name__}: {error}")
            raise
        rule: Any = self.lightning_module
        found = {"weights": weights(rule), "steps": self.global_step, "skipped": rule._skipped_steps}
        torch.save(found, own.with_suffix(".pt"))
        return result


def train(
    folder: Path,
    name: str = "Backprop",
    world: int = 2,
    strategy: str = "popen",
    fault: str | None = None,
    step: int = 3,
    victim: int = 1,
    batches: int = BATCHES,
    stream: bool = False,
    digits: bool = False,
    timeout: float = 1800,
    ckpt_path: Path | None = None,
    resume: bool = False,
    checkpoint_every: int = 1,
    **kwargs: Any,
) -> None:
    """Two epochs, in which ``fault`` happens once to rank ``victim`` before step ``step``.

    With ``resume`` they go on from the newest whole checkpoint in ``folder``.
    """
    torch.set_num_threads(1)
    trainer_options = {key: kwargs.pop(key) for key in ("max_epochs", "limit_train_batches") if key in kwargs}
    rule = build(name, **({"num_classes": 10} if digits else {}), **kwargs)
    saved = ModelCheckpoint(folder, every_n_train_steps=checkpoint_every, save_top_k=-1, filename="{step}")
    options: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "devices": world,
        "strategy": DDPStrategy(start_method=strategy, timeout=timedelta(seconds=timeout)),
        "max_epochs": -1 if name == "ResidualCompensation" else 2,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "log_every_n_steps": 2,
        "precision": "64-true",
        "callbacks": [saved, Fault(fault, step, victim)],
    }
    trainer = Watched(**options | trainer_options)
    data: L.LightningDataModule = Sharded(batches, stream, step if fault == "error in the data" else None, victim)
    if digits:
        data = DigitsDataModule(batch_size=20, subset=301, val_size=101, pad_shards=name != "ResidualCompensation")
    trainer.fit(rule, datamodule=data, ckpt_path=newest_whole(folder) if resume else ckpt_path)


def newest_whole(folder: Path) -> Path | None:
    """The checkpoint of the latest step that can be read."""
    for file in sorted(folder.glob("step=*.ckpt"), key=lambda file: int(file.stem[5:].partition("-")[0]), reverse=True):
        try:
            torch.load(file, weights_only=True)
        except Exception:  # whatever it is that a broken file leads to
            continue
        return file
    return None


class Sharded(L.LightningDataModule):
    """A shard for each rank."""

    def __init__(self, batches: int, stream: bool, broken: int | None, victim: int) -> None:
        super().__init__()
        self.batches, self.stream, self.broken, self.victim = batches, stream, broken, victim

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        rank = self.trainer.global_rank
        shard = Shard(rank, self.batches, self.broken if rank == self.victim else None)
        return DataLoader(Stream(shard) if self.stream else shard, batch_size=None)

    def val_dataloader(self) -> Any:
        assert self.trainer is not None
        return DataLoader(Shard(self.trainer.global_rank, 2), batch_size=None)


@dataclass
class Outcome:
    """What came of the processes of a training."""

    seconds: float
    hung: bool
    left_over: int
    exit_codes: list[int | None]
    errors: list[str] = field(default_factory=list)
    """By rank; '' where a process ended without one, or could tell none."""
    output: str = ""


def run_forked(
    folder: Path, world: int, odd: dict[str, Any] | None = None, limit: float = 60, **options: Any
) -> Outcome:
    """:func:`train` on so many processes that nothing watches over; the last is the victim of faults.

    Args:
        folder: For what they write.
        world: Number of processes.
        odd: Options of the last rank alone.
        limit: Seconds after which a process hangs; it is then killed.
        **options: Of :func:`train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context, port, start = multiprocessing.get_context(_FORK), _free_port(), time.monotonic()
    options = {"world": world, "victim": world - 1} | options
    own = [options] * (world - 1) + [options | (odd or {})]
    processes = [context.Process(target=_one_rank, args=(folder, rank, port, own[rank])) for rank in range(world)]
    for process in processes:
        process.start()
    # One that is stopped cannot end.
    awaited = processes[:-1] if options.get("fault") == "SIGSTOP" else processes
    for process in awaited:
        process.join(max(0.0, start + limit - time.monotonic()))
    seconds, hanging = time.monotonic() - start, [process for process in awaited if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    output = "\n".join(file.read_text() for file in sorted(folder.glob("*.log")))
    codes = [process.exitcode for process in processes]
    return Outcome(seconds, bool(hanging), len(hanging), codes, errors_in(folder, world), output)


def run_launched(
    folder: Path,
    launcher: str,
    world: int,
    odd: dict[str, Any] | None = None,
    limit: float = 120,
    max_restarts: int = 0,
    **options: Any,
) -> Outcome:
    """The same by a launcher.

    Args:
        folder: For what they write.
        launcher: ``'ddp'``, ``'ddp_spawn'`` or ``'torchrun'``.
        world: Number of processes.
        odd: Options of the last rank alone.
        limit: Seconds after which whoever is left is killed.
        max_restarts: Of torchrun.
        **options: Of :func:`train`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = {
        "world": world,
        "victim": world - 1,
        "strategy": "spawn" if launcher == "ddp_spawn" else "popen",
    } | options
    command = [sys.executable]
    if launcher == "torchrun":
        # By address: a machine's own name need not resolve.
        command += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
        command += [f"--nproc-per-node={world}", f"--max-restarts={max_restarts}"]
    command += [__file__, str(folder), json.dumps(options), json.dumps(odd or {})]
    environment = os.environ | {"OMP_NUM_THREADS": "1", _MARK: str(folder)}
    if max_restarts:
        # Torch would read addresses of the processes before: github.com/pytorch/pytorch/issues/135712.
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    start = time.monotonic()
    with (folder / "output.log").open("w") as log:
        run = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        try:
            run.wait(limit)
        except subprocess.TimeoutExpired:
            hung = True
        else:
            hung = False
        # Ranks that a launcher does not wait for may need a moment more.
        while (left := _marked(folder)) and time.monotonic() < start + limit:
            time.sleep(0.1)
    seconds = time.monotonic() - start
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    code = run.wait()
    return Outcome(seconds, hung, len(left), [code], errors_in(folder, world), (folder / "output.log").read_text())


def _marked(folder: Path) -> list[int]:
    """Processes that live, and were started for ``folder``."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        # Of a process that has ended in the meantime, or waits for being reaped, there is nothing to read.
        with contextlib.suppress(OSError):
            if f"{_MARK}={folder}".encode() in environment.read_bytes().split(b"\0"):
                found.append(int(environment.parent.name))
    return found


def _one_rank(folder: Path, rank: int, port: int, options: dict[str, Any]) -> None:
    sys.stdout = sys.stderr = (folder / f"rank{rank}.log").open("w")
    for descriptor in (1, 2):
        os.dup2(sys.stdout.fileno(), descriptor)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    train(folder, **options)
    # A process that ends with threads of its group still running is aborted now and then.
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def errors_in(folder: Path, world: int) -> list[str]:
    """What each rank said at its end."""
    files = [folder / f"rank{rank}.error" for rank in range(world)]
    return [file.read_text() if file.exists() else "" for file in files]


def results_in(folder: Path, world: int) -> list[dict[str, Any]]:
    """Weights and steps of the ranks that came to their end."""
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(world)]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    options, odd = json.loads(sys.argv[2]), json.loads(sys.argv[3])
    is_odd = int(os.environ.get("LOCAL_RANK", 0)) == options["world"] - 1
    train(Path(sys.argv[1]), **options | (odd if is_odd else {}))
