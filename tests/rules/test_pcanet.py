"""The classical PCANet, against its definition and against scikit-learn."""

from functools import partial

import pytest
import torch
from ddp_training import trainer as quiet
from lightning.fabric.utilities.exceptions import MisconfigurationException
from sklearn.svm import LinearSVC
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer, weights

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.functional.filters import choose_filters
from lightning_nobp.functional.patches import patch_second_moment
from lightning_nobp.functional.ridge import ridge_solve, ridge_statistics
from lightning_nobp.nn import MLP, HashingNetwork
from lightning_nobp.rules import PCANet

NETWORK = partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4)


def rule(network=NETWORK, **kwargs):
    torch.manual_seed(0)
    return PCANet(network=network, **kwargs)


def data(**kwargs):
    return DigitsDataModule(**{"batch_size": 100, "subset": 400, "val_size": 100} | kwargs)


def fit(folder, module, **kwargs):
    run = trainer(folder, **{"max_epochs": -1, "precision": "64-true"} | kwargs)
    run.fit(module, datamodule=data())
    return run


def training_set():
    module = data(shuffle=False)
    module.setup("fit")
    batches = list(module.train_dataloader())
    return torch.cat([b[0] for b in batches]).double(), torch.cat([b[1] for b in batches])


def test_filters_are_those_of_all_patches_with_their_means_taken_off(tmp_path):
    module = rule(classifier="svm")
    run = fit(tmp_path, module)
    assert run.current_epoch == module.stage == 3
    x, _ = training_set()
    network = module.network
    first = choose_filters("pca", patch_second_moment(x, 3, 1), 3, 3, remove_patch_mean=True)
    torch.testing.assert_close(network.first.weight.flatten(1), first.filters, rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        maps = network.first(x).reshape(-1, 1, 8, 8)
    second = choose_filters("pca", patch_second_moment(maps, 3, 1), 4, 3, remove_patch_mean=True)
    torch.testing.assert_close(network.second.weight.flatten(1), second.filters, rtol=1e-9, atol=1e-9)


def test_the_classifier_is_scikit_learns(tmp_path):
    module = rule(classifier="svm", svm_c=0.1)
    run = fit(tmp_path, module)
    x, target = training_set()
    with torch.no_grad():
        features = module.network.features(x)
        scores = module(x)
    expected = LinearSVC(C=0.1, random_state=0).fit(features.numpy(), target.numpy())
    agreement = (scores.argmax(1).numpy() == expected.predict(features.numpy())).mean()
    assert agreement > 0.99
    assert run.callback_metrics["val/accuracy"] > 0.9


@pytest.mark.parametrize("classifier", ["ridge", "dual_ridge"])
def test_both_ridges_are_ridge_regression_of_the_features(tmp_path, classifier):
    module = rule(partial(NETWORK, sketch_dim=60), classifier=classifier, ridge=1e-2)
    fit(tmp_path, module)
    x, target = training_set()
    with torch.no_grad():
        features = module.network.features(x)
        wanted = torch.nn.functional.one_hot(target, 10).double()
        readout = ridge_solve(ridge_statistics(features, wanted), 1e-2)
        torch.testing.assert_close(module(x), features @ readout.weight + readout.bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("labels", [(0, 2), (0, 1, 2)])
def test_classes_that_never_occur_are_never_predicted(tmp_path, labels):
    torch.manual_seed(0)
    target = torch.tensor(labels).repeat(30)
    x = torch.randn(len(target), 1, 8, 8) + target.view(-1, 1, 1, 1) * torch.linspace(-1, 1, 8)
    module = rule(num_classes=4, input_shape=(1, 8, 8), classifier="svm")
    loader = DataLoader(TensorDataset(x, target), batch_size=40)
    trainer(tmp_path, max_epochs=-1).fit(module, loader)
    with torch.no_grad():
        predicted = module(x).argmax(1)
    assert set(predicted.tolist()) <= set(labels)
    assert (predicted == target).double().mean() > 0.9


@pytest.mark.parametrize("classifier", ["svm", "ridge"])
@pytest.mark.parametrize("step", [2, 5, 7, 8])
def test_stopped_and_resumed(tmp_path, classifier, step):
    from lightning.pytorch.callbacks import ModelCheckpoint

    network = partial(NETWORK, sketch_dim=50)
    saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    options = {"enable_checkpointing": True, "max_epochs": 3, "precision": "32-true"}
    whole, resumed = rule(network, classifier=classifier), rule(network, classifier=classifier)
    fit(tmp_path, whole, callbacks=[saved], **options)
    run = trainer(tmp_path, **options)
    run.fit(resumed, datamodule=data(), ckpt_path=tmp_path / f"step={step}.ckpt")
    assert torch.equal(weights(resumed), weights(whole))


def test_exported_network_gives_the_same_scores(tmp_path):
    from lightning_nobp.cli.export import export

    module = rule(partial(NETWORK, sketch_dim=50), classifier="ridge")
    run = fit(tmp_path, module, precision="32-true")
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert export(tmp_path / "rule.ckpt", tmp_path / "net.pt2") < 1e-3
    again = PCANet.load_from_checkpoint(tmp_path / "rule.ckpt")
    x, _ = training_set()
    with torch.no_grad():
        assert torch.equal(again(x.float()), module(x.float()))


def test_losses_belong_to_the_classifier():
    scores, target = torch.tensor([[0.2, 0.7, 0.1]]), torch.tensor([1])
    shape = {"num_classes": 3, "input_shape": (1, 8, 8)}
    svm, ridge = rule(classifier="svm", **shape), rule(partial(NETWORK, sketch_dim=9), classifier="ridge", **shape)
    assert float(svm.loss_function(scores, target)) == pytest.approx(-float(scores.log_softmax(1)[0, 1]))
    assert float(ridge.loss_function(scores, target)) == pytest.approx(0.04 + 0.09 + 0.01)
    assert svm.probabilities(scores).sum() == pytest.approx(1.0)
    torch.testing.assert_close(ridge.probabilities(scores), scores)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classifier": "knn"}, "classifier='knn' is not one of 'ridge'"),
        ({"ridge": 0.0}, "ridge=0.0 and svm_c=1.0 must be positive"),
        (
            {"classifier": "ridge", "network": partial(HashingNetwork, channels=(8, 8)), "input_shape": (1, 28, 28)},
            "sums a matrix of 73728 x 73728 features: give the network a sketch_dim",
        ),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**{"num_classes": 10, "input_shape": (1, 8, 8)} | arguments)


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="PCANet fits a HashingNetwork, not a MLP"):
        rule(MLP, num_classes=10, input_shape=(1, 8, 8))


def test_kept_features_are_for_one_process(tmp_path, monkeypatch):
    run = quiet(tmp_path, max_epochs=3)
    monkeypatch.setattr(type(run), "world_size", 2)
    module = rule(num_classes=10, input_shape=(1, 8, 8))
    module._trainer = run
    with pytest.raises(MisconfigurationException, match="classifier='svm' keeps every image's features"):
        module.on_fit_start()
