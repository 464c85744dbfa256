"""PSNR and chroma of reproduced images."""

import math
from pathlib import Path

import pytest
import torch
from toys import trainer

from lightning_nobp.callbacks import ColourGrid
from lightning_nobp.rules import QuaternionBackprop


def loader(images, batch_size=4):
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, images), batch_size=batch_size)


def run_test(folder, network, images, **options):
    rule = QuaternionBackprop(network=network, loss="mse", task="regression", backward_mode="autograd")
    run = trainer(folder, callbacks=[ColourGrid(**options)])
    [tested] = run.test(rule, loader(images), verbose=False)
    return tested


class Gray(torch.nn.Module):
    def forward(self, x):
        return (x * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True).expand_as(x)


class Brighter(torch.nn.Module):
    def forward(self, x):
        return x + 0.1


@pytest.fixture
def images():
    return 0.8 * torch.rand(10, 3, 6, 6)


def test_an_offset_has_the_psnr_of_its_square(tmp_path, images):
    tested = run_test(tmp_path, Brighter(), images)
    assert tested["test/psnr"] == pytest.approx(20, abs=1e-3)
    assert tested["test/chroma"] == pytest.approx(tested["test/chroma_true"], abs=1e-6)


def test_outputs_are_clipped(tmp_path):
    assert run_test(tmp_path, Brighter(), torch.ones(4, 3, 6, 6))["test/psnr"] == pytest.approx(100)


def test_without_colours_it_is_the_gray_images_psnr(tmp_path, images):
    tested = run_test(tmp_path, Gray(), images)
    assert tested["test/psnr"] == pytest.approx(tested["test/psnr_gray"])
    assert tested["test/chroma"] == pytest.approx(0, abs=1e-6)
    error = (Gray()(images) - images).square().mean()
    assert tested["test/psnr_gray"] == pytest.approx(-10 * math.log10(error), abs=1e-3)


def test_images_are_drawn_from_every_batch(tmp_path, images, monkeypatch):
    drawn = []
    monkeypatch.setattr("lightning_nobp.callbacks.colour_grid._grid", lambda columns: drawn.extend(columns))
    monkeypatch.setattr("lightning_nobp.callbacks.colour_grid.log_figure", lambda *_: None)
    run_test(tmp_path, Brighter(), images, num_images=6)
    expected = [torch.cat([image, image + 0.1], dim=1) for image in images[[0, 1, 4, 5, 8, 9]]]
    assert all(torch.allclose(a, b) for a, b in zip(drawn, expected, strict=True))


@pytest.mark.parametrize(("number", "files"), [(3, 1), (0, 0)])
def test_the_figure_is_written(tmp_path, images, number, files):
    run_test(tmp_path, Brighter(), images, num_images=number)
    assert len(list(Path(tmp_path).rglob("test_colours*.png"))) == files


def test_what_is_no_image_is_refused(tmp_path):
    with pytest.raises(TypeError, match="ColourGrid needs targets that are images"):
        run_test(tmp_path, torch.nn.Identity(), torch.rand(4, 5))
    with pytest.raises(ValueError, match="num_images=-1"):
        ColourGrid(-1)
