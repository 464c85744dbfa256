"""Networks with sparse layers in the place of dense ones: made, measured, trained and compiled."""

import copy

import pytest
import torch
from torch import nn

from lightning_nobp.nn import SparseConv2d, SparseLinear, crossover, densify, sparsify

# Layers with weights, and how many each has.
SIZES = {"0": 72, "3.0": 16, "3.1": 32, "5": 576}


def network():
    body = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (1, 2), padding=(0, 1), bias=False))
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), body, nn.Flatten(), nn.Linear(96, 6)
    ).double()


def images(batch=3):
    return torch.randn(batch, 2, 4, 5, dtype=torch.float64)


def layers_of(model):
    return {name: model.get_submodule(name) for name in SIZES}


def masked(model, masks):
    """The network with zeros where the masks are False."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_submodule(name).weight.masked_fill_(~mask, 0)
    return model


def random_masks(model, density=0.3):
    return {name: torch.rand(layer.weight.shape) < density for name, layer in layers_of(model).items()}


# Sparse layers in, and out again


@pytest.mark.parametrize("threshold", [0.0, 1.0])
@pytest.mark.parametrize("given", ["masks", "zeros"])
def test_a_network_computes_what_it_did_with_zeros_and_comes_back(given, threshold):
    dense, x = network().eval(), images()
    masks = random_masks(dense)
    zeros = masked(dense, masks)
    sparse = copy.deepcopy(zeros) if given == "zeros" else dense
    assert sparsify(sparse, masks=masks if given == "masks" else None, threshold=threshold) is sparse
    for name, layer in layers_of(sparse).items():
        assert type(layer) in (SparseLinear, SparseConv2d)
        assert layer.threshold == threshold
        assert torch.equal(layer.mask, masks[name])
    torch.testing.assert_close(sparse(x), zeros(x), rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in sparse.parameters()) == sum(int(m.sum()) for m in masks.values()) + 4 + 8 + 4 + 6
    assert densify(sparse) is sparse
    assert repr(sparse) == repr(zeros)
    assert all(map(torch.equal, sparse.state_dict().values(), zeros.state_dict().values()))


@pytest.mark.parametrize(
    ("distribution", "kept"),
    [
        ("uniform", {"0": 18, "3.0": 4, "3.1": 8, "5": 144}),
        # In proportion to the sums of the shapes, 12, 10, 11 and 102, of which the fractions are rounded.
        ("erk", {name: pytest.approx(174 * n / 135, abs=1) for name, n in zip(SIZES, (12, 10, 11, 102), strict=True)}),
        ("global", None),
    ],
)
@pytest.mark.parametrize("method", ["magnitude", "random"])
def test_the_sparsity_is_exact_and_the_largest_weights_stay(method, distribution, kept):
    dense = network()
    sparse = sparsify(copy.deepcopy(dense), 0.75, method=method, distribution=distribution)
    counts = {name: layer.values.numel() for name, layer in layers_of(sparse).items()}
    assert sum(counts.values()) == sum(SIZES.values()) // 4
    assert kept is None or counts == kept
    if method == "magnitude":
        sizes = [(layer.weight.abs(), sparse.get_submodule(n).mask) for n, layer in layers_of(dense).items()]
        groups = [[torch.cat([each[i].flatten() for each in sizes]) for i in (0, 1)]] if kept is None else sizes
        assert all(size[mask].min() > size[~mask].max() for size, mask in groups)
    for name, layer in layers_of(sparse).items():
        assert torch.equal(layer.values, dense.get_submodule(name).weight[layer.mask])
        assert layer.threshold == type(layer).from_dense(dense.get_submodule(name)).threshold


@pytest.mark.parametrize("distribution", ["uniform", "global", "erk"])
def test_random_masks_depend_on_the_generator_only(distribution):
    def masks(seed, model):
        generator = torch.Generator().manual_seed(seed)
        model = sparsify(model, 0.75, method="random", distribution=distribution, generator=generator)
        return [layer.mask for layer in layers_of(model).values()]

    first = masks(1, network())
    torch.manual_seed(5)
    assert all(map(torch.equal, masks(1, network()), first))
    assert not any(map(torch.equal, masks(2, network()), first))


def test_names_say_which_layers_become_sparse():
    def sparse(**patterns):
        model = sparsify(network(), 0.5, **patterns)
        return [name for name, layer in layers_of(model).items() if isinstance(layer, SparseLinear | SparseConv2d)]

    assert sparse(include=["3.*"]) == ["3.0", "3.1"]
    assert sparse(include=["3.*", "5"], exclude=["*.1"]) == ["3.0", "5"]
    assert sparse(exclude=["0"]) == ["3.0", "3.1", "5"]


def test_weights_grow_by_the_density_on_request():
    dense = network()
    sparse = sparsify(copy.deepcopy(dense), 0.75, rescale=True)
    for name, layer in layers_of(sparse).items():
        torch.testing.assert_close(layer.values, 2 * dense.get_submodule(name).weight[layer.mask])


@pytest.mark.parametrize("layer", [nn.Linear(8, 4), nn.Conv2d(2, 4, 2)])
def test_a_bare_layer_is_returned_in_its_new_form(layer):
    sparse = sparsify(copy.deepcopy(layer), 0.5)
    assert type(sparse) in (SparseLinear, SparseConv2d)
    assert torch.equal(densify(sparse).weight, layer.weight * sparse.mask)


def test_a_layer_in_two_places_stays_one():
    layer = nn.Linear(6, 6)
    model = nn.ModuleDict({"a": layer, "b": nn.Sequential(nn.Tanh(), layer)})
    sparsify(model, 0.5)
    assert model["a"] is model["b"][1]
    densify(model)
    assert type(model["a"]) is nn.Linear
    assert model["a"] is model["b"][1]


def shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (network, {"sparsity": 1.0}, ValueError, r"sparsity=1\.0"),
        (network, {"sparsity": -0.1}, ValueError, r"sparsity=-0\.1"),
        (network, {"sparsity": 0.5, "include": ["fc"]}, ValueError, "include='fc' matches no layer .* '0', '3.0'"),
        (network, {"sparsity": 0.5, "exclude": ["0", "4"]}, ValueError, "exclude='4' matches no layer"),
        (network, {"sparsity": 0.5, "exclude": ["*"]}, ValueError, "leave no layer with weights"),
        (nn.ReLU, {"sparsity": 0.5}, ValueError, "there are none"),
        (network, {"sparsity": 0.5, "masks": {}}, ValueError, r"sparsity=0\.5 and masks: give one of them"),
        (network, {"masks": {"1": torch.ones(4).bool()}}, ValueError, r"masks\['1'\]: no such layer; there are 0, 3"),
        (network, {"masks": {"5": torch.ones(96, 6).bool()}}, ValueError, r"mask of shape \(96, 6\)"),
        (network, {"masks": {"5": torch.ones(6, 96)}}, TypeError, r"mask of type torch\.float32"),
        (network, {"sparsity": 0.5, "method": "snip"}, ValueError, "method='snip' is not one of 'magnitude', 'random'"),
        (network, {"sparsity": 0.5, "distribution": "er"}, ValueError, "distribution='er' is not one of 'uniform', 'g"),
        (shared, {"sparsity": 0.5}, ValueError, "'0' and '1' share a weight, which a sparse layer could not"),
        (network, {"sparsity": 0.5, "threshold": "measure"}, ValueError, "threshold='measure' runs the layers: .*exam"),
    ],
)
def test_a_wrong_argument_is_named_and_changes_nothing(make, options, error, message):
    model = make()
    before, weights = repr(model), copy.deepcopy(model.state_dict())
    if "masks" in options and "sparsity" not in options:
        options = options | {"masks": random_masks(model) | options["masks"]}
    with pytest.raises(error, match=message):
        sparsify(model, **options)
    assert repr(model) == before
    assert all(map(torch.equal, model.state_dict().values(), weights.values()))


class Tied(nn.Module):
    """An embedding whose weight is that of the last layer too."""

    def __init__(self):
        super().__init__()
        self.embedding, self.layer = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.layer.weight = self.embedding.weight


@pytest.mark.parametrize(("make", "exclude"), [(Tied, []), (shared, ["1"])])
def test_a_weight_that_another_module_goes_on_using_is_refused(make, exclude):
    model = make()
    with pytest.raises(ValueError, match="share"):
        sparsify(model, 0.5, exclude=exclude)


@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated")
def test_a_layer_that_computes_its_weight_is_none_to_replace(norm):
    with pytest.raises(ValueError, match="matches no layer with weights; there are none"):
        sparsify(nn.Sequential(norm(nn.Linear(4, 4))), 0.5)


# Thresholds


@pytest.fixture
def times(monkeypatch):
    """Seconds of the three timed runs, and how often they were taken."""
    state = {"seconds": [crossover._FEW, crossover._MORE, 0.25], "count": 0}

    def medians(runs):
        state["count"] += 1
        return state["seconds"]

    monkeypatch.setattr(crossover, "_medians", medians)
    crossover._crossover.cache_clear()
    yield state
    crossover._crossover.cache_clear()


def test_thresholds_are_where_the_products_take_as_long_and_are_remembered(times):
    for _ in range(2):
        model = network()
        model[1].eval()
        sparsify(model, 0.5, threshold="measure", example_input=images())
        # The kernels take one second a density, the dense product a quarter of a second.
        assert [layer.threshold for layer in layers_of(model).values()] == pytest.approx([0.75] * 4)
        assert times["count"] == 4
        assert model.training
        assert not model[1].training
    sparsify(network(), 0.5, threshold="measure", example_input=images(7))
    assert times["count"] == 8


@pytest.mark.parametrize(("seconds", "threshold"), [((1, 2, 99), 0), ((1, 2, 0.1), 1), ((2, 1, 3), 0)])
def test_thresholds_stay_between_0_and_1(times, seconds, threshold):
    times["seconds"] = seconds
    model = sparsify(nn.Linear(8, 4), 0.5, threshold="measure", example_input=torch.randn(2, 8))
    assert model.threshold == threshold


def test_measured_thresholds_are_fractions():
    model = sparsify(network(), 0.9, threshold="measure", example_input=images())
    assert all(0 <= layer.threshold <= 1 for layer in layers_of(model).values())


# Training and compilers


@pytest.mark.parametrize("threshold", [0, 1])
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ],
)
def test_training_is_that_of_a_dense_network_with_masked_gradients(optimizer, threshold):
    sparse = network()
    masks = random_masks(sparse)
    dense = masked(sparse, masks)
    sparsify(sparse, masks=masks, threshold=threshold)
    optimizers = optimizer(sparse.parameters()), optimizer(dense.parameters())
    x, target = images(16), torch.randint(6, (16,))
    for _ in range(100):
        for model, each in zip((sparse, dense), optimizers, strict=True):
            each.zero_grad()
            nn.functional.cross_entropy(model(x), target).backward()
            for name, mask in masks.items():
                if model is dense:
                    model.get_submodule(name).weight.grad *= mask
            each.step()
    densify(sparse)
    for name, mask in masks.items():
        assert (sparse.get_submodule(name).weight[~mask] == 0).all()
    torch.testing.assert_close(sparse.state_dict(), dense.state_dict(), rtol=1e-8, atol=1e-8)


def test_an_exported_network_takes_batches_of_any_size():
    model = sparsify(network(), 0.8).eval()
    program = torch.export.export(model, (images(),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert "lightning_nobp.sparse_layer" in program.graph_module.code
    for batch in (1, 3, 9):
        x = images(batch)
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-12, atol=1e-12)


def test_a_compiled_network_follows_its_masks():
    model, x = sparsify(network(), 0.8), images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        results = []
        for form in (model, compiled):
            model.zero_grad()
            y = form(x)
            y.sin().sum().backward()
            results.append([y.detach(), *(p.grad for p in model.parameters())])
        torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
        for layer in layers_of(model).values():
            # As many weights at other places.
            layer.set_mask(layer.mask.flatten().roll(1).view_as(layer.mask))
