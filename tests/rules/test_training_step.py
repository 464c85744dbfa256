"""A training step of any rule behaves as one with automatic optimization."""

import math
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.tuner import Tuner
from torch import nn
from toys import backprop, blobs, loader, trainer, weights

from lightning_nobp.rules import Backprop, ClassificationRule, LearningRule


class Automatic(L.LightningModule):
    """The same training by Lightning's automatic optimization: what every test compares with."""

    def __init__(self, rule, scheduler=None):
        super().__init__()
        self.network, self.scheduler = rule.network, scheduler

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.network(batch[0]), batch[1])
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", nn.functional.cross_entropy(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return optimizer if self.scheduler is None else ([optimizer], [self.scheduler(optimizer)])


def both(tmp_path, rule_arguments=None, automatic_arguments=None, **kwargs):
    """Train a rule and its automatic twin alike; returns the two trainers."""
    runs = []
    for automatic in (False, True):
        rule = backprop(**(rule_arguments or {}))
        module = Automatic(rule, **(automatic_arguments or {})) if automatic else rule
        callbacks = [c() for c in kwargs.get("callbacks", [])]
        run = trainer(tmp_path / str(automatic), **kwargs | {"callbacks": callbacks})
        run.fit(module, loader(), loader())
        runs.append(run)
    torch.testing.assert_close(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].global_step == runs[1].global_step
    return runs


def test_weights_and_steps_equal_automatic_optimization(tmp_path):
    runs = both(tmp_path, max_epochs=2)
    assert runs[0].global_step == 12


def test_max_steps(tmp_path):
    assert both(tmp_path, max_steps=7, max_epochs=-1)[0].global_step == 7


def test_overfit_batches(tmp_path):
    assert both(tmp_path, overfit_batches=2, max_epochs=3)[0].global_step == 6


def test_fast_dev_run(tmp_path):
    assert both(tmp_path, fast_dev_run=True)[0].global_step == 1


def test_limit_and_val_check_interval(tmp_path):
    class Validations(L.Callback):
        def __init__(self):
            self.steps = []

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                self.steps.append(trainer.global_step)

    runs = both(tmp_path, limit_train_batches=4, val_check_interval=2, callbacks=[Validations])
    assert runs[0].callbacks[0].steps == runs[1].callbacks[0].steps == [2, 4]


def test_checkpoints_are_written_under_the_same_names(tmp_path):
    for automatic in (False, True):
        module = Automatic(backprop()) if automatic else backprop()
        folder = tmp_path / str(automatic)
        saved = [
            ModelCheckpoint(folder, every_n_train_steps=4, save_top_k=-1),
            ModelCheckpoint(folder, monitor="val/loss", filename="best-{step}"),
        ]
        trainer(tmp_path, max_epochs=2, enable_checkpointing=True, callbacks=saved).fit(module, loader(), loader())
    names = [sorted(p.name for p in (tmp_path / str(a)).glob("*.ckpt")) for a in (False, True)]
    assert names[0] == names[1]
    assert len(names[0]) == 4


def test_early_stopping(tmp_path):
    stop = partial(EarlyStopping, monitor="val/loss", patience=0, min_delta=10.0)
    runs = both(tmp_path, max_epochs=9, callbacks=[stop])
    assert runs[0].current_epoch == runs[1].current_epoch == 2


def test_logged_steps(tmp_path):
    steps = []
    for automatic in (False, True):
        logger = CSVLogger(tmp_path, name=str(automatic))
        module = Automatic(backprop()) if automatic else backprop()
        trainer(tmp_path, logger=logger, log_every_n_steps=5, max_epochs=2).fit(module, loader(), loader())
        rows = (tmp_path / str(automatic) / "version_0" / "metrics.csv").read_text().splitlines()
        columns = rows[0].split(",")
        cells = [dict(zip(columns, row.split(","), strict=True)) for row in rows[1:]]
        steps.append([int(c["step"]) for c in cells if c["train/loss"]])
    assert steps[0] == steps[1] == [4, 9]


def test_logged_names(tmp_path):
    run = trainer(tmp_path)
    run.fit(backprop(), loader(), loader())
    names = {"train/loss", "train/accuracy", "train/loss_epoch", "train/accuracy_epoch", "val/loss", "val/accuracy"}
    assert set(run.callback_metrics) == names
    assert {"train/loss", "train/accuracy", "val/loss", "val/accuracy"} <= set(run.progress_bar_metrics)
    assert set(run.test(run.model, loader(), verbose=False)[0]) == {"test/loss", "test/accuracy"}


def test_epoch_means_and_validation_metrics_are_exact_with_an_uneven_last_batch(tmp_path):
    rule = backprop(optimizer=partial(torch.optim.SGD, lr=0.0))
    run = trainer(tmp_path)
    data = loader(96 + 5)
    run.fit(rule, data, data)
    x, target = blobs(96 + 5).tensors
    scores = rule(x)
    for stage in ("train/{}_epoch", "val/{}"):
        loss, accuracy = (run.callback_metrics[stage.format(name)] for name in ("loss", "accuracy"))
        torch.testing.assert_close(loss, nn.functional.cross_entropy(scores, target).detach())
        torch.testing.assert_close(accuracy, (scores.argmax(-1) == target).float().mean())


@pytest.mark.parametrize("num_samples", [96, 96 + 7])
def test_accumulated_batches_equal_their_joined_batch(tmp_path, num_samples):
    rules = []
    for batch_size, accumulate in ((16, 1), (4, 4), (8, 2)):
        rule = backprop(accumulate_grad_batches=accumulate, optimizer=partial(torch.optim.Adam, lr=0.01)).double()
        run = trainer(tmp_path, max_epochs=2, precision="64-true")
        run.fit(rule, loader(num_samples, batch_size))
        assert run.global_step == 2 * math.ceil(num_samples / 16)
        rules.append(rule)
    for rule in rules[1:]:
        torch.testing.assert_close(weights(rule), weights(rules[0]), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_equals_automatic_optimization(tmp_path, algorithm):
    settings = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    rule, automatic = backprop(**settings), Automatic(backprop())
    trainer(tmp_path).fit(rule, loader())
    trainer(tmp_path, **settings).fit(automatic, loader())
    torch.testing.assert_close(weights(rule), weights(automatic))
    assert not torch.equal(weights(rule), weights(fit_plainly(tmp_path)))


def fit_plainly(tmp_path):
    rule = backprop()
    trainer(tmp_path).fit(rule, loader())
    return rule


def test_callbacks_see_the_unclipped_gradient(tmp_path):
    norms = []

    class Norms(L.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            norms.append(torch.nn.utils.get_total_norm([p.grad for p in pl_module.parameters()]).item())

    trainer(tmp_path, callbacks=[Norms()], max_steps=1).fit(backprop(gradient_clip_val=1e-3), loader())
    assert norms[0] > 0.01


@pytest.mark.parametrize("interval", ["epoch", "step"])
@pytest.mark.parametrize("frequency", [1, 2])
def test_schedulers_move_as_in_automatic_optimization(tmp_path, interval, frequency):
    step_lr = partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5)
    settings = {"lr_scheduler_interval": interval, "lr_scheduler_frequency": frequency}
    both(
        tmp_path,
        {"lr_scheduler": step_lr, **settings},
        {"scheduler": lambda o: {"scheduler": step_lr(o), "interval": interval, "frequency": frequency}},
        max_epochs=3,
    )


def test_plateau_scheduler_follows_its_monitor(tmp_path):
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, patience=0, threshold=10.0, threshold_mode="abs", factor=0.1
    )
    rule = backprop(lr_scheduler=plateau, optimizer=partial(torch.optim.SGD, lr=0.1))
    run = trainer(tmp_path, max_epochs=3)
    run.fit(rule, loader(), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 * 0.1**2)


def test_plateau_scheduler_without_its_monitor_names_what_is_logged(tmp_path):
    rule = backprop(lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau, lr_scheduler_monitor="val/los")
    with pytest.raises(MisconfigurationException, match=r"lr_scheduler_monitor='val/los'.*val/accuracy, val/loss"):
        trainer(tmp_path).fit(rule, loader(), loader())


def test_learning_rate_monitor(tmp_path):
    rule = backprop(lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5))
    logger = CSVLogger(tmp_path)
    run = trainer(tmp_path, logger=logger, callbacks=[LearningRateMonitor()], max_epochs=2)
    run.fit(rule, loader())
    assert run.callbacks[0].lrs["lr-SGD"] == [0.1] * 6 + [0.05] * 6 or run.callbacks[0].lrs["lr-SGD"] == [0.1, 0.05]


def test_learning_rate_finder(tmp_path):
    rule = backprop()
    run = trainer(tmp_path, max_epochs=20)
    finder = Tuner(run).lr_find(rule, loader(), num_training=30)
    assert len(finder.results["lr"]) >= 29
    assert finder.results["lr"][-1] > 0.1
    assert rule.lr == finder.suggestion()
    run = trainer(tmp_path, max_steps=1)
    run.fit(rule, loader())
    assert run.optimizers[0].param_groups[0]["lr"] == finder.suggestion()


def test_stochastic_weight_averaging_anneals(tmp_path):
    swa = L.pytorch.callbacks.StochasticWeightAveraging(
        swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=2, annealing_strategy="linear"
    )
    run = trainer(tmp_path, max_epochs=5, callbacks=[swa])
    run.fit(backprop(), loader())
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


class Poisoned(Backprop):
    """Writes a gradient that is not finite at its third batch."""

    batches = 0
    value = math.nan

    def compute_gradients(self, batch):
        values = super().compute_gradients(batch)
        self.batches += 1
        if self.batches == 3:
            self.network[1].weight.grad[0, 0] = self.value
        return values


def poisoned(**kwargs):
    torch.manual_seed(0)
    return Poisoned(num_classes=3, input_shape=(1, 2, 3), **kwargs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_gradient_that_is_not_finite_is_refused_before_the_weights_move(tmp_path, value):
    rule = poisoned()
    rule.value = value
    reference = poisoned()
    trainer(tmp_path, max_steps=2).fit(reference, loader())
    with pytest.raises(FloatingPointError, match=r"Poisoned.*step 2: network\.1\.weight.*on_nonfinite='skip'"):
        trainer(tmp_path).fit(rule, loader())
    assert torch.equal(weights(rule), weights(reference))


def test_loss_that_is_not_finite_is_refused(tmp_path):
    x, target = blobs().tensors
    x[0] = math.nan
    with pytest.raises(FloatingPointError, match="the loss"):
        trainer(tmp_path).fit(backprop(), torch.utils.data.DataLoader(list(zip(x, target, strict=True)), 16))


def test_steps_that_are_not_finite_are_skipped_and_counted(tmp_path):
    rule = poisoned(on_nonfinite="skip", optimizer=partial(torch.optim.Adam, lr=0.01, weight_decay=0.1))
    run = trainer(tmp_path)
    run.fit(rule, loader())
    assert run.global_step == 6
    assert run.callback_metrics["train/skipped_steps"] == 1
    assert run.optimizers[0].state[rule.network[1].weight]["step"] == 5
    assert weights(rule).isfinite().all()


def test_skipped_step_leaves_running_statistics_and_means_untouched(tmp_path):
    x, target = blobs().tensors
    x[20] = math.nan
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    rule = backprop(network=network, on_nonfinite="skip")
    run = trainer(tmp_path, max_epochs=2)
    data = torch.utils.data.DataLoader(list(zip(x, target, strict=True)), 16)
    run.fit(rule, data, loader())
    assert run.callback_metrics["train/skipped_steps"] == 2
    assert all(buffer.isfinite().all() for buffer in rule.buffers())
    assert network[2].num_batches_tracked == 10
    for name in ("train/loss_epoch", "train/accuracy_epoch", "val/loss"):
        assert run.callback_metrics[name].isfinite()


class Names(Backprop):
    """Logs other values at every other batch, some of them plain numbers."""

    batches = 0

    def compute_gradients(self, batch):
        super().compute_gradients(batch)
        self.batches += 1
        return {"odd": 1, "always": torch.tensor([2.0])} if self.batches % 2 else {"even": 5.0, "always": 4.0}


def test_values_may_come_and_go(tmp_path):
    run = trainer(tmp_path)
    run.fit(Names(num_classes=3, input_shape=(1, 2, 3)), loader())
    assert run.callback_metrics["train/odd_epoch"] == 1
    assert run.callback_metrics["train/even_epoch"] == 5
    assert run.callback_metrics["train/always_epoch"] == 3


@pytest.mark.parametrize("value", [torch.zeros(2), "high"])
def test_value_that_is_no_number_is_named(tmp_path, value):
    class Wrong(Backprop):
        def compute_gradients(self, batch):
            return super().compute_gradients(batch) | {"height": value}

    with pytest.raises(TypeError, match="'height'"):
        trainer(tmp_path).fit(Wrong(num_classes=3, input_shape=(1, 2, 3)), loader())


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (torch.zeros(4, 1, 2, 3), TypeError, r"learns from batches \(inputs, targets\)"),
        ((torch.zeros(4, 1, 2, 4), torch.zeros(4).long()), ValueError, r"\(1, 2, 4\).*input_shape=\(1, 2, 3\)"),
        ((torch.zeros(4, 1, 2, 3), torch.tensor([0, 1, 2, 3])), ValueError, "targets from 0 to 3.*num_classes=3"),
        ((torch.zeros(4, 1, 2, 3), torch.tensor([-1, 1, 2, 0])), ValueError, "targets from -1 to 2"),
        ((torch.zeros(4, 1, 2, 3), torch.zeros(4)), ValueError, "torch.float32.*no class numbers"),
        ((torch.zeros(4, 1, 2, 3), torch.zeros(4, 3).long()), ValueError, r"shape \(4, 3\).*no class numbers"),
    ],
)
@pytest.mark.parametrize("stage", ["train", "val"])
def test_first_batch_that_does_not_fit_is_refused(tmp_path, batch, error, message, stage):
    bad = torch.utils.data.DataLoader([batch], batch_size=None)
    with pytest.raises(error, match=message):
        trainer(tmp_path).fit(backprop(), *((bad,) if stage == "train" else (loader(), bad)))


def test_network_with_too_many_scores_is_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    with pytest.raises(ValueError, match=r"scores have shape \(16, 5\): num_classes=3"):
        trainer(tmp_path).fit(backprop(network=network), loader(), loader())


def test_optimizer_that_evaluates_the_loss_itself_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="optimizer=LBFGS"):
        trainer(tmp_path).fit(backprop(optimizer=torch.optim.LBFGS), loader())


def test_huge_but_finite_gradients_pass(tmp_path):
    class Huge(Poisoned):
        def compute_gradients(self, batch):
            values = super().compute_gradients(batch)
            # Their sum overflows.
            self.network[1].weight.grad[0, :2] = 3e38
            return values

    rule = Huge(num_classes=3, input_shape=(1, 2, 3), optimizer=partial(torch.optim.SGD, lr=1e-40))
    rule.value = 1.0
    run = trainer(tmp_path)
    run.fit(rule, loader())
    assert run.global_step == 6


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("engine", ["explicit", "autograd"])
@pytest.mark.parametrize("network", ["mlp", "cnn"])
def test_precisions(tmp_path, precision, engine, network):
    torch.manual_seed(0)
    rule = Backprop(network=network, num_classes=3, input_shape=(1, 8, 8), loss="cross_entropy", engine=engine)
    x, target = torch.randn(64, 1, 8, 8), torch.arange(64) % 3
    data = torch.utils.data.DataLoader(list(zip(x, target, strict=True)), 16)
    run = trainer(tmp_path, precision=precision, max_epochs=5)
    run.fit(rule, data, data)
    assert run.callback_metrics["train/loss_epoch"] < 1.2
    expected = {"64-true": torch.float64, "bf16-true": torch.bfloat16}.get(precision, torch.float32)
    assert {p.dtype for p in rule.parameters()} == {expected}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gradient_clip_val": 1.0}, r"Backprop\(gradient_clip_val=1.0\).*--model.gradient_clip_val"),
        ({"accumulate_grad_batches": 2}, r"Backprop\(accumulate_grad_batches=2\)"),
        ({"precision": "16-true"}, r"precision='16-true'.*Backprop supports 32-true, 64-true, bf16-mixed"),
    ],
)
def test_what_the_trainer_must_not_be_given_is_refused(tmp_path, arguments, message):
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, **arguments).fit(backprop(), loader())


def test_other_strategies_are_refused(tmp_path):
    class ShardedStrategy(L.pytorch.strategies.SingleDeviceStrategy):
        pass

    with pytest.raises(MisconfigurationException, match="ShardedStrategy: Backprop supports a single device, 'ddp'"):
        trainer(tmp_path, strategy=ShardedStrategy("cpu")).fit(backprop(), loader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches=0"),
        ({"gradient_clip_val": -1.0}, "gradient_clip_val=-1.0"),
        ({"gradient_clip_algorithm": "max"}, "gradient_clip_algorithm='max'.*'norm', 'value'"),
        ({"lr_scheduler_interval": "batch"}, "lr_scheduler_interval='batch'"),
        ({"lr_scheduler_frequency": 0}, "lr_scheduler_frequency=0"),
        ({"on_nonfinite": "ignore"}, "on_nonfinite='ignore'"),
        ({"loss": "hinge"}, "loss='hinge'.*'mse', 'cross_entropy'"),
        ({"engine": "jax"}, "engine='jax'.*'explicit', 'autograd'"),
        ({"num_classes": 1}, "num_classes=1"),
        ({"network": "mpl"}, "network='mpl'.*'mlp', 'cnn'"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        backprop(**arguments)


def test_training_step_is_final():
    with pytest.raises(TypeError, match=r"Mine\.training_step.*compute_gradients"):
        type("Mine", (LearningRule,), {"training_step": lambda self, batch, batch_idx: None})


@pytest.mark.parametrize("rule", [LearningRule, ClassificationRule, Backprop])
def test_every_argument_has_a_default(rule):
    assert isinstance(rule(), LearningRule)


@pytest.mark.parametrize("name", ["layer", "saved_models"])
def test_names_that_checkpointing_would_mistake_are_free(name):
    assert not hasattr(backprop(), name)


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (None, r"returned None: give values by name, \{'loss': loss\} or \{\}"),
        (torch.tensor(1.0), r"returned tensor\(1\.\): give values by name"),
        ({"loss": torch.ones(2, 3)}, r"returned a tensor of shape \(2, 3\) as 'loss': a value to log is one number"),
        ({"loss": "small"}, "returned a str as 'loss': a value to log is one number"),
    ],
)
def test_a_rule_that_returns_no_numbers_by_name_is_told_so(tmp_path, returned, said):
    class Returning(LearningRule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def compute_gradients(self, batch):
            return returned

    with pytest.raises(TypeError, match=said):
        trainer(tmp_path).fit(Returning(), loader())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"optimizer": partial(torch.optim.SGD, lr=-0.1)}, "optimizer: Invalid learning rate: -0.1"),
        ({"lr_scheduler": partial(torch.optim.lr_scheduler.ExponentialLR, gama=1)}, "lr_scheduler: .*gama"),
    ],
)
def test_what_an_optimizer_or_a_scheduler_refuses_is_told_by_the_argument(tmp_path, arguments, said):
    with pytest.raises(MisconfigurationException, match=said):
        trainer(tmp_path).fit(backprop(**arguments), loader())


def test_a_loss_may_be_a_number_of_numpy(tmp_path):
    class Returning(LearningRule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def compute_gradients(self, batch):
            return {"loss": np.float32(0.5)}

    run = trainer(tmp_path)
    run.fit(Returning(), loader())
    assert run.callback_metrics["train/loss_epoch"] == 0.5
