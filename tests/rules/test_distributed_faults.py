"""What goes wrong on one process ends all of them, each with an error that says what it was."""

import signal

import pytest
import torch
from faulty_ranks import results_in, run_forked

from lightning_nobp.rules import synchronisation


def assert_all_say(outcome, *parts):
    assert not outcome.hung
    assert outcome.exit_codes == [1, 1], outcome.output
    for error in outcome.errors:
        assert all(part in error for part in parts), error


def test_a_killed_process_ends_the_other_and_the_checkpoints_load(tmp_path):
    outcome = run_forked(tmp_path, 2, fault="SIGKILL")
    assert not outcome.hung
    assert outcome.exit_codes == [1, -signal.SIGKILL]
    assert "rank 0 of 2 has lost another process of this run" in outcome.errors[0]
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert [file.name for file in saved] == ["step=1.ckpt", "step=2.ckpt", "step=3.ckpt"]
    for file in saved:
        assert torch.load(file, weights_only=True)["state_dict"]


def test_a_process_that_hangs_ends_the_other_after_the_time_out(tmp_path):
    outcome = run_forked(tmp_path, 2, fault="SIGSTOP", timeout=2)
    assert not outcome.hung
    assert "did not answer within DDPStrategy(timeout=...)" in outcome.errors[0]
    assert "2000ms" in outcome.errors[0]


@pytest.mark.parametrize("fault", ["error in the data", "error in a callback"])
def test_an_exception_on_one_rank_ends_both(tmp_path, fault):
    outcome = run_forked(tmp_path, 2, fault=fault)
    assert not outcome.hung
    assert outcome.exit_codes == [1, 1]
    assert "has lost another process" in outcome.errors[0]
    assert outcome.errors[1] in ("OSError: the disk is gone", "ArithmeticError: this callback fails")


def test_a_batch_that_one_rank_refuses_is_refused_by_all(tmp_path):
    outcome = run_forked(tmp_path, 2, name="ForwardForward", fault="nan in data", step=0)
    assert_all_say(outcome, "ValueError", "inputs with values that are not finite: check the data")
    assert "ValueError: rank 1: inputs" in outcome.errors[0]


@pytest.mark.parametrize(
    ("name", "fault", "place"),
    [
        ("Backprop", "nan in data", "at step 3, from rank 1: the loss"),
        ("Backprop", "nan in weights", "at step 3, from rank 1: the loss"),
        ("Backprop", "nan in gradients", "at step 3, from rank 1: network.1.weight."),
        ("MultiplexedGradientDescent", "nan in data", "at update 3, from rank 1: the cost"),
        ("ResidualCompensation", "nan in data", "at step 3, from rank 1."),
        ("HamiltonianEcho", "nan in data", "at step 3, from rank 1 (network.layer, of a DuffingNetwork: the state"),
    ],
)
def test_numbers_of_one_rank_that_are_not_finite_are_refused_by_all(tmp_path, name, fault, place):
    assert_all_say(run_forked(tmp_path, 2, name=name, fault=fault), f"FloatingPointError: {name}:", place)


@pytest.mark.parametrize("name", ["Backprop", "ResidualCompensation", "HamiltonianEcho"])
def test_a_step_that_is_skipped_is_skipped_by_all(tmp_path, name):
    outcome = run_forked(tmp_path, 2, name=name, fault="nan in data", on_nonfinite="skip")
    assert outcome.exit_codes == [0, 0], outcome.errors
    first, second = results_in(tmp_path, 2)
    assert first["skipped"] == second["skipped"] == 1
    assert torch.equal(first["weights"], second["weights"])
    assert first["weights"].isfinite().all()


def test_shards_of_different_lengths_are_refused_at_the_start(tmp_path):
    outcome = run_forked(tmp_path, 2, odd={"batches": 4})
    assert_all_say(outcome, "batches of an epoch: 6 on rank 0, 4 on rank 1", "limit_train_batches")
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_shard_of_unknown_length_that_ends_before_the_others_is_noticed(tmp_path):
    outcome = run_forked(tmp_path, 2, odd={"batches": 4}, stream=True)
    assert_all_say(outcome, "whether batch 3 is the last: False on rank 0, True on rank 1")


@pytest.mark.parametrize(
    ("odd", "difference"),
    [
        ({"lr": 0.1}, "rule.optimizer.init_args.lr: 0.05 on rank 0, 0.1 on rank 1"),
        ({"hidden": 9}, "parameter network.1.weight: (8, 64) torch.float64 on rank 0, (9, 64) torch.float64 on rank 1"),
        ({"name": "SparseProp"}, "rule: lightning_nobp.rules.backprop.Backprop on rank 0, lightning_nobp.rules.sparse"),
        ({"on_nonfinite": "skip"}, "rule.on_nonfinite: not given on rank 0, skip on rank 1"),
        ({"max_epochs": 3}, "Trainer(max_epochs): 2 on rank 0, 3 on rank 1"),
        ({"checkpoint_every": 2}, "checkpoint callbacks: "),
    ],
)
def test_configurations_that_differ_are_refused_at_the_start(tmp_path, odd, difference):
    assert_all_say(run_forked(tmp_path, 2, odd=odd), "MisconfigurationException", difference)
    assert not list(tmp_path.glob("*.ckpt"))


def test_ranks_that_resume_from_different_checkpoints_are_refused(tmp_path):
    assert run_forked(tmp_path, 2).exit_codes == [0, 0]
    outcome = run_forked(
        tmp_path / "resumed", 2, ckpt_path=tmp_path / "step=5.ckpt", odd={"ckpt_path": tmp_path / "step=4.ckpt"}
    )
    assert_all_say(outcome, "the step to start from: 5 on rank 0, 4 on rank 1")


def test_errors_that_do_not_speak_of_others_stay_as_they_are():
    def fails(*args):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match=r"^out of memory$"), synchronisation._with_others():
        fails()
