"""Numbers that are none, or that do not fit: of every rule, finite weights or an error that says what to do.

The long form is ``tests/reliability/test_numbers.py``.
"""

import math
import re
from functools import partial

import lightning as L
import pytest
import torch
from every_rule import TRAININGS
from hazards import HAZARDS, evaluate, train
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from toys import backprop, blobs, loader, trainer

from lightning_nobp import rules
from lightning_nobp.functional.patches import patch_covariance
from lightning_nobp.nn import HashingNetwork
from lightning_nobp.nn.hamiltonian.spectrum import largest_eigenvalue
from lightning_nobp.rules import PCANet

RULES = [name for name in TRAININGS if "," not in name]
"""One training of each."""


def with_label(value):
    """The blobs, a label of the second batch being another."""
    x, target = blobs().tensors
    target[20] = value
    return DataLoader(TensorDataset(x, target), 16)


def test_there_is_a_training_of_every_rule():
    bases = {"LearningRule", "ClassificationRule", "ClosedFormRule", "NetworkRule"}
    assert set(RULES) == set(rules.__all__) - bases


@pytest.mark.parametrize("hazard", ["nan in an input", "a label below 0", "float64 inputs of float32 weights"])
@pytest.mark.parametrize("name", RULES)
def test_what_a_rule_makes_of_wrong_data_is_finite_or_said(tmp_path, name, hazard):
    if not HAZARDS[hazard].applies(TRAININGS[name]):
        assert not TRAININGS[name].classifies
        return
    said = train(name, hazard, tmp_path)
    # No rule could do anything with a label that there is not.
    assert said.startswith("refused: ") or (said == "finite" and "label" not in hazard)


@pytest.mark.parametrize("name", RULES)
def test_inputs_that_are_not_finite_can_be_skipped(tmp_path, name):
    assert train(name, "nan in an input", tmp_path, on_nonfinite="skip") == "finite"


@pytest.mark.parametrize("name", RULES)
def test_predictions_of_what_is_not_finite_come_out_or_are_refused(tmp_path, name):
    assert evaluate(name, "predict", math.nan, tmp_path)


@pytest.mark.parametrize("value", [3, -1, -100])
@pytest.mark.parametrize("engine", ["explicit", "autograd"])
def test_a_label_that_there_is_not_is_named_in_whatever_batch_it_comes(tmp_path, engine, value):
    with pytest.raises(ValueError, match=rf"targets from .*{value}.* do not fit num_classes=3"):
        trainer(tmp_path).fit(backprop(engine=engine), with_label(value))
    with pytest.raises(ValueError, match=rf"targets from .*{value}.* do not fit num_classes=3"):
        trainer(tmp_path).validate(backprop(engine=engine), with_label(value), verbose=False)


def test_labels_do_not_matter_for_predictions(tmp_path):
    found = trainer(tmp_path).predict(backprop(), with_label(-1))
    assert torch.cat(found).shape == (96, 3)


@pytest.mark.parametrize("change", [lambda x: (255 * x).to(torch.uint8), torch.Tensor.double, torch.Tensor.half])
@pytest.mark.parametrize("stage", ["fit", "test", "predict"])
def test_inputs_of_another_type_than_the_weights_are_named(tmp_path, change, stage):
    x, target = blobs().tensors
    data = DataLoader(TensorDataset(change(x), target), 16)
    with pytest.raises(ValueError, match=r"inputs of type torch\.\w+ do not fit the weights, torch.float32: convert"):
        getattr(trainer(tmp_path), stage)(backprop(), data)


def test_a_network_may_take_integers_if_it_can(tmp_path):
    class Bytes(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x.flatten(1) / 255)

    x, target = blobs().tensors
    run = trainer(tmp_path)
    run.fit(backprop(network=Bytes(), engine="autograd"), DataLoader(TensorDataset(x.to(torch.uint8), target), 16))
    assert run.global_step == 6


def test_a_network_that_takes_bytes_and_fails_elsewhere_says_so(tmp_path):
    class Failing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            raise ValueError("the moon is in the way")

    x, target = blobs().tensors
    data = DataLoader(TensorDataset(x.to(torch.uint8), target), 16)
    with pytest.raises(ValueError, match=r"^the moon is in the way"):
        trainer(tmp_path).fit(backprop(network=Failing(), engine="autograd"), data)


def test_an_error_of_torch_tells_what_the_batch_was(tmp_path):
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(RuntimeError) as raised:
        trainer(tmp_path).fit(backprop(network=narrow, engine="autograd"), loader())
    given = "Backprop was given a batch (torch.float32 (16, 1, 2, 3), torch.int64 (16,))."
    assert raised.value.__notes__ == [given]


def test_weights_that_a_step_has_spoilt_are_refused_at_the_end_of_the_epoch(tmp_path):
    """A loss that is blind to them says nothing."""

    class Overflow(L.Callback):
        def on_train_batch_end(self, trainer, rule, *args):
            if trainer.is_last_batch:
                with torch.no_grad():
                    rule.network[1].weight[0, 0] = -math.inf

    rule = backprop()
    with pytest.raises(FloatingPointError, match=r"not finite after step 6: network\.1\.weight\..*last-good"):
        trainer(tmp_path, callbacks=[Overflow()]).fit(rule, loader())


@pytest.mark.parametrize(
    ("hazard", "spoilt"),
    [("nan in a weight", r"network\.\d+\.weight"), ("nan in an input", r"network\.1\.running_mean")],
)
def test_a_refused_step_names_weights_and_statistics_that_are_spoilt_already(tmp_path, hazard, spoilt):
    said = train("Backprop, batch norm", hazard, tmp_path)
    assert re.search(
        rf"weights are untouched, but not finite themselves, so start or go on from others: .*{spoilt}", said
    )


def test_weights_that_are_not_finite_are_not_saved(tmp_path):
    class Overflow(L.Callback):
        def on_train_batch_end(self, trainer, rule, outputs, batch, batch_idx):
            if batch_idx == 2:
                with torch.no_grad():
                    rule.network[1].weight[0, 0] = -math.inf

    saved = ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    with pytest.raises(FloatingPointError, match="They are not saved"):
        trainer(tmp_path, callbacks=[Overflow(), saved], enable_checkpointing=True).fit(backprop(), loader())
    assert sorted(path.name for path in tmp_path.glob("*.ckpt")) == ["step=1.ckpt", "step=2.ckpt"]


def test_running_statistics_that_overflow_are_refused(tmp_path):
    """The normalised numbers are finite, and so are loss and gradients."""
    x, target = blobs().tensors
    network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6), nn.Linear(6, 3))
    with pytest.raises(FloatingPointError, match=r"network\.1\.running_var.*scale the inputs"):
        trainer(tmp_path).fit(backprop(network=network), DataLoader(TensorDataset(1e30 * x, target), 16))


@pytest.mark.parametrize("options", [{"num_samples": 0}, {"num_samples": 10, "drop_last": True}])
def test_training_on_nothing_is_refused(tmp_path, options):
    with pytest.raises(MisconfigurationException, match="has not learned: the training data are empty, or drop_last"):
        trainer(tmp_path).fit(backprop(), loader(**options))


@pytest.mark.parametrize("max_epochs", [2, -1])
def test_an_iterable_without_batches_is_refused(tmp_path, max_epochs):
    class Nothing(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(MisconfigurationException, match="has not learned: the training data are empty"):
        trainer(tmp_path, max_epochs=max_epochs).fit(backprop(), DataLoader(Nothing(), 16))


def test_no_training_batches_may_be_asked_for(tmp_path):
    run = trainer(tmp_path, limit_train_batches=0)
    run.fit(backprop(), loader())
    assert run.global_step == 0


def test_a_validation_that_is_not_finite_is_said(tmp_path):
    x, target = blobs().tensors
    x[20] = math.nan
    with pytest.warns(UserWarning, match=r"val/loss=nan: an input of the validation data is not finite"):
        trainer(tmp_path).fit(backprop(), loader(), DataLoader(TensorDataset(x, target), 16))


def test_patches_whose_squares_overflow_are_refused():
    moment = torch.full((4, 4), math.inf, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"sums over 3 patches are not finite: .*Scale the inputs"):
        patch_covariance(moment, torch.zeros(4, dtype=torch.float64), 3)


@pytest.mark.parametrize("count", [1, 9])
def test_a_support_vector_machine_of_one_class_is_refused(tmp_path, count):
    network = partial(HashingNetwork, channels=(3, 4), kernel_size=3, block=4)
    rule = PCANet(network=network, num_classes=3, input_shape=(1, 8, 8))
    data = DataLoader(TensorDataset(torch.rand(count, 1, 8, 8), torch.ones(count).long()), 4)
    with pytest.raises(MisconfigurationException, match=rf"all {count} training samples are of class 1.*two classes"):
        trainer(tmp_path, max_epochs=-1).fit(rule, data)


def test_a_weight_that_is_none_does_not_end_the_process(tmp_path):
    """LAPACK's eigenvalues of a nan do: they are asked for when a simulation has left the finite numbers."""
    assert "not finite" in train("HamiltonianEcho", "nan in a weight", tmp_path)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_largest_eigenvalue_of_what_is_not_finite_is_none(bad):
    matrices = torch.diag_embed(torch.tensor([[1.0, 2.0], [bad, 1.0]]))
    found = largest_eigenvalue(lambda v: torch.einsum("bij,bj->bi", matrices, v), torch.zeros(2, 2))
    assert found[0].item() == pytest.approx(2)
    assert found[1].isnan()
