"""Rules on models of torchvision, which know nothing of this package."""

import copy
from functools import partial

import lightning as L
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision import models
from toys import trainer

from lightning_nobp.callbacks import GradientAlignment, SparsityMask
from lightning_nobp.functional.alignment import gradient_alignment
from lightning_nobp.nn import QuaternionConv2d, SparseConv2d, densify, sparsify, to_quaternion, to_real
from lightning_nobp.rules import (
    Backprop,
    ForwardForward,
    HamiltonianEcho,
    MultiplexedGradientDescent,
    PCANet,
    QuaternionBackprop,
    ResidualCompensation,
    SelfLearningMachine,
    SparseProp,
    SpikeTimingBackprop,
    SymBa,
)

VIT = partial(models.VisionTransformer, image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32)
MODELS = {
    "resnet18": models.resnet18,
    "mobilenet": partial(models.mobilenet_v3_small, dropout=0.0),
    "shufflenet": models.shufflenet_v2_x0_5,
    "vit": partial(VIT, mlp_dim=32),
}


def model(name="resnet18", num_classes=10, double=True):
    """Weights that are the same at every call, and running statistics that have seen images."""
    torch.manual_seed(0)
    network = MODELS[name](num_classes=num_classes)
    if isinstance(network, models.VisionTransformer):
        nn.init.normal_(network.heads.head.weight, std=0.1)  # It begins with zeros, which let no error through.
    network(images(8)[0].float())
    return network.double() if double else network


def images(count=4, size=32):
    generator = torch.Generator().manual_seed(1)
    target = torch.arange(count) % 10
    return torch.randn(count, 3, size, size, generator=generator, dtype=torch.float64), target


def data(count=8, dtype=torch.float64):
    x, target = images(count)
    return DataLoader(TensorDataset(x.to(dtype), target), batch_size=4)


def autograd(network, batch=None):
    """Gradients of a copy, by name; what does not train has none."""
    network = copy.deepcopy(network)
    x, target = images() if batch is None else batch
    F.cross_entropy(network(x), target).backward()
    return {name: p.grad for name, p in network.named_parameters() if p.requires_grad}


def written(rule, batch=None):
    rule.zero_grad()
    rule.compute_gradients(images() if batch is None else batch)
    return {name: p.grad for name, p in rule.network.named_parameters() if p.requires_grad}


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name, grad in expected.items():
        torch.testing.assert_close(found[name], grad, atol=1e-10, rtol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


# Backprop


@pytest.mark.parametrize("name", MODELS)
def test_backprop_takes_autograd_where_layers_are_not_known(name):
    network = model(name)
    rule = Backprop(network=network, num_classes=10, loss="cross_entropy", engine="auto").double()
    assert rule.engine == "autograd"
    assert_same(written(rule), autograd(network))


def test_a_factory_that_takes_no_shape_gets_the_number_of_classes():
    factories = (models.resnet18, partial(models.ResNet, models.resnet.BasicBlock, [1, 1, 1, 1]), MODELS["vit"])
    for factory in factories:
        rule = Backprop(network=factory, num_classes=7, input_shape=(3, 32, 32), engine="auto")
        assert rule(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_a_checkpoint_builds_the_model_again(tmp_path):
    L.seed_everything(0, verbose=False)
    rule = Backprop(network=models.shufflenet_v2_x0_5, num_classes=10, input_shape=(3, 32, 32), engine="auto")
    fit = trainer(tmp_path)
    fit.fit(rule, data(dtype=torch.float32))
    fit.save_checkpoint(tmp_path / "rule.ckpt")
    again = L.LightningModule.load_from_checkpoint(tmp_path / "rule.ckpt", weights_only=True)
    x = images()[0].float()
    torch.testing.assert_close(again.eval()(x), rule.eval()(x))
    state = torch.load(tmp_path / "rule.ckpt", weights_only=True)["state_dict"]
    plain = models.shufflenet_v2_x0_5(num_classes=10)
    plain.load_state_dict({name.removeprefix("network."): value for name, value in state.items()})
    torch.testing.assert_close(plain.eval()(x), rule(x))


def test_running_statistics_are_those_of_lightnings_automatic_optimization(tmp_path):
    class Plain(L.LightningModule):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    plain, watched = (
        Plain(model("shufflenet")),
        Backprop(network=model("shufflenet"), num_classes=10, loss="cross_entropy", engine="auto"),
    )
    trainer(tmp_path, precision="64-true").fit(plain, data())
    # Measuring the alignment runs the network more often, and leaves no trace.
    alignment = GradientAlignment(every_n_steps=1)
    trainer(tmp_path, precision="64-true", callbacks=[alignment]).fit(watched, data())
    assert alignment.mean_cosine == pytest.approx(1.0)
    expected = plain.network.state_dict()
    for name, value in watched.network.state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-10, rtol=1e-8)


def test_a_frozen_backbone_stays_and_its_modes_are_kept(tmp_path):
    network = model("shufflenet").requires_grad_(False).eval()
    network.fc = nn.Linear(1024, 10, dtype=torch.float64)
    before = copy.deepcopy(network.state_dict())
    for rule in (
        Backprop(network=copy.deepcopy(network), num_classes=10, loss="cross_entropy", engine="auto"),
        MultiplexedGradientDescent(network=copy.deepcopy(network), num_classes=10, num_perturbations=4),
    ):
        trainer(tmp_path, precision="64-true", max_epochs=2).fit(rule, data(), data())
        moved = {n for n, v in rule.network.state_dict().items() if not torch.equal(v, before[n])}
        assert moved == {"fc.weight", "fc.bias"}


# Multiplexed gradient descent


@pytest.mark.parametrize(("name", "engine"), [("resnet18", "in_place"), ("vit", "in_place"), ("shufflenet", "jvp")])
def test_each_perturbations_reading_is_the_slope_along_it(name, engine):
    network = model(name).eval()
    options = {"num_perturbations": 2, "amplitude": 1e-8, "engine": engine, "seed": 5}
    rule = MultiplexedGradientDescent(network=network, num_classes=10, **options).double()
    before = copy.deepcopy(network.state_dict())
    estimate, true = written(rule), autograd(network)
    codes = rule._parameter_codes(network).codes(torch.arange(2), list(true)).double()
    slopes = codes @ torch.cat([g.flatten() for g in true.values()])
    expected = (slopes @ codes) / 2
    found = torch.cat([g.flatten() for g in estimate.values()])
    torch.testing.assert_close(found, expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-4)
    # Perturbed passes move nothing: no weight by a rounding, and no running statistics.
    for key, value in network.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("engine", ["per_sample", "vmap", "in_place"])
def test_many_perturbations_of_a_head_find_autograds_gradient(engine):
    network = model("shufflenet", num_classes=3).requires_grad_(False).eval()
    network.fc = nn.Linear(1024, 2, dtype=torch.float64)
    # One class, since gradients of different ones nearly cancel in a network that has learned nothing.
    x, target = images(2)[0], torch.zeros(2, dtype=torch.int64)
    features = copy.deepcopy(network)
    features.fc = nn.Identity()
    batch = features(x), target
    head = MultiplexedGradientDescent(network=copy.deepcopy(network.fc), num_classes=2, engine=engine, seed=3).double()
    whole = MultiplexedGradientDescent(network=network, num_classes=2, engine=engine, seed=3).double()
    # The frozen part changes nothing: the same perturbations of the last layer alone give the same estimate.
    found, alone = written(whole, (x, target)), written(head, batch)
    torch.testing.assert_close(found["fc.weight"], alone["weight"], atol=1e-9, rtol=1e-6)
    # And of many the estimate points along the gradient: of T perturbations of P weights, at a cosine of
    # 1 / sqrt(1 + (P - 1) / T) on average.
    many = MultiplexedGradientDescent(
        network=copy.deepcopy(network.fc), num_classes=2, engine=engine, num_perturbations=8000
    ).double()
    estimate, true = written(many, batch), autograd(many.network, batch)
    cosine = float(gradient_alignment(list(estimate.values()), list(true.values())).cosine)
    readings = 8000 * (2 if engine == "per_sample" else 1)
    assert cosine == pytest.approx((1 + 2 * 1025 / readings) ** -0.5, abs=0.02)


def test_the_alignment_of_a_part_that_trains_is_measured(tmp_path):
    network = model("shufflenet").requires_grad_(False).eval()
    network.fc.bias.requires_grad_(True)
    options = {"perturbation": "coordinate", "num_perturbations": 10, "amplitude": 1e-6}
    rule = MultiplexedGradientDescent(network=network, num_classes=10, **options)
    alignment = GradientAlignment(every_n_steps=1)
    trainer(tmp_path, precision="64-true", callbacks=[alignment]).fit(rule, data(4))
    # Ten coordinates, each perturbed once.
    assert alignment.mean_cosine == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: models.resnet18(num_classes=10), "layer 'bn1' is a BatchNorm2d in training mode.*eval"),
        (lambda: models.efficientnet_b0(num_classes=10), "a StochasticDepth: the cost would change by chance"),
        (lambda: models.squeezenet1_1(num_classes=10), "a Dropout: the cost would change by chance"),
        (
            lambda: nn.Sequential(nn.InstanceNorm2d(3, track_running_stats=True), nn.Flatten(), nn.Linear(12, 10)),
            "Inst",
        ),
    ],
    ids=["batch norm", "stochastic depth", "dropout", "instance norm"],
)
def test_what_makes_costs_change_by_chance_is_refused(network, message):
    network = network()
    for module in network.modules():
        # So that the layer in question comes first.
        if isinstance(module, nn.BatchNorm2d) and "BatchNorm" not in message:
            module.eval()
    rule = MultiplexedGradientDescent(network=network, num_classes=10)
    with pytest.raises(TypeError, match=message):
        rule.compute_gradients((torch.randn(2, 3, 2, 2), torch.tensor([0, 1])))


# SparseProp


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("threshold", [0.0, 1.0], ids=["sparse kernels", "dense products"])
def test_sparseprop_equals_autograd_through_the_masked_dense_model(name, threshold):
    rule = SparseProp(
        network=model(name), num_classes=10, loss="cross_entropy", sparsity=0.95, threshold=threshold
    ).double()
    assert rule.engine == "autograd"
    dense = model(name)
    state = rule.network.state_dict()
    dense.load_state_dict({n: state[n] for n in dense.state_dict()})
    expected = autograd(dense)
    masks = {n: m.mask for n, m in rule.network.named_modules() if hasattr(m, "mask") and hasattr(m, "values")}
    assert len(masks) > 5
    assert any(isinstance(m, SparseConv2d) for m in rule.network.modules())
    for layer, mask in masks.items():
        expected[f"{layer}.values"] = expected.pop(f"{layer}.weight")[mask]
    assert_same(written(rule), expected)


def test_a_sparse_models_state_fits_the_dense_one_and_back(tmp_path):
    sparse = sparsify(model("shufflenet"), 0.95).eval()
    torch.save(sparse.state_dict(), tmp_path / "sparse.pt")
    dense = model("shufflenet")
    own = set(dense.state_dict())
    dense.load_state_dict({n: v for n, v in torch.load(tmp_path / "sparse.pt").items() if n in own})
    x = images()[0]
    torch.testing.assert_close(dense.eval()(x), sparse(x))
    torch.testing.assert_close(densify(copy.deepcopy(sparse))(x), sparse(x))
    assert type(densify(copy.deepcopy(sparse)).conv1[0]) is nn.Conv2d


def test_weights_of_a_file_are_pruned_and_a_new_head_starts_afresh(tmp_path):
    pretrained = model(num_classes=1000, double=False)
    torch.save(pretrained.state_dict(), tmp_path / "resnet18.pt")
    file = str(tmp_path / "resnet18.pt")
    rule = SparseProp(
        network=models.resnet18, pretrained=file, fresh=["fc"], sparsity=0.9, num_classes=10, input_shape=(3, 32, 32)
    )
    rule.load_pretrained(file)
    ours, theirs = rule.network.layer1[0].conv1, pretrained.layer1[0].conv1.weight.detach()
    kept = ours.weight != 0
    torch.testing.assert_close(ours.weight[kept], theirs[kept])
    assert theirs[kept].abs().min() >= theirs[~kept].abs().max()
    assert torch.equal(rule.network.bn1.running_mean, pretrained.bn1.running_mean)
    assert rule.network.fc.weight.shape == (10, 512)


def test_a_mask_keeps_weights_away_while_an_untouched_model_trains(tmp_path):
    rule = Backprop(network=model("shufflenet"), num_classes=10, loss="cross_entropy", engine="auto")
    mask = SparsityMask(method="random", sparsity=0.9, include=["network.stage*"])
    trainer(tmp_path, precision="64-true", callbacks=[mask]).fit(rule, data())
    layers = [m for n, m in rule.network.named_modules() if n.startswith("stage") and isinstance(m, nn.Conv2d)]
    zeros = sum(int((m.weight == 0).sum()) for m in layers)
    assert zeros / sum(m.weight.numel() for m in layers) == pytest.approx(0.9, abs=1e-3)
    assert not (rule.network.conv1[0].weight == 0).any()


# Quaternions


@pytest.mark.parametrize("name", MODELS)
def test_a_converted_model_equals_its_real_form_and_trains_like_autograd(name):
    network = to_quaternion(model(name))
    rule = QuaternionBackprop(network=network, num_classes=10, backward_mode="autograd").double()
    x = images()[0]
    assert_same(written(rule), autograd(network))
    network.eval()
    torch.testing.assert_close(to_real(copy.deepcopy(network))(x), network(x))


def test_what_has_no_place_for_quaternions_stays_real():
    network = to_quaternion(model())
    real = {n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    assert real == {"conv1", "fc"}
    assert sum(isinstance(m, QuaternionConv2d) for m in network.modules()) == 19
    with pytest.raises(TypeError, match=r"'network', a ResNet.*backward_mode='autograd'"):
        QuaternionBackprop(network=network, num_classes=10)


# Rules with networks of their own


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ForwardForward, "ForwardForward trains a ForwardForwardNetwork"),
        (SymBa, "SymBa trains a ForwardForwardNetwork"),
        (SpikeTimingBackprop, "network ends in a ShuffleNetV2: give spiking layers"),
        (HamiltonianEcho, "give a DuffingClassifier"),
        (SelfLearningMachine, "LearningFieldNetwork"),
        (ResidualCompensation, "fits a ResCNet, not a ShuffleNetV2"),
        (PCANet, "fits a HashingNetwork, not a ShuffleNetV2"),
    ],
)
def test_rules_with_networks_of_their_own_name_them(rule, message):
    with pytest.raises(TypeError, match=message):
        rule(network=models.shufflenet_v2_x0_5(num_classes=10), num_classes=10)
