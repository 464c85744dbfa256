"""Faults on one of several processes.

Trainings on 2 and 4 processes with gloo, of rules of six kinds, in which one process goes wrong: it is killed
(``SIGKILL``) or stopped (``SIGSTOP``), an exception rises in its data or in a callback, its data or gradients hold
numbers that are not finite, its loader is shorter than the others', or its configuration is another. Each process must
end, with an error that says what it was: all with the same one where they can still talk to each other, and with "has
lost another process" where they cannot. No process may hang (each run has a limit of 60 seconds, of 150 under a
launcher) or be left over, and the checkpoints written so far must load.

Without a launcher nothing watches over the processes, as on several machines. Lightning's launchers (``ddp``,
``ddp_spawn``) and ``torchrun`` end what still runs. With ``on_nonfinite='skip'`` all processes must leave out the same
step and end with the same weights. A run that was killed in the middle of an epoch must end with the weights of a run
that was not, bit for bit, when it is started again with its newest whole checkpoint: by hand, also if the newest file
was cut short, and by ``torchrun --max-restarts=1``. For a rule that is solved from sums, equal to rounding (1e-9, in
double precision) is enough: a checkpoint keeps the sum over all processes, not that of each.
"""

import re
import signal

import pytest
import torch
from faulty_ranks import newest_whole, results_in, run_forked, run_launched

pytestmark = [pytest.mark.reliability, pytest.mark.timeout(3600)]

RULES = (
    *("Backprop", "ForwardForward", "MultiplexedGradientDescent", "SparseProp", "ResidualCompensation"),
    "HamiltonianEcho",
)
NO_GRADIENTS = ("ResidualCompensation",)

LOST = r"has lost another process|Connection closed|Connection reset|Broken pipe|Timed out"
NOT_FINITE = r"FloatingPointError: .* not finite .*from rank {victim}\b"
DIFFER = r"MisconfigurationException: the processes of this run differ in .*{what}.* on rank {victim}\b"

FAULTS = {
    # Options of all and of one process; what the others must say, and what the one itself.
    "killed": ({"fault": "SIGKILL"}, {}, LOST, "^$"),
    "killed before its first step": ({"fault": "SIGKILL", "step": 0}, {}, LOST, "^$"),
    "killed in the second epoch": ({"fault": "SIGKILL", "step": 7}, {}, LOST, "^$"),
    "stopped, time-out of 2 seconds": ({"fault": "SIGSTOP", "timeout": 2}, {}, LOST, "^$"),
    "exception in its data": ({"fault": "error in the data"}, {}, LOST, "OSError: the disk is gone"),
    "exception in a callback": ({"fault": "error in a callback"}, {}, LOST, "ArithmeticError: this callback fails"),
    "NaN in its data": ({"fault": "nan in data"}, {}, NOT_FINITE, NOT_FINITE),
    "NaN in its weights": ({"fault": "nan in weights"}, {}, NOT_FINITE, NOT_FINITE),
    "Inf in its gradients": ({"fault": "nan in gradients"}, {}, NOT_FINITE, NOT_FINITE),
    "fewer batches": ({}, {"batches": 4}, DIFFER, "batches of an epoch"),
    "fewer batches, of unknown number": ({"stream": True}, {"batches": 4}, DIFFER, "batch 3 is the last"),
    "other learning rate": ({}, {"lr": 0.1}, DIFFER, "lr"),
    "other width": ({}, {"hidden": 10}, DIFFER, "parameter"),
    "other option of the rule": ({}, {"on_nonfinite": "skip"}, DIFFER, "on_nonfinite"),
    "other option of the Trainer": ({}, {"max_epochs": 3}, DIFFER, "max_epochs"),
    "other rule": ({}, {"name": "other"}, DIFFER, "rule"),
}
MEANINGLESS = {
    # Solved, without gradients.
    "ResidualCompensation": ("NaN in its weights", "Inf in its gradients", "other learning rate"),
    # Every process makes the gradient anew from numbers that all exchange.
    "MultiplexedGradientDescent": ("Inf in its gradients",),
}


def has_ended_well(outcome, fault, world, folder):
    """Whether each process ended, and said what it must."""
    options, odd, others, own = FAULTS[fault]
    victim = world - 1
    if others == DIFFER:
        others = own = DIFFER.replace("{what}", re.escape(own))
    patterns = [others.replace("{victim}", str(victim))] * victim + [own.replace("{victim}", str(victim))]
    said = [re.search(pattern, error, re.DOTALL) for pattern, error in zip(patterns, outcome.errors, strict=True)]
    expected = {"SIGKILL": -signal.SIGKILL, "SIGSTOP": -signal.SIGKILL}.get(options.get("fault"), 1)
    codes = [1] * victim + [expected]
    steps = options.get("step", 3) if options.get("fault") else 0
    loads = all(torch.load(file, weights_only=True) for file in folder.glob("*.ckpt"))
    enough = bool(odd) or len(list(folder.glob("*.ckpt"))) == steps
    return all(said) and outcome.exit_codes == codes and loads and enough


@pytest.mark.parametrize("world", [2, 4])
def test_without_a_launcher(tmp_path, count, repetitions, world):
    wrong = []
    for fault, (options, odd, *_) in FAULTS.items():
        outcomes = []
        rules = [rule for rule in RULES if fault not in MEANINGLESS.get(rule, ())]
        for rule in rules[: repetitions(len(rules))]:
            folder = tmp_path / f"{fault} {rule}"
            other = "SparseProp" if rule == "Backprop" else "Backprop"
            odd_here = {key: other if value == "other" else value for key, value in odd.items()}
            outcome = run_forked(folder, world, odd=odd_here, name=rule, **options)
            well = has_ended_well(outcome, fault, world, folder)
            outcomes.append((well, outcome))
            if not well or outcome.hung:
                wrong.append((rule, fault, outcome))
        row(count, "Without a launcher", fault, world, outcomes)
    assert not wrong


def row(count, title, fault, world, outcomes, **more):
    count(
        title,
        **more,
        fault=fault,
        processes=world,
        tried=len(outcomes),
        ended_with_a_named_error=sum(well for well, _ in outcomes),
        hung=sum(outcome.hung for _, outcome in outcomes),
        left_over=sum(outcome.left_over for _, outcome in outcomes),
        most_seconds=round(max(outcome.seconds for _, outcome in outcomes), 1),
    )


@pytest.mark.parametrize("launcher", ["ddp", "ddp_spawn", "torchrun"])
def test_under_a_launcher(tmp_path, count, launcher):
    wrong = []
    faults = ["killed", "NaN in its data"]
    # Spawned processes have the configuration of the one that spawns them.
    for fault in faults if launcher == "ddp_spawn" else [*faults, "other learning rate"]:
        options, odd, others, own = FAULTS[fault]
        outcome = run_launched(tmp_path / fault, launcher, 2, odd=odd, limit=150, **options)
        # A launcher may end the others before they can say anything.
        said = "\n".join(outcome.errors) + outcome.output
        expected = others.replace("{what}", own).replace("{victim}", "1")
        well = outcome.exit_codes != [0] and bool(re.search(f"{expected}|SIGKILL|{own}", said))
        row(count, "Under a launcher", fault, 2, [(well, outcome)], launcher=launcher)
        if not well or outcome.hung or outcome.left_over:
            wrong.append((fault, outcome))
    assert not wrong


@pytest.mark.parametrize("world", [2, 4])
def test_a_step_that_is_left_out_is_left_out_by_all(tmp_path, count, world):
    wrong = []
    for rule in RULES:
        tried = 0
        for step in (3,):
            folder = tmp_path / f"{rule} {step}"
            outcome = run_forked(folder, world, name=rule, fault="nan in data", step=step, on_nonfinite="skip")
            tried += 1
            results = results_in(folder, world) if outcome.exit_codes == [0] * world else []
            equal = bool(results) and all(torch.equal(r["weights"], results[0]["weights"]) for r in results)
            if not equal or any(r["skipped"] != 1 or not r["weights"].isfinite().all() for r in results):
                wrong.append((rule, step, outcome))
        failed = sum(name == rule for name, *_ in wrong)
        count("NaN on one process, skipped", rule=rule, processes=world, tried=tried, same_weights=tried - failed)
    assert not wrong


def weights_of(folder, world):
    results = results_in(folder, world)
    assert all(torch.equal(result["weights"], results[0]["weights"]) for result in results)
    return results[0]["weights"]


def are_equal(first, second, rule):
    # A checkpoint holds what all processes had summed as one sum, to which they go on to add: in another order.
    return torch.allclose(first, second, rtol=1e-9, atol=1e-9) if rule in NO_GRADIENTS else torch.equal(first, second)


@pytest.mark.parametrize("world", [2, 4])
def test_killed_and_started_again(tmp_path, count, repetitions, world):
    wrong = []
    for rule in RULES:
        run_forked(tmp_path / rule, world, name=rule, digits=True)
        whole = weights_of(tmp_path / rule, world)
        kills = [(2, 0, False), (6, world - 1, True)][: repetitions(2)]
        for step, victim, cut in kills:
            folder = tmp_path / f"{rule} {step} {victim}"
            killed = run_forked(folder, world, name=rule, digits=True, fault="SIGKILL", step=step, victim=victim)
            newest = newest_whole(folder)
            if cut:
                newest.write_bytes(newest.read_bytes()[:-1000])
            again = run_forked(folder, world, name=rule, digits=True, resume=True)
            if again.exit_codes != [0] * world or not are_equal(weights_of(folder, world), whole, rule):
                wrong.append((rule, step, victim, killed, again))
        equal = len(kills) - sum(name == rule for name, *_ in wrong)
        agreement = "to rounding" if rule in NO_GRADIENTS else "bit for bit"
        count("Killed and started again", rule=rule, processes=world, kills=len(kills), equal=equal, how=agreement)
    assert not wrong


@pytest.mark.parametrize(("world", "victim"), [(2, 1)])
def test_killed_and_started_again_by_torchrun(tmp_path, count, world, victim):
    run_forked(tmp_path / "whole", world, digits=True)
    folder = tmp_path / "killed"
    outcome = run_launched(
        *(folder, "torchrun", world),
        **{"limit": 150, "max_restarts": 1, "digits": True, "resume": True, "fault": "SIGKILL", "victim": victim},
    )
    well = outcome.exit_codes == [0] and torch.equal(weights_of(folder, world), weights_of(tmp_path / "whole", world))
    count(
        "Killed and started again by torchrun --max-restarts=1",
        **{"processes": world, "killed_rank": victim, "equal_bit_for_bit": "yes" if well else "no"},
        **{"left_over": outcome.left_over, "seconds": round(outcome.seconds, 1)},
    )
    assert well, outcome.output
    assert not outcome.left_over
