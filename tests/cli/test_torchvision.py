"""Models of torchvision from the command line."""

from pathlib import Path

import pytest
import torch
from fake_data import patch_cifar
from lightning.pytorch import LightningModule
from torchvision import models

NETWORKS = """
from collections.abc import Sequence
from torch import nn
from torchvision import models
from lightning_nobp.nn import to_quaternion

def head(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    network = models.shufflenet_v2_x0_5(num_classes=1000).requires_grad_(False).eval()
    network.fc = nn.Linear(network.fc.in_features, num_classes)
    return network

def quaternions(input_shape: Sequence[int], num_classes: int) -> nn.Module:
    return to_quaternion(models.shufflenet_v2_x0_5(num_classes=num_classes))
"""
SHUFFLENET = "torchvision.models.shufflenet_v2_x0_5"
RESNET = "torchvision.models.resnet18"


@pytest.fixture
def fit(nobp, data, quick, monkeypatch):
    """Train on small images of 3x32x32 in a folder with a file of networks; the checkpoint."""
    root, lists = data
    for kind, files in lists.items():
        patch_cifar(monkeypatch, kind, files)
    Path("networks_of_torchvision.py").write_text(NETWORKS)

    def run(*options):
        small = (f"--data.root={root}", "--data.val_size=0.5", "--data.batch_size=4", *quick)
        # The images are grey, and a large step on four of them would end in infinity.
        slow = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=1e-4")
        done = nobp("fit", "--data=CIFAR10DataModule", *small, *slow, *options)
        assert done.status == 0, done.err
        return max(Path("runs").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)

    return run


@pytest.mark.parametrize(
    "options",
    [
        ("--model=Backprop", "--model.engine=auto", f"--model.network={SHUFFLENET}"),
        ("--model=Backprop", "--model.engine=auto", f"--model.network={RESNET}", "--model.network.num_classes=10"),
        ("--model=SparseProp", "--model.sparsity=0.9", f"--model.network={SHUFFLENET}"),
        ("--model=MultiplexedGradientDescent", "--model.network=networks_of_torchvision.head"),
        (
            *("--model=QuaternionBackprop", "--model.backward_mode=autograd"),
            "--model.network=networks_of_torchvision.quaternions",
        ),
    ],
    ids=["backprop", "number of classes by hand", "sparse", "perturbed", "quaternions"],
)
def test_an_untouched_model_trains_is_loaded_and_leaves(fit, nobp, options):
    checkpoint = fit(*options)
    assert nobp("export", checkpoint, "net.pt2").status == 0
    rule = LightningModule.load_from_checkpoint(checkpoint, weights_only=True).eval()
    x = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(torch.export.load("net.pt2").module()(x), rule(x), atol=1e-5, rtol=1e-4)


def test_sparseprop_prunes_the_weights_of_a_file(fit):
    torch.save(models.shufflenet_v2_x0_5(num_classes=1000).state_dict(), "weights.pt")
    sparse = ("--model=SparseProp", "--model.sparsity=0.9", f"--model.network={SHUFFLENET}")
    checkpoint = fit(*sparse, "--model.pretrained=weights.pt", "--model.fresh=[fc]", "--model.optimizer.lr=0")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    given = torch.load("weights.pt", weights_only=True)["conv5.0.weight"]
    ours = state["network.conv5.0.weight"]
    assert 0 < (ours != 0).float().mean() < 0.5
    assert torch.equal(ours[ours != 0], given[ours != 0])


def test_another_number_of_classes_is_answered_with_the_option(nobp, data, monkeypatch):
    root, lists = data
    for kind, files in lists.items():
        patch_cifar(monkeypatch, kind, files)
    wrong = (f"--model.network={RESNET}", "--model.network.num_classes=1000")
    rule = ("--model=Backprop", "--model.engine=auto", "--data=CIFAR10DataModule", f"--data.root={root}")
    run = nobp("fit", *rule, *wrong, "--data.val_size=0.5", "--trainer.max_epochs=1")
    assert run.status == 2
    assert "num_classes=10 asks for" in run.err
    assert "--model.network.num_classes=10" in run.err
