"""Residual compensation: against a plain loop, in any order, with any memory, stopped and resumed, on two processes."""

import math
from functools import partial

import lightning as L
import pytest
import torch
from ddp_training import fit_closed_form, load
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler
from torch.utils.data import DataLoader, TensorDataset
from toys import trainer, weights

from lightning_nobp.callbacks import GradientAlignment
from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.datamodules.augment import RandomShift
from lightning_nobp.functional.patches import patch_second_moment
from lightning_nobp.functional.ridge import ridge_solve, ridge_statistics
from lightning_nobp.nn import MLP, ResCNet
from lightning_nobp.rules import ResidualCompensation
from lightning_nobp.rules.residual_compensation import _mixed

NETWORK = partial(ResCNet, depth=3, channels=6, first_kernel_size=3, pooling={"second_order": 2, "crelu_mean": 2})


def rule(network=NETWORK, **kwargs):
    torch.manual_seed(0)
    return ResidualCompensation(network=network, **kwargs)


def data(**kwargs):
    return DigitsDataModule(**{"batch_size": 100, "subset": 400, "val_size": 100, "with_index": True} | kwargs)


def fit(folder, module, datamodule=None, ckpt_path=None, **kwargs):
    run = trainer(folder, **{"max_epochs": -1, "precision": "64-true"} | kwargs)
    run.fit(module, datamodule=datamodule or data(), ckpt_path=ckpt_path)
    return run


def training_set(**kwargs):
    module = data(shuffle=False, **kwargs)
    module.setup("fit")
    batches = list(module.train_dataloader())
    return torch.cat([b[0] for b in batches]).double(), torch.cat([b[1] for b in batches])


@torch.no_grad()
def by_hand(x, target, ridge=3e-3, shrinkage=0.5, residual_targets=True):
    """The whole fit on all samples at once."""
    network = NETWORK((1, 8, 8), 10).double()
    wanted = torch.nn.functional.one_hot(target, 10).double()
    h, residual = x, wanted
    for number in range(1, 4):
        layer = network.compensation(number)
        layer.conv.fit(patch_second_moment(h, 3, 1))
        h, features = layer(h)
        layer.readout.fit(ridge_solve(ridge_statistics(features, residual), ridge), shrinkage)
        if residual_targets:
            residual = residual - layer.readout(features)
    network.num_fitted = 3
    return network


def assert_equal_networks(found, expected, tolerance=1e-9):
    x, _ = training_set()
    assert found.num_fitted == expected.num_fitted
    with torch.no_grad():
        torch.testing.assert_close(found.staged_predict(x), expected.staged_predict(x), rtol=tolerance, atol=tolerance)


SETTINGS = {
    "as_it_is": {},
    "ram": {"cache": "ram"},
    "disk": {"cache": "disk"},
    "exact products": {"stat_dtype": "float64"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_equal_to_a_fit_by_hand(tmp_path, settings):
    module = rule(**{"stat_dtype": "float64"} | settings)
    run = fit(tmp_path, module)
    assert module.stage == run.current_epoch == 4
    assert run.global_step == 4 * 3
    assert_equal_networks(module.rescnet, by_hand(*training_set()))


@pytest.mark.parametrize("loading", [{"batch_size": 37}, {"shuffle": False}, {"batch_size": 300, "seed": 0}])
def test_order_and_batches_do_not_matter(tmp_path, loading):
    module = rule(stat_dtype="float64")
    fit(tmp_path, module, data(**loading))
    assert_equal_networks(module.rescnet, by_hand(*training_set()))


def test_readouts_are_those_of_scikit_learn(tmp_path):
    module = rule(stat_dtype="float64", shrinkage=1.0, ridge=0.05)
    fit(tmp_path, module)
    x, target = training_set()
    residual = torch.nn.functional.one_hot(target, 10).double()
    with torch.no_grad():
        staged = module.rescnet.staged_predict(x)
        for number, (_, features) in enumerate(module.rescnet.run(x)):
            scaled = StandardScaler().fit_transform(features)
            expected = Ridge(alpha=0.05 * len(x)).fit(scaled, residual).predict(scaled)
            found = staged[number] - (staged[number - 1] if number else 0)
            torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-9)
            residual = residual - found


def test_without_a_trainer(tmp_path):
    x, target = training_set()
    module = rule(stat_dtype="float64", num_classes=10, input_shape=(1, 8, 8)).double()
    while module.stage < module.num_stages:
        for part in (slice(0, 50), slice(50, 300)):
            values = module.compute_gradients((x[part], target[part]))
            assert values["loss"].isfinite()
        module.end_stage()
    assert all(p.grad is None for p in module.parameters())
    assert_equal_networks(module.rescnet, by_hand(x, target))


def test_single_precision_is_close(tmp_path):
    module = rule(cache="ram")
    fit(tmp_path, module, precision="32-true")
    x, target = training_set()
    with torch.no_grad():
        difference = module.rescnet.double()(x) - by_hand(x, target)(x)
    assert difference.abs().max() < 5e-3


def test_late_fusion_fits_every_layer_to_the_targets(tmp_path):
    module = rule(combine="late_fusion", stat_dtype="float64")
    run = fit(tmp_path, module)
    x, target = training_set()
    expected = by_hand(x, target, shrinkage=1.0, residual_targets=False)
    wanted = torch.nn.functional.one_hot(target, 10)
    with torch.no_grad():
        torch.testing.assert_close(module(x), expected(x) / 3, rtol=1e-9, atol=1e-9)
        before = (expected(x, depth=2) / 2 - wanted).square().sum(1).mean()
    assert float(run.callback_metrics["train/loss_epoch"]) == pytest.approx(float(before), rel=1e-6)


def joint_by_hand(x, target, together):
    """The last layers' features in one regression on what the layers before leave."""
    network = by_hand(x, target)
    with torch.no_grad():
        alone = network(x, depth=3 - together)
        features = torch.cat([f for _, f in network.run(x)][3 - together :], 1)
        residual = torch.nn.functional.one_hot(target, 10) - alone
        readout = ridge_solve(ridge_statistics(features, residual), 3e-3)
        return alone + features @ readout.weight + readout.bias


@pytest.mark.parametrize("cache", ["none", "ram"])
@pytest.mark.parametrize("together", [None, 2, 1])
def test_joint_fit_of_the_last_layers(tmp_path, cache, together):
    module = rule(combine="joint", joint_layers=together, cache=cache, stat_dtype="float64")
    fit(tmp_path, module)
    x, target = training_set()
    with torch.no_grad():
        torch.testing.assert_close(module(x), joint_by_hand(x, target, together or 3), rtol=1e-8, atol=1e-8)


def test_backfitting_comes_close_to_the_joint_fit(tmp_path):
    x, target = training_set()
    expected = joint_by_hand(x, target, 3)
    distances = []
    for sweeps in (1, 20, 400):
        module = rule(combine="backfit", backfit_sweeps=sweeps, stat_dtype="float64")
        fit(tmp_path, module)
        with torch.no_grad():
            distances.append(float((module(x) - expected).norm() / expected.norm()))
    assert distances[0] > 10 * distances[2]
    assert distances[1] > distances[2]


def test_residuals_of_a_fold_come_from_readouts_that_have_not_seen_it(tmp_path):
    module = rule(cross_fit_folds=3, stat_dtype="float64", shrinkage=0.5)
    fit(tmp_path, module)
    x, target = training_set()
    wanted = torch.nn.functional.one_hot(target, 10).double()
    folds = _mixed(torch.arange(len(x))) % 3
    assert folds.bincount().min() > 70
    scores = torch.zeros_like(wanted)
    with torch.no_grad():
        for number, (_, features) in enumerate(module.rescnet.run(x), start=1):
            residual = wanted - scores
            full = ridge_solve(ridge_statistics(features, residual), 3e-3)
            found = module.rescnet.compensation(number).readout
            torch.testing.assert_close(found.weight, 0.5 * full.weight, rtol=1e-7, atol=1e-8)
            for fold in range(3):
                others, own = folds != fold, folds == fold
                solution = ridge_solve(ridge_statistics(features[others], residual[others]), 3e-3)
                scores[own] += 0.5 * (features[own] @ solution.weight + solution.bias)
        honest = (wanted - scores).square().sum(1).mean()
    assert module.solution["residual"] == pytest.approx(float(honest), rel=1e-6)


def test_the_penalty_is_chosen_by_held_out_folds(tmp_path):
    module = rule(cross_fit_folds=3, ridge=[1e-5, 1e-1], cache="ram")
    fit(tmp_path, module, max_epochs=2)
    assert module.solution["ridge"] == pytest.approx(1e-1)


@pytest.mark.parametrize("cache", ["none", "ram", "disk"])
def test_views_are_copies_of_the_images(tmp_path, cache):
    module = rule(views=("original", "left"), cache=cache, stat_dtype="float64")
    fit(tmp_path, module)
    x, target = training_set()
    moved = torch.nn.functional.pad(x, (0, 1))[..., 1:]
    expected = by_hand(torch.cat([x, moved]), target.repeat(2))
    assert_equal_networks(module.rescnet, expected)
    with torch.no_grad():
        torch.testing.assert_close(module(x), (expected(x) + expected(moved)) / 2, rtol=1e-9, atol=1e-9)
        first = rule(views=("original", "left"), predict_views="first", num_classes=10, input_shape=(1, 8, 8)).double()
        first.load_state_dict(module.state_dict())
        torch.testing.assert_close(first(x), expected(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_cache_in_half_precision_is_nearly_the_same(tmp_path, dtype):
    expected, found = rule(), rule(cache="ram", cache_dtype=dtype)
    for module in (expected, found):
        fit(tmp_path, module, precision="32-true")
    x, _ = training_set()
    with torch.no_grad():
        difference = (found(x.float()) - expected(x.float())).abs().max()
    assert 0 < difference < 0.1


def test_filters_of_a_share_of_the_images_do_not_depend_on_the_order(tmp_path):
    networks = []
    for loading in ({"batch_size": 30}, {"shuffle": False}):
        module = rule(pca_fraction=0.4, stat_dtype="float64")
        fit(tmp_path, module, data(**loading))
        networks.append(module.rescnet)
    assert_equal_networks(*networks)
    x, _ = training_set()
    chosen = (torch.arange(300) * 2654435761) % 2**32 < 0.4 * 2**32
    assert 100 < chosen.sum() < 140
    expected = ResCNet((1, 8, 8), 10, depth=1, channels=6, first_kernel_size=3).double().compensation(1).conv
    expected.fit(patch_second_moment(x[chosen], 3, 1))
    torch.testing.assert_close(networks[0].compensation(1).conv.weight, expected.weight, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("filters", ["pca_rotated", "random", "dct", "saab", "lda"])
def test_other_filters(tmp_path, filters):
    module = rule(partial(NETWORK, filters=filters), cache="ram")
    run = fit(tmp_path, module, precision="32-true")
    assert run.callback_metrics["val/accuracy"] > 0.9


def test_validation_sees_the_layer_that_was_just_solved_with_and_without_a_cache(tmp_path):
    class Watch(L.Callback):
        def __init__(self):
            self.seen = []

        def on_validation_end(self, trainer, pl_module):
            if not trainer.sanity_checking:
                loss = float(trainer.callback_metrics["val/loss"])
                self.seen.append((pl_module.rescnet.num_fitted, loss))

    seen = []
    for cache in ("none", "ram"):
        watch, ran = Watch(), []
        module = rule(cache=cache, num_classes=10, input_shape=(1, 8, 8))
        hook = partial(_note, ran, watch)
        module.rescnet.compensation(1).register_forward_hook(hook)
        fit(tmp_path, module, callbacks=[watch])
        # After two layers, the first is not run again if there is a memory.
        assert ran[-1] is (cache == "ram")
        seen.append(watch.seen)
        assert [depth for depth, _ in watch.seen] == [0, 1, 2, 3]
        datamodule = data()
        [tested] = trainer(tmp_path, precision="64-true").validate(module, datamodule=datamodule, verbose=False)
        assert tested["val/loss"] == pytest.approx(watch.seen[-1][1])
    assert [loss for _, loss in seen[0]] == pytest.approx([loss for _, loss in seen[1]])


def _note(ran, watch, *_):
    ran.append(len(watch.seen) < 3)


def test_what_is_logged(tmp_path):
    module = rule(stat_dtype="float64")
    run = fit(tmp_path, module, max_epochs=3)
    x, target = training_set()
    wanted = torch.nn.functional.one_hot(target, 10)
    metrics = run.callback_metrics
    with torch.no_grad():
        after = (module.rescnet(x, depth=2) - wanted).square().sum(1).mean()
        before = (module.rescnet(x, depth=1) - wanted).square().sum(1).mean()
        right = (module.rescnet(x, depth=1).argmax(1) == target).double().mean()
    assert float(metrics["train/residual_epoch"]) == pytest.approx(float(after), rel=1e-6)
    assert float(metrics["train/loss_epoch"]) == pytest.approx(float(before), rel=1e-6)
    assert float(metrics["train/accuracy_epoch"]) == pytest.approx(float(right), rel=1e-6)
    conv = module.rescnet.compensation(3).conv
    share = float(conv.explained_variance_ratio.sum())
    assert float(metrics["train/explained_variance_epoch"]) == pytest.approx(share, rel=1e-6)
    assert 1 <= metrics["train/effective_rank_epoch"] <= 6 * 9
    assert metrics["train/condition_epoch"] >= 1
    assert metrics["train/ridge_epoch"] == pytest.approx(3e-3)
    assert metrics["train/statistics_bytes_epoch"] > 8 * 54**2
    assert metrics["train/layer_seconds_epoch"] > 0


class KeepAll(ModelCheckpoint):
    def __init__(self, folder):
        super().__init__(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")


RESUMED = {
    "no cache": {},
    "cache": {"cache": "ram"},
    "folds": {"cross_fit_folds": 2},
    "views": {"views": ("original", "up"), "cache": "ram"},
    "joint": {"combine": "joint", "joint_layers": 2},
}


@pytest.mark.parametrize("settings", RESUMED.values(), ids=RESUMED)
def test_stopped_after_any_batch_and_resumed(tmp_path, settings):
    whole = rule(**settings)
    options = {"precision": "64-true", "enable_checkpointing": True, "max_epochs": 4}
    fit(tmp_path, whole, callbacks=[KeepAll(tmp_path)], **options)
    # Three batches a stage: in the middle of one, at its end, and near the end of all.
    for step in (1, 3, 5, 8, 11, 12):
        resumed = rule(**settings)
        run = fit(tmp_path, resumed, ckpt_path=tmp_path / f"step={step}.ckpt", **options)
        assert run.global_step == 12
        if settings.get("cache") == "ram":
            # Maps are computed anew, in parts of other sizes: they differ in the last bits.
            torch.testing.assert_close(weights(resumed), weights(whole), rtol=1e-9, atol=1e-9)
        else:
            assert torch.equal(weights(resumed), weights(whole))


def test_a_checkpoint_after_a_fit_that_was_too_short_goes_on(tmp_path):
    whole, short, resumed = (rule(cross_fit_folds=2) for _ in range(3))
    fit(tmp_path, whole, precision="32-true")
    run = fit(tmp_path, short, precision="32-true", max_epochs=3)
    run.save_checkpoint(tmp_path / "short.ckpt")
    fit(tmp_path, resumed, precision="32-true", ckpt_path=tmp_path / "short.ckpt")
    assert torch.equal(weights(resumed), weights(whole))


def test_a_loader_without_state_repeats_its_stage(tmp_path):
    x, target = training_set()
    loader = DataLoader(TensorDataset(x, target), batch_size=100)
    shape = {"num_classes": 10, "input_shape": (1, 8, 8)}

    def run(folder, **kwargs):
        module = rule(stat_dtype="float64", **shape)
        made = trainer(
            folder, max_epochs=4, precision="64-true", enable_checkpointing=True, callbacks=[KeepAll(folder)]
        )
        made.fit(module, loader, **kwargs)
        return module

    whole = run(tmp_path)
    with pytest.warns(UserWarning, match="the training loader has no state.*summed again"):
        resumed = run(tmp_path / "resumed", ckpt_path=tmp_path / "step=5.ckpt")
    assert resumed.stage == 4
    assert torch.equal(weights(resumed), weights(whole))


def test_a_second_fit_starts_anew(tmp_path):
    module = rule(stat_dtype="float64")
    fit(tmp_path, module)
    first = weights(module)
    fit(tmp_path, module)
    torch.testing.assert_close(weights(module), first, rtol=1e-9, atol=1e-9)


def test_a_checkpoint_rebuilds_the_rule(tmp_path):
    module = rule(ridge=[1e-3, 1e-2], cross_fit_folds=2, views=["original", "up"])
    run = fit(tmp_path, module, precision="32-true", max_epochs=3)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    again = ResidualCompensation.load_from_checkpoint(tmp_path / "rule.ckpt")
    x, _ = training_set()
    assert again.ridges == (1e-3, 1e-2)
    assert again.rescnet.num_fitted == 2
    with torch.no_grad():
        assert torch.equal(again(x.float()), module(x.float()))


def test_sites_merge_their_sums(tmp_path):
    x, target = training_set()
    shape = {"num_classes": 10, "input_shape": (1, 8, 8)}
    sites = [rule(stat_dtype="float64", **shape).double() for _ in range(2)]
    parts = ((x[:120], target[:120]), (x[120:], target[120:]))
    while sites[0].stage < sites[0].num_stages:
        for site, batch in zip(sites, parts, strict=True):
            site.compute_gradients(batch)
        exchanged = [site.current_sums() for site in sites]
        exchanged = [{k: {n: t.clone() for n, t in v.items()} for k, v in sums.items()} for sums in exchanged]
        for site, sums in zip(sites, reversed(exchanged), strict=True):
            site.merge(sums)
            site.end_stage()
    for site in sites:
        assert_equal_networks(site.rescnet, by_hand(x, target))


def test_a_batch_is_forgotten(tmp_path):
    x, target = training_set()
    shape = {"num_classes": 10, "input_shape": (1, 8, 8)}
    module = rule(stat_dtype="float64", **shape).double()
    while module.stage < module.num_stages:
        module.compute_gradients((x[:200], target[:200]))
        module.compute_gradients((x[200:], target[200:]))
        module.forget((x[200:], target[200:]))
        module.end_stage()
    assert_equal_networks(module.rescnet, by_hand(x[:200], target[:200]), tolerance=1e-7)
    module = rule(**shape).double()
    with pytest.raises(RuntimeError, match="0 samples were summed in this stage: that batch is not among them"):
        module.forget((x, target))


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_two_processes_equal_one(tmp_path, cache):
    for strategy in ("auto", "ddp_spawn"):
        fit_closed_form(tmp_path, strategy, cache)
    single, ranks = load(tmp_path, 0, 1), [load(tmp_path, rank, 2) for rank in (0, 1)]
    assert torch.equal(ranks[0]["weights"], ranks[1]["weights"])
    torch.testing.assert_close(ranks[0]["weights"], single["weights"], rtol=1e-7, atol=1e-7)
    for name in ("val/accuracy", "val/loss", "train/residual_epoch"):
        assert ranks[0]["metrics"][name] == pytest.approx(single["metrics"][name], rel=1e-6)


def test_no_autograd_graph_and_no_gradient(tmp_path):
    nodes = []

    class Watch(ResidualCompensation):
        def accumulate(self, batch):
            values = super().accumulate(batch)
            nodes.extend(value.grad_fn for value in values.values())
            nodes.extend([torch.is_grad_enabled() or None])
            return values

    module = Watch(network=NETWORK)
    fit(tmp_path, module, precision="32-true")
    assert nodes
    assert all(node is None for node in nodes)
    assert all(p.grad is None for p in module.parameters())


def test_alignment_with_backpropagation_has_nothing_to_measure(tmp_path):
    alignment = GradientAlignment(1)
    plain, watched = rule(), rule()
    fit(tmp_path, plain, precision="32-true")
    fit(tmp_path, watched, precision="32-true", callbacks=[alignment])
    assert alignment.mean_cosine is None
    assert torch.equal(weights(plain), weights(watched))


def test_probabilities_are_scores_cut_to_what_they_can_be():
    module = rule(num_classes=3, input_shape=(1, 8, 8))
    found = module.probabilities(torch.tensor([[0.2, 0.6, -0.3], [0.0, 0.0, 0.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.25, 0.75, 0.0], [1 / 3, 1 / 3, 1 / 3]]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"combine": "sum"}, "combine='sum' is not one of 'residual'"),
        ({"cache": "gpu"}, "cache='gpu' is not one of 'none', 'ram', 'disk'"),
        ({"cache_dtype": "int8"}, "cache_dtype='int8' is not one of"),
        ({"stat_dtype": "bfloat16"}, "stat_dtype='bfloat16' is not one of"),
        ({"predict_views": "best"}, "predict_views='best' is not one of"),
        ({"ridge": -1.0}, r"ridge=\[-1.0\] must be at least 0"),
        ({"ridge": []}, r"ridge=\[\] must be at least 0"),
        ({"ridge": [1e-3, 1e-2]}, "to choose among several.*give cross_fit_folds=5"),
        ({"shrinkage": 0.0}, "shrinkage=0.0 must be above 0"),
        ({"pca_fraction": 1.5}, "pca_fraction=1.5 must be above 0"),
        ({"cross_fit_folds": 1}, "cross_fit_folds=1 must be 0 or at least 2"),
        ({"combine": "backfit", "ridge": 0.0}, "combine='backfit' needs .* ridge > 0"),
        ({"joint_layers": 2}, "joint_layers=2 must be at least 1, and belongs to combine='joint'"),
        ({"views": []}, r"views=\[\] shows no image"),
        ({"views": ["turn"]}, "views='turn': 'turn' is not one of"),
        ({"depth": 3}, "depth=3 is for the preset 'rescnet': give it to the network"),
        ({"combine": "joint", "joint_layers": 4, "num_classes": 10, "input_shape": (1, 8, 8)}, "are more than depth=3"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rule(**arguments)


def test_another_network_is_refused():
    with pytest.raises(TypeError, match="ResidualCompensation fits a ResCNet, not a MLP"):
        rule(partial(MLP), num_classes=10, input_shape=(1, 8, 8))


def test_depth_and_channels_of_the_preset():
    module = ResidualCompensation(depth=2, channels=5, num_classes=10, input_shape=(1, 12, 12))
    assert [layer.conv.out_channels for layer in module.rescnet.layers] == [5, 5]


@pytest.mark.parametrize(
    "settings", [{"cache": "ram"}, {"cross_fit_folds": 2}, {"pca_fraction": 0.5}], ids=lambda s: next(iter(s))
)
def test_what_must_know_samples_again_needs_their_numbers(tmp_path, settings):
    with pytest.raises(MisconfigurationException, match=r"batches hold no sample numbers.*with_index=True"):
        fit(tmp_path, rule(**settings), data(with_index=False))


@pytest.mark.parametrize("settings", [{"cache": "disk"}, {"cross_fit_folds": 2}], ids=lambda s: next(iter(s)))
def test_random_augmentation_of_what_is_remembered_is_refused(tmp_path, settings):
    with pytest.raises(MisconfigurationException, match=r"changes images at random.*views="):
        fit(tmp_path, rule(**settings), data(transforms=RandomShift(1)))


def test_random_augmentation_without_memory_is_welcome(tmp_path):
    run = fit(tmp_path, rule(), data(transforms=RandomShift(1)), precision="32-true")
    assert run.callback_metrics["val/accuracy"] > 0.5


def test_a_cache_needs_a_trainer():
    module = rule(cache="ram", num_classes=10, input_shape=(1, 8, 8))
    batch = torch.randn(40, 1, 8, 8), torch.arange(40) % 10, torch.arange(40)
    module.compute_gradients(batch)
    module.end_stage()
    with pytest.raises(MisconfigurationException, match="cache='ram' needs a Trainer"):
        module.compute_gradients(batch)


def test_whitening_beyond_the_rank_is_refused(tmp_path):
    x = torch.randn(60, 1, 8, 8).expand(-1, 2, -1, -1)
    loader = DataLoader(TensorDataset(x, torch.arange(60) % 3), batch_size=20)
    module = rule(partial(NETWORK, channels=12), num_classes=3, input_shape=(2, 8, 8))
    with pytest.raises(MisconfigurationException, match=r"stage 0: 12 filters are above 9, .*at most 9 channels"):
        trainer(tmp_path, max_epochs=-1).fit(module, loader)


def test_memory_on_disk_vanishes_with_the_fit(tmp_path):
    files = []

    class Watch(L.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            files.append(sum(1 for _ in (tmp_path / "cache").rglob("*.rows")))

    (tmp_path / "cache").mkdir()
    fit(tmp_path, rule(cache="disk", cache_dir=str(tmp_path / "cache")), callbacks=[Watch()])
    assert files[-1] > 0
    assert not list((tmp_path / "cache").iterdir())


def test_exported_network_gives_the_same_scores(tmp_path):
    from lightning_nobp.cli.export import export

    module = rule(views=["original", "left"])
    run = fit(tmp_path, module, precision="32-true")
    run.save_checkpoint(tmp_path / "rule.ckpt")
    assert export(tmp_path / "rule.ckpt", tmp_path / "net.pt2") < 1e-5
    loaded = torch.export.load(tmp_path / "net.pt2").module()
    for count in (1, 70):
        x = torch.randn(count, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(loaded(x), module(x), rtol=1e-4, atol=1e-4)
    assert math.isfinite(float(loaded(x).sum()))


def test_order_does_not_matter_with_mirrored_views(tmp_path):
    # Mirrored images make filters whose largest entries are a and -a.
    network = partial(NETWORK, first_kernel_size=5, channels=9)
    scores = []
    for loading in ({"batch_size": 37}, {"shuffle": False}):
        module = rule(network, views=("original", "flip"), stat_dtype="float64")
        fit(tmp_path, module, data(**loading))
        with torch.no_grad():
            scores.append(module(training_set()[0]))
    torch.testing.assert_close(*scores, rtol=1e-7, atol=1e-7)


def test_double_precision_is_double_in_all_products(tmp_path):
    found = []
    for size in (37, 300):
        module = rule()
        fit(tmp_path, module, data(batch_size=size))
        found.append(weights(module))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_folds_do_not_follow_the_order_of_the_classes():
    folds = _mixed(torch.arange(10_000)) % 10
    per_class = torch.stack([folds[torch.arange(10_000) % 10 == k].bincount(minlength=10) for k in range(10)])
    assert 60 < per_class.min() < per_class.max() < 140


def test_a_contribution_leaves_no_trace_in_the_memory(tmp_path):
    x, target = training_set()

    class Ask(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if not trainer.is_last_batch:
                pl_module.contribution((x[:50] + 1, target[:50], torch.arange(50)))

    expected, asked = rule(cache="ram"), rule(cache="ram")
    fit(tmp_path, expected)
    fit(tmp_path, asked, callbacks=[Ask()])
    torch.testing.assert_close(weights(asked), weights(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        (torch.arange(300) % 30, "two samples have the same number"),
        (torch.arange(300) + 100, r"sample numbers from .* do not fit 300 rows"),
        (torch.arange(300).float(), "must be a tensor of 100 integers, one a sample, not torch.float64"),
        (torch.arange(600).view(300, 2), r"100 integers, one a sample, not torch.int64 \(100, 2\)"),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path, numbers, message):
    x, target = training_set()
    loader = DataLoader(TensorDataset(x, target, numbers), batch_size=100)
    module = rule(cache="ram", num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=-1, precision="64-true").fit(module, loader)


def test_loaders_in_a_list_and_numbers_of_another_integer_type(tmp_path):
    x, target = training_set()
    numbered = TensorDataset(x, target, torch.arange(300, dtype=torch.int32))
    module = rule(cache="ram", num_classes=10, input_shape=(1, 8, 8), pca_fraction=0.9)
    run = trainer(tmp_path, max_epochs=-1, precision="64-true")
    run.fit(module, DataLoader(numbered, batch_size=100), [DataLoader(numbered, batch_size=100)])
    assert run.callback_metrics["val/accuracy"] > 0.9


def test_a_network_for_other_images_or_classes_is_refused():
    with pytest.raises(
        ValueError, match=r"the network is for inputs of shape \(1, 8, 8\), not input_shape=\(1, 9, 9\)"
    ):
        rule(NETWORK((1, 8, 8), 10), num_classes=10, input_shape=(1, 9, 9))
    with pytest.raises(ValueError, match="the network is for 10 classes, not num_classes=3"):
        rule(NETWORK((1, 8, 8), 10), num_classes=3, input_shape=(1, 8, 8))


def test_images_of_another_size_than_the_networks_are_refused(tmp_path):
    module = rule(NETWORK((1, 8, 8), 3), num_classes=3)
    loader = DataLoader(TensorDataset(torch.randn(30, 1, 12, 12), torch.arange(30) % 3), batch_size=10)
    with pytest.raises(ValueError, match=r"do not fit"):
        trainer(tmp_path).fit(module, loader)


def test_a_share_too_small_for_any_image_is_named(tmp_path):
    x, target = training_set()
    loader = DataLoader(TensorDataset(x, target, torch.arange(1, 301)), batch_size=100)
    module = rule(pca_fraction=1e-6, num_classes=10, input_shape=(1, 8, 8))
    with pytest.raises(MisconfigurationException, match="pca_fraction=1e-06 chooses none of the images"):
        trainer(tmp_path, precision="64-true").fit(module, loader)
