"""A trained network leaves the package."""

import csv
import json
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule

from lightning_nobp.datamodules import DigitsDataModule
from lightning_nobp.rules import Backprop

# What a user of the file writes: no line of it knows lightning_nobp.
PLAIN = """
import json, sys
import torch

files = {"lightning_nobp.json": ""}
network = torch.export.load(sys.argv[1], extra_files=files).module()
about = json.loads(files["lightning_nobp.json"])
images = torch.load(sys.argv[2]) / 255
mean, std = (torch.tensor(about[name]).view(-1, 1, 1) for name in ("mean", "std"))
scores = network((images - mean) / std)
print(json.dumps([[about["class_names"][k] for k in scores.argmax(1)], scores.softmax(1)[:, 3].tolist()]))
assert "lightning_nobp" not in sys.modules
"""


def test_pt2_predicts_the_same_in_plain_torch(in_trained, nobp, tmp_path):
    best = in_trained.out.partition("checkpoint: ")[2].splitlines()[0]
    run = nobp("export", best, tmp_path / "net.pt2")
    assert run.status == 0, run.err
    digits = DigitsDataModule().load("test")
    torch.save(digits.images(torch.arange(len(digits.labels))), tmp_path / "images.pt")
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "net.pt2"), str(tmp_path / "images.pt")]
    classes, threes = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    nobp("predict", "--config=digits/backprop", f"--ckpt_path={best}", f"--predictions.path={tmp_path / 'p.csv'}")
    with (tmp_path / "p.csv").open() as file:
        predictions = list(csv.DictReader(file))
    assert classes == [row["prediction"] for row in predictions]
    expected = torch.tensor([float(row["probability_3"]) for row in predictions])
    torch.testing.assert_close(torch.tensor(threes), expected, atol=1e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def convolutional(tmp_path_factory, nobp, quick):
    folder = tmp_path_factory.mktemp("convolutional")
    run = nobp("fit", "--config=digits/backprop_cnn", *quick, f"--trainer.default_root_dir={folder}")
    assert run.status == 0, run.err
    [path] = folder.rglob("last.ckpt")
    return path


@pytest.mark.parametrize("batch", [1, 7])
def test_pt2_takes_batches_of_any_size(nobp, convolutional, tmp_path, batch):
    assert nobp("export", convolutional, tmp_path / "net.pt2").status == 0
    network = torch.export.load(tmp_path / "net.pt2").module()
    x = torch.randn(batch, 1, 8, 8)
    rule = Backprop.load_from_checkpoint(convolutional).eval()
    torch.testing.assert_close(network(x), rule(x))


def test_onnx_predicts_the_same(nobp, convolutional, tmp_path):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    reference = pytest.importorskip("onnx.reference")
    assert nobp("export", convolutional, tmp_path / "some" / "net.onnx").status == 0
    model = onnx.load(tmp_path / "some" / "net.onnx")
    about = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert about["input_shape"] == [1, 8, 8]
    assert about["class_names"] == list("0123456789")
    x = torch.randn(7, 1, 8, 8)
    session = reference.ReferenceEvaluator(model)
    [scores] = session.run(None, {model.graph.input[0].name: x.numpy()})
    rule = Backprop.load_from_checkpoint(convolutional).eval()
    torch.testing.assert_close(torch.from_numpy(scores), rule(x).detach(), atol=1e-5, rtol=1e-4)


OWN_SCORES = """
import torch
from torch import nn
from lightning_nobp.rules import Backprop

class Doubled(Backprop):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.offset = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return 2 * self.built_network()(x) + self.offset
"""


@pytest.fixture(scope="module")
def doubled(tmp_path_factory, nobp, quick):
    """Runs of a rule whose scores are not its network's, by precision."""
    folder = tmp_path_factory.mktemp("doubled")
    (folder / "doubled_rule.py").write_text(OWN_SCORES)
    found = {}
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        for precision in ("32-true", "64-true", "bf16-true"):
            options = (f"--trainer.precision={precision}", f"--trainer.default_root_dir={precision}")
            run = nobp("fit", "--config=digits/backprop", "--model=doubled_rule.Doubled", *quick, *options)
            assert run.status == 0, run.err
            [path] = Path(precision).rglob("last.ckpt")
            found[precision] = path.absolute()
        yield found


def loaded(path):
    """The rule with exactly the weights of a checkpoint, built without the code under test."""
    rule = LightningModule.load_from_checkpoint(path)
    state = torch.load(path, weights_only=True)["state_dict"]
    rule.load_state_dict(state, assign=True)
    return rule.eval()


def difference(run):
    return float(run.out.rpartition(" ")[2])


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_pt2_gives_the_scores_of_the_rules_own_forward_in_the_dtype_of_its_weights(nobp, doubled, tmp_path, precision):
    run = nobp("export", doubled[precision], tmp_path / "net.pt2")
    assert run.status == 0, run.err
    files = {"lightning_nobp.json": ""}
    network = torch.export.load(tmp_path / "net.pt2", extra_files=files).module()
    rule = loaded(doubled[precision])
    dtype = json.loads(files["lightning_nobp.json"])["dtype"]
    assert getattr(torch, dtype) == rule.offset.dtype
    assert dtype == {"32-true": "float32", "64-true": "float64", "bf16-true": "bfloat16"}[precision]
    x = torch.randn(4, 1, 8, 8, dtype=rule.offset.dtype)
    torch.testing.assert_close(network(x), rule(x))
    assert not torch.allclose(network(x), rule.built_network()(x))
    assert difference(run) < 1e-2


@pytest.mark.parametrize("precision", ["32-true", "64-true", "bf16-true"])
def test_onnx_gives_the_scores_of_the_rules_own_forward_in_the_dtype_of_its_weights(nobp, doubled, tmp_path, precision):
    onnx = pytest.importorskip("onnx", reason="needs the extra 'onnx'")
    run = nobp("export", doubled[precision], tmp_path / "net.onnx")
    assert run.status == 0, run.err
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "net.onnx").metadata_props}
    assert getattr(torch, about["dtype"]) == loaded(doubled[precision]).offset.dtype
    assert difference(run) < {"32-true": 1e-5, "64-true": 1e-13, "bf16-true": 0.1}[precision]


def test_what_cannot_be_exported_is_said_in_a_line(nobp, convolutional, tmp_path):
    other = nobp("export", convolutional, "net.tflite")
    missing = nobp("export", "nowhere.ckpt", "net.pt2")
    (tmp_path / "text.ckpt").write_text("no checkpoint")
    text = nobp("export", "text.ckpt", "net.pt2")
    assert other.status == missing.status == text.status == 2
    assert "net.tflite: the file must end in .pt2 (torch.export) or .onnx" in other.err
    assert "nowhere.ckpt: there is no such file" in missing.err
    assert "text.ckpt is damaged or no checkpoint" in text.err
    assert not (tmp_path / "net.pt2").exists()


def test_an_own_rule_is_found_in_the_current_folder_and_imported_from_nowhere_else(doubled, tmp_path):
    main = "import sys; from lightning_nobp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", main, "export", doubled["32-true"], tmp_path / "net.pt2"]
    away = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert away.returncode == 2
    assert "the module doubled_rule of its rule Doubled is not in the current folder" in away.stderr
    folder = next(f for f in doubled["32-true"].parents if (f / "doubled_rule.py").is_file())
    here = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert here.returncode == 0, here.stderr
    assert (tmp_path / "net.pt2").is_file()


def test_a_spiking_network_is_refused_in_a_line(nobp, quick):
    assert nobp("fit", "--config=digits/spiking", *quick).status == 0
    [checkpoint] = Path("runs").rglob("last.ckpt")
    run = nobp("export", str(checkpoint), "net.pt2")
    assert run.status == 2
    assert "holds a spiking network, whose events are found as they come" in run.err
    assert not Path("net.pt2").exists()


def test_a_wave_field_is_refused_in_a_line_where_numbers_are_real(nobp, quick):
    assert nobp("fit", "--config=wave_field/self_learning_machine_digits", *quick).status == 0
    [checkpoint] = Path("runs").rglob("last.ckpt")
    run = nobp("export", str(checkpoint), "net.onnx")
    assert run.status == 2
    assert "holds a wave field, whose numbers are complex, and ONNX knows none: export it to .pt2" in run.err
    assert not Path("net.onnx").exists()
