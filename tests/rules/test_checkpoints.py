"""A checkpoint rebuilds its rule from itself alone, and loads safely."""

import copy
import pickle
from functools import partial
from pathlib import Path

import hostile_files as hostile
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from toys import backprop, loader, trainer, weights

from lightning_nobp.checkpoints import DamagedCheckpointError
from lightning_nobp.nn import CNN, MLP, Residual
from lightning_nobp.rules import Backprop, LearningRule
from lightning_nobp.rules.hyperparameters import to_plain


def returns_an_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.3)


def returns_something(parameters):
    return torch.optim.Adam(parameters, lr=0.3)


class Unannotated(nn.Sequential):
    def __init__(self, input_shape, num_classes, width=3):
        super().__init__(nn.Flatten(), nn.Linear(6, width), nn.Linear(width, num_classes))


NETWORKS = {
    "preset": "mlp",
    "class": MLP,
    "partial": partial(MLP, hidden_dims=(4, 5), activation="tanh"),
    "instance": lambda: MLP((1, 2, 3), 3, (4,), batch_norm=True),
    "sequential": lambda: nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(6, 5, bias=False), nn.BatchNorm1d(5, momentum=0.2), nn.ReLU()),
        Residual(nn.Sequential(nn.Dropout(0.25), nn.Linear(5, 5), nn.GELU("tanh"))),
        nn.LayerNorm(5),
        nn.Tanh(),
        nn.Hardtanh(-0.5, 2.0),
        nn.Linear(5, 3),
    ),
}


def train_and_save(tmp_path, rule):
    run = trainer(tmp_path)
    run.fit(rule, loader())
    path = tmp_path / "rule.ckpt"
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)
    return path


@pytest.mark.parametrize("name", NETWORKS)
def test_rule_built_in_python_comes_back_whole(tmp_path, name):
    network = NETWORKS[name]
    rule = backprop(
        network=network() if name in ("instance", "sequential") else network,
        optimizer=partial(torch.optim.Adam, lr=0.5, betas=(0.8, 0.9)),
        lr_scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=3),
        gradient_clip_val=0.1,
    )
    path = train_and_save(tmp_path, rule)
    for cls in (Backprop, L.LightningModule):
        again = cls.load_from_checkpoint(path)
        assert type(again) is Backprop
        assert repr(again.network) == repr(rule.network)
        assert torch.equal(weights(again), weights(rule))
        assert again.gradient_clip_val == 0.1
        [optimizer], [scheduler] = configured(again)
        assert type(optimizer) is torch.optim.Adam
        assert (optimizer.param_groups[0]["lr"], tuple(optimizer.param_groups[0]["betas"])) == (0.5, (0.8, 0.9))
        assert scheduler.step_size == 3


@pytest.mark.parametrize("save", hostile.SAVED_WITH_CODE.values(), ids=hostile.SAVED_WITH_CODE)
def test_a_checkpoint_with_code_is_loaded_only_where_that_is_asked_for(tmp_path, monkeypatch, save):
    monkeypatch.chdir(tmp_path)
    path = train_and_save(tmp_path, backprop())
    save(torch.load(path, weights_only=True) | {"note": hostile.Code()}, path)
    with pytest.raises(DamagedCheckpointError, match=r"rule\.ckpt"):
        Backprop.load_from_checkpoint(path)
    assert not Path(hostile.TOUCHED).exists()


def test_whoever_trusts_a_checkpoint_may_load_what_is_in_it(tmp_path):
    path = train_and_save(tmp_path, backprop())
    torch.save(torch.load(path, weights_only=True) | {"note": partial(int)}, path)
    assert isinstance(Backprop.load_from_checkpoint(str(path), weights_only=False), Backprop)


def test_a_rule_is_loaded_from_an_open_file(tmp_path):
    rule = backprop()
    with train_and_save(tmp_path, rule).open("rb") as file:
        assert torch.equal(weights(Backprop.load_from_checkpoint(file, network=rule.network)), weights(rule))


def configured(rule):
    made = rule.configure_optimizers()
    return [made["optimizer"]], [made["lr_scheduler"]["scheduler"]]


def test_rule_saved_again_after_loading_comes_back_too(tmp_path):
    rule = backprop(optimizer=partial(torch.optim.Adam, lr=0.5), network=NETWORKS["sequential"]())
    again = Backprop.load_from_checkpoint(train_and_save(tmp_path, rule))
    third = Backprop.load_from_checkpoint(train_and_save(tmp_path, again))
    assert torch.equal(weights(third), weights(again))
    assert third.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_default_optimizer_comes_back(tmp_path):
    again = Backprop.load_from_checkpoint(train_and_save(tmp_path, backprop()))
    assert type(again.configure_optimizers()) is torch.optim.SGD


def test_shape_taken_from_the_data_module_is_in_the_checkpoint(tmp_path):
    class Data(L.LightningDataModule):
        num_classes, input_shape = 3, (1, 2, 3)

        def train_dataloader(self):
            return loader()

    rule = Backprop()
    run = trainer(tmp_path)
    run.fit(rule, datamodule=Data())
    run.save_checkpoint(tmp_path / "rule.ckpt")
    again = Backprop.load_from_checkpoint(tmp_path / "rule.ckpt")
    assert (again.num_classes, again.input_shape) == (3, (1, 2, 3))
    assert torch.equal(weights(again), weights(rule))


def test_rule_from_the_command_line_comes_back(tmp_path):
    arguments = ["--model=Backprop", "--model.num_classes=3", "--model.input_shape=[1,2,3]"]
    arguments += ["--model.network=lightning_nobp.nn.MLP", "--model.network.hidden_dims=[4]"]
    arguments += ["--model.optimizer=Adam", "--model.optimizer.lr=0.5", "--model.loss=cross_entropy"]
    settings = {"subclass_mode_model": True, "auto_configure_optimizers": False, "run": False}
    rule = LightningCLI(LearningRule, save_config_callback=None, args=arguments, **settings).model
    again = Backprop.load_from_checkpoint(train_and_save(tmp_path, rule))
    assert torch.equal(weights(again), weights(rule))
    assert again.loss == "cross_entropy"
    assert again.configure_optimizers().param_groups[0]["lr"] == 0.5


class Custom(nn.Module):
    """Keeps nothing of what built it."""

    def __init__(self, width):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(6, width), nn.Linear(width, 3))

    def forward(self, x):
        return self.body(x)


def test_network_that_cannot_be_described_is_asked_for(tmp_path):
    rule = backprop(network=Custom(4), engine="autograd")
    path = train_and_save(tmp_path, rule)
    with pytest.raises(ValueError, match=r"Custom.*load_from_checkpoint\(path, network=\.\.\.\)"):
        Backprop.load_from_checkpoint(path)
    again = Backprop.load_from_checkpoint(path, network=Custom(4))
    assert torch.equal(weights(again), weights(rule))


def local_optimizer(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


@pytest.mark.parametrize(
    "value", [lambda p: torch.optim.SGD(p), partial(lambda p, lr: torch.optim.SGD(p, lr), lr=1.0), object()]
)
def test_what_a_checkpoint_cannot_say_is_refused_at_once(value):
    with pytest.raises(TypeError, match=r"optimizer=.*partial|optimizer=.*import|optimizer=.*give Callable"):
        backprop(optimizer=value)


class Clamp(nn.Module):
    def __init__(self, min_value=0.0, max_value=1.0):
        super().__init__()
        self.min_value, self.max_value = min_value, max_value


def test_arguments_that_torch_has_renamed_elsewhere_are_kept():
    assert to_plain(Clamp(-3.0, 7.0), "n")["init_args"] == {"min_value": -3.0, "max_value": 7.0}


def test_plain_forms():
    assert to_plain(partial(torch.optim.Adam, lr=1), "o") == {
        "class_path": "torch.optim.adam.Adam",
        "init_args": {"lr": 1},
    }
    assert to_plain({"a": (1, None)}, "o") == {"a": [1, None]}
    cnn = CNN((1, 8, 8), 10, (4,))
    assert to_plain(cnn, "n")["init_args"]["channels"] == [4]
    assert to_plain(local_optimizer, "o").endswith("local_optimizer")
    class_path = to_plain(nn.Sequential(nn.ReLU()), "n")["class_path"]
    assert class_path == "lightning_nobp.nn.sequential"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"optimizer": partial(torch.optim.SGD, [])}, "arguments without a name"),
        ({"optimizer": partial(returns_an_optimizer, lr=0.3)}, "a partial of a class"),
        ({"optimizer": returns_something}, "annotate the type that the function returns"),
        ({"network": partial(Unannotated, width=4)}, "annotate the types of input_shape, num_classes, width"),
    ],
)
def test_what_could_not_be_loaded_again_is_refused_at_once(value, message):
    with pytest.raises(TypeError, match=message):
        backprop(**value)


@pytest.mark.parametrize(
    "value",
    [
        {"optimizer": returns_an_optimizer},
        {"network": Unannotated},
        {"optimizer": partial(torch.optim.SGD, lr=np.float64(0.3)), "gradient_clip_val": np.float32(0.5)},
    ],
)
def test_functions_plain_classes_and_numbers_of_numpy_come_back(tmp_path, value):
    rule = backprop(**value)
    again = Backprop.load_from_checkpoint(train_and_save(tmp_path, rule))
    assert torch.equal(weights(again), weights(rule))
    if "optimizer" in value:
        assert again.configure_optimizers().param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize("change", ["tied", "frozen"])
def test_ties_and_frozen_layers_are_not_lost_without_a_word(tmp_path, change):
    shared = nn.Linear(6, 6)
    network = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared if change == "tied" else nn.ReLU(), nn.Linear(6, 3))
    if change == "frozen":
        shared.requires_grad_(False)
    path = train_and_save(tmp_path, backprop(network=network))
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, network=\.\.\.\)"):
        Backprop.load_from_checkpoint(path)
    again = Backprop.load_from_checkpoint(path, network=copy.deepcopy(network))
    assert torch.equal(weights(again), weights(network))


class Linear(Backprop):
    """A rule that settles some arguments itself."""

    def __init__(self, *, width: int = 4, **kwargs):
        super().__init__(network=partial(MLP, hidden_dims=(width,)), loss="cross_entropy", **kwargs)


def test_subclass_that_settles_arguments_comes_back(tmp_path):
    rule = Linear(width=5, num_classes=3, input_shape=(1, 2, 3), optimizer=partial(torch.optim.Adam, lr=0.5))
    again = Linear.load_from_checkpoint(train_and_save(tmp_path, rule))
    assert torch.equal(weights(again), weights(rule))
    assert again.configure_optimizers().param_groups[0]["lr"] == 0.5


def test_rule_with_default_functions_can_go_to_another_process():
    rule = pickle.loads(pickle.dumps(Backprop(num_classes=3, input_shape=(1, 2, 3))))
    optimizer = rule.configure_optimizers()
    assert type(optimizer) is torch.optim.SGD
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert "optimizer" not in rule.hparams
