"""Killed and resumed.

A training of each rule is killed (SIGKILL) at random moments, while it trains, while it validates and while it saves a
checkpoint, and the same command, ``nobp fit ... --ckpt_path last-good``, goes on each time. In the end weights, state
of the optimizer and of its schedule, and the state of all random generators must be those of a training that nobody
killed, bit for bit, on one thread; and at no moment may a file called ``*.ckpt`` be incomplete. Trainings that ended
before they were killed often enough begin anew.

The second table counts SIGTERM and Ctrl+C (SIGINT), after which a training ends by itself with its state saved.
"""

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from killing import PHASES, live, moments
from limits import time_limit

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.cli.checkpoints import resolve

pytestmark = pytest.mark.reliability

RECIPES = {
    "digits/backprop": (10, "--trainer.max_epochs=6"),
    "digits/forward_forward": (10, "--trainer.max_epochs=4"),
    "digits/symba": (10, "--trainer.max_epochs=4"),
    "digits/mgd": (2, "--trainer.max_epochs=30"),
    "digits/sparseprop": (10, "--trainer.max_epochs=5"),
    "digits/hamiltonian_echo": (10, "--trainer.max_epochs=5"),
    "digits/quaternion": (10, "--trainer.max_epochs=4"),
    "digits/spiking": (10, "--trainer.max_epochs=2"),
    "digits/residual_compensation": (1,),
    "digits/pcanet": (1,),
    "lorenz16/dynamical_network": (1,),
    "lorenz16/dynamical_network_alternation": (5, "--trainer.max_epochs=2"),
    "xor/self_learning_machine": (5, "--trainer.max_epochs=1"),
}
"""Steps from one checkpoint to the next, and options that shorten the recipe."""


@pytest.fixture(scope="module", params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def command(recipe: str, root: Path) -> list[str]:
    every, *options = RECIPES[recipe]
    return [
        *("fit", f"--config={recipe}", f"--trainer.default_root_dir={root}", "--ckpt_path=last-good", *options),
        *(f"--checkpoint.every_n_train_steps={every}", "--checkpoint.monitor=null", "--checkpoint.save_top_k=1"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]


def result(recipe: str, root: Path) -> dict[str, Any]:
    """What a training leaves behind that shapes its future."""
    content = load_checkpoint(resolve("last", recipe, [root]))
    names = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")
    found = {name: content[name] for name in names}
    return found | {"random": content["lightning_nobp"]["random_states"]}


@pytest.fixture(scope="module")
def uninterrupted(recipe: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], float]:
    """The result of a training that nobody kills, and how many seconds it took."""
    torch.set_num_threads(1)
    root, start = tmp_path_factory.mktemp("whole"), time.monotonic()
    end = live(command(recipe, root), root / "log.txt")
    assert end.status == 0, (root / "log.txt").read_text()
    return result(recipe, root), time.monotonic() - start


def equal(one: Any, other: Any) -> bool:
    """Bit for bit, all the way down."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(value, other[key]) for key, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


def check_files(root: Path) -> int:
    """How many checkpoints there are; each must be whole."""
    files = list(root.rglob("*.ckpt"))
    for file in files:
        load_checkpoint(file)
    return len(files)


def test_a_training_killed_again_and_again_ends_like_one_that_was_not(
    recipe, uninterrupted, tmp_path, count, repetitions
):
    expected, seconds = uninterrupted
    wanted, killed, checked, trainings = repetitions(20), dict.fromkeys(PHASES, 0), 0, 0
    source = moments(seed=0, spread=seconds / 8)
    with time_limit(3600):
        # One that is over in no time may end before any signal reaches it.
        for number in range(5 * wanted):
            if sum(killed.values()) == wanted:
                break
            root = tmp_path / str(number)
            root.mkdir()
            while True:
                moment = next(source) if sum(killed.values()) < wanted else None
                end = live(command(recipe, root), root / "log.txt", moment)
                checked += check_files(root)
                if end.phase is None:
                    break
                assert end.status == -signal.SIGKILL, (root / "log.txt").read_text()
                killed[end.phase] += 1
            assert end.status == 0, (root / "log.txt").read_text()
            assert equal(result(recipe, root), expected)
            trainings += 1
    count(
        "SIGKILL",
        recipe=recipe,
        **{f"killed_{phase}": number for phase, number in killed.items()},
        trainings_that_ended=trainings,
        equal_bit_for_bit=trainings,
        checkpoints_checked=checked,
        incomplete=0,
    )
    assert sum(killed.values()) == wanted


def test_a_training_that_is_told_to_stop_saves_its_state(recipe, uninterrupted, tmp_path, count, repetitions):
    expected, seconds = uninterrupted
    for signum, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        stopped = resumed = 0
        wanted, source = repetitions(3), moments(seed=int(signum), spread=seconds / 4)
        for number in range(5 * wanted):
            root = tmp_path / f"{signum}-{number}"
            root.mkdir()
            end = live(command(recipe, root), root / "log.txt", next(source), signum)
            if end.status == 0:
                continue  # It came too late.
            assert end.status == status, (root / "log.txt").read_text()
            stopped += 1
            assert check_files(root)
            assert live(command(recipe, root), root / "log.txt").status == 0
            assert equal(result(recipe, root), expected)
            resumed += 1
            if stopped == wanted:
                break
        count(
            "Signals that ask to stop", recipe=recipe, signal=signum.name, stopped=stopped, equal_when_resumed=resumed
        )
