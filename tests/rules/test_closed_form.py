"""The base of rules that are solved: stages, samples that must count once, what is refused and what warned of."""

import math
import warnings

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import blobs, loader, trainer

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional.ridge import ridge_solve, ridge_statistics
from lightning_nobp.metrics import NormalEquations
from lightning_nobp.nn import Readout
from lightning_nobp.rules import ClosedFormRule


class TwoStages(ClosedFormRule):
    """Ridge regression of the pixels, then of the squared pixels on what is left."""

    def __init__(self, *, ridge: float = 1e-2, **kwargs):
        super().__init__(network=TwoReadouts, **kwargs)
        self.ridge = ridge

    @property
    def num_stages(self):
        return 2

    def make_statistics(self):
        return {"sums": NormalEquations(math.prod(self.input_shape), self.num_classes)}

    def accumulate(self, batch):
        x, target = batch[:2]
        wanted = nn.functional.one_hot(target, self.num_classes) - self(x)
        features = x.flatten(1) if self.stage == 0 else x.flatten(1).square()
        self.statistic("sums").update(features, wanted)
        return {"loss": self.loss_function(self(x), target)}

    def solve(self):
        found = ridge_solve(self.statistic("sums").compute(), self.ridge)
        (self.network.first if self.stage == 0 else self.network.second).fit(found)
        return {"weight": float(found.weight.norm())}

    def restart(self):
        for readout in self.network.children():
            nn.init.zeros_(readout.weight)
            nn.init.zeros_(readout.bias)


class TwoReadouts(nn.Module):
    def __init__(self, input_shape, num_classes):
        super().__init__()
        self.first, self.second = (Readout(math.prod(input_shape), num_classes) for _ in range(2))

    def forward(self, x):
        return self.first(x.flatten(1)) + self.second(x.flatten(1).square())


def rule(**kwargs):
    return TwoStages(**{"num_classes": 3, "input_shape": (1, 2, 3)} | kwargs)


def expected_scores(x, target):
    pixels, wanted = x.flatten(1).double(), nn.functional.one_hot(target, 3).double()
    first = ridge_solve(ridge_statistics(pixels, wanted), 1e-2)
    scores = pixels @ first.weight + first.bias
    second = ridge_solve(ridge_statistics(pixels.square(), wanted - scores), 1e-2)
    return scores + pixels.square() @ second.weight + second.bias


def test_a_stage_an_epoch_and_an_end(tmp_path):
    module, run = rule(), trainer(tmp_path, max_epochs=-1)
    run.fit(module, loader())
    x, target = blobs().tensors
    torch.testing.assert_close(module(x).double(), expected_scores(x, target), rtol=1e-4, atol=1e-5)
    assert (module.stage, run.current_epoch, run.global_step) == (2, 2, 12)
    assert float(run.callback_metrics["train/weight_epoch"]) == pytest.approx(module.solution["weight"])


def test_too_few_epochs_solve_the_first_stages(tmp_path):
    module = rule()
    trainer(tmp_path, max_epochs=1).fit(module, loader())
    assert module.stage == 1
    assert module.network.first.weight.abs().sum() > 0
    assert module.network.second.weight.abs().sum() == 0


def test_going_on_after_the_last_stage_changes_nothing(tmp_path):
    module = rule()
    run = trainer(tmp_path, max_epochs=-1)
    run.fit(module, loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    again, more = rule(), trainer(tmp_path, max_epochs=9)
    more.fit(again, loader(), ckpt_path=tmp_path / "end.ckpt")
    assert more.global_step == 12
    assert torch.equal(again.network.second.weight, module.network.second.weight)
    assert again.compute_gradients(next(iter(loader()))) == {}


def test_what_was_solved_is_forgotten_by_a_new_fit(tmp_path):
    module = rule()
    for _ in range(2):
        trainer(tmp_path, max_epochs=-1).fit(module, loader())
        x, target = blobs().tensors
        torch.testing.assert_close(module(x).double(), expected_scores(x, target), rtol=1e-4, atol=1e-5)


def test_values_that_are_not_finite(tmp_path):
    x, target = blobs().tensors
    spoilt = x.clone()
    spoilt[40] = float("nan")
    data = DataLoader(TensorDataset(spoilt, target), batch_size=16)
    with pytest.raises(FloatingPointError, match=r"TwoStages: inputs of a batch are not finite.*on_nonfinite='skip'"):
        trainer(tmp_path).fit(rule(), data)
    module = rule(on_nonfinite="skip")
    run = trainer(tmp_path, max_epochs=-1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(module, data)
    kept = torch.arange(96) // 16 != 2
    torch.testing.assert_close(module(x[kept]).double(), expected_scores(x[kept], target[kept]), rtol=1e-4, atol=1e-5)
    assert float(run.callback_metrics["train/skipped_steps"]) == 2


def test_a_last_batch_that_is_skipped_still_ends_the_stage(tmp_path):
    x, target = blobs().tensors
    spoilt = x.clone()
    spoilt[-1] = float("inf")
    module = rule(on_nonfinite="skip")
    trainer(tmp_path, max_epochs=-1).fit(module, DataLoader(TensorDataset(spoilt, target), batch_size=16))
    assert module.stage == 2


def test_samples_that_count_twice_are_refused(tmp_path):
    class Repeating(torch.utils.data.Sampler):
        def __len__(self):
            return 98

        def __iter__(self):
            return iter([*range(96), 0, 1])

    data = DataLoader(blobs(), batch_size=16, sampler=Repeating())
    with pytest.raises(MisconfigurationException, match=r"98 samples were summed .* there are 96.*pad_shards=False"):
        trainer(tmp_path).fit(rule(), data)


def test_samples_that_are_left_out_are_warned_of(tmp_path):
    for limit in (1, 2, 0.5):
        with pytest.warns(UserWarning, match="limited training batches: the weights are those of a part"):
            trainer(tmp_path, limit_train_batches=limit).fit(rule(), loader())
    with pytest.warns(UserWarning, match="drop_last=True: the weights are those without the samples dropped"):
        trainer(tmp_path).fit(rule(), loader(batch_size=20, drop_last=True))
    digits = DigitsDataModule(drop_last=True, batch_size=100, subset=450, val_size=100)
    with pytest.warns(UserWarning, match="drop_last=True"):
        trainer(tmp_path).fit(TwoStages(), datamodule=digits)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module="lightning")
        trainer(tmp_path, max_epochs=-1).fit(rule(), loader())


def test_no_batch_no_solution(tmp_path):
    with pytest.raises(RuntimeError, match="no batch was summed in this stage"):
        rule().end_stage()
    module = rule()
    trainer(tmp_path, max_epochs=-1).fit(module, loader())
    with pytest.raises(RuntimeError, match="all 2 stages are solved"):
        module.end_stage()


def test_too_few_epochs_are_told(tmp_path):
    with pytest.warns(UserWarning, match=r"max_epochs=1 are enough for 1 of the 2 stages: give max_epochs=-1"):
        trainer(tmp_path, max_epochs=1).fit(rule(), loader())


def test_sums_of_another_stage_are_refused():
    here, there = rule(), rule()
    batch = blobs().tensors
    here.compute_gradients(batch)
    sums = here.contribution(batch)
    assert int(sums["samples"]["count"]) == 96
    there.compute_gradients(batch)
    there.end_stage()
    with pytest.raises(ValueError, match=r"at stage 0, not of .* at stage 1: both sites"):
        there.merge(sums)


def test_a_site_merges_in_the_middle_of_a_fit(tmp_path):
    x, target = blobs().tensors
    other = rule()

    class Merge(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                other.stage = pl_module.stage
                other.load_state_dict(pl_module.state_dict())
                pl_module.merge(other.contribution((x[48:], target[48:])))

    module = rule()
    half = DataLoader(TensorDataset(x[:48], target[:48]), batch_size=16)
    trainer(tmp_path, max_epochs=-1, callbacks=[Merge()]).fit(module, half)
    torch.testing.assert_close(module(x).double(), expected_scores(x, target), rtol=1e-4, atol=1e-5)


def test_a_run_resumed_with_larger_batches_is_warned(tmp_path):
    def digits(batch_size):
        return DigitsDataModule(batch_size=batch_size, subset=450, val_size=100)

    saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer(tmp_path, callbacks=[saved], enable_checkpointing=True).fit(TwoStages(), datamodule=digits(50))
    with pytest.warns(UserWarning, match=r"200 of 350 samples were summed.*needs the batch size"):
        trainer(tmp_path).fit(TwoStages(), datamodule=digits(100), ckpt_path=tmp_path / "step=3.ckpt")


def test_a_fit_that_ends_inside_a_stage_says_so(tmp_path):
    with pytest.warns(UserWarning, match="ended inside stage 0 of 2, which is not solved"):
        trainer(tmp_path, max_epochs=-1, max_steps=3).fit(rule(), loader())


def test_products_are_exact_and_the_setting_comes_back(tmp_path):
    seen = []

    class Watch(TwoStages):
        def accumulate(self, batch):
            seen.append((torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32))
            return super().accumulate(batch)

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    try:
        Watch(num_classes=3, input_shape=(1, 2, 3)).compute_gradients(blobs().tensors)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before[0])
    assert seen == [("highest", False)]
    assert torch.backends.cudnn.allow_tf32 is before[1]


def test_what_has_no_gradient_takes_no_optimizer():
    with pytest.raises(TypeError, match="unexpected keyword argument 'optimizer'"):
        rule(optimizer=torch.optim.SGD)


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(
        MisconfigurationException, match=r"precision='bf16-mixed'.: TwoStages supports 32-true, 64-true"
    ):
        trainer(tmp_path, precision="bf16-mixed").fit(rule(), loader())


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (
            (torch.zeros(4, 1, 3, 2), torch.zeros(4, dtype=torch.int64)),
            r"shape \(1, 3, 2\) do not fit input_shape=\(1, 2, 3\)",
        ),
        ((torch.zeros(4, 1, 2, 3).byte(), torch.tensor([0, 1, 2, 2])), "type torch.uint8 do not fit the weights'"),
        ((torch.zeros(4, 1, 2, 3), torch.tensor([0, 1, 2, 3])), "targets from 0 to 3 do not fit num_classes=3"),
        ((torch.zeros(4, 1, 2, 3), torch.tensor([0, 1, 2, -1])), "targets from -1 to 2 do not fit"),
    ],
)
def test_every_batch_is_looked_at_before_it_is_summed(batch, message):
    module, good = rule(), blobs().tensors
    module.compute_gradients(good)
    before = {name: sums.clone() for name, sums in module.statistic("sums").sums().items()}
    with pytest.raises(ValueError, match=message):
        module.compute_gradients(batch)
    after = module.statistic("sums").sums()
    assert all(torch.equal(after[name], sums) for name, sums in before.items())
