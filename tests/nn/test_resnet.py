"""The residual network: torchvision's but for the stem, on images of any size."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from toys import trainer

from lightning_nobp.nn import ResNet, check_supported, vjp
from lightning_nobp.rules import Backprop


def small_images_resnet18(num_classes):
    """Torchvision's, with the stem for small images: a 3x3 convolution of stride 1, and no maximum."""
    network = resnet18(num_classes=num_classes)
    network.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


def randomised(network):
    """Statistics and weights of normalisation as they are after training: no zeros and ones."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.uniform_(module.bias, -1, 1)
    return network.double()


def test_the_default_is_torchvision_s_resnet18_with_another_stem():
    network, reference = ResNet((3, 16, 16), 10).double(), randomised(small_images_resnet18(10))
    # Both are written down in the order of the computation.
    states = network.state_dict(), reference.state_dict()
    assert [v.shape for v in states[0].values()] == [v.shape for v in states[1].values()]
    network.load_state_dict(dict(zip(states[0], states[1].values(), strict=True)))
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(network.eval()(x), reference.eval()(x), rtol=1e-12, atol=1e-12)


def test_the_default_has_as_many_parameters_as_the_formula_says():
    def block(before, channels):
        projection = 0 if before == channels else before * channels + 2 * channels
        return 9 * before * channels + 9 * channels**2 + 4 * channels + projection

    widths = (64, 64, 128, 256, 512)
    expected = 3 * 9 * 64 + 2 * 64 + 512 * 10 + 10
    expected += sum(block(a, b) + block(b, b) for a, b in pairwise(widths))
    assert sum(p.numel() for p in ResNet((3, 32, 32), 10).parameters()) == expected == 11_173_962


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 9, 15), (2, 33, 17), (4, 4, 31)])
@pytest.mark.parametrize(("widths", "blocks"), [((4, 6, 8), (1, 2, 1)), ((5,), (3,)), ((4, 4), (1, 1))])
def test_images_of_any_size_give_scores(shape, widths, blocks):
    network = ResNet(shape, 7, widths, blocks)
    assert network(torch.randn(3, *shape)).shape == (3, 7)
    # Each stage but the first halves the image, rounded up; the mean of all that is left goes to the classifier.
    pool = network[-3]
    sizes = [-(-size // 2 ** (len(widths) - 1)) for size in shape[1:]]
    assert list(pool.kernel_size) == sizes
    assert sum(isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) for m in network.modules()) == 1 + 2 * sum(blocks)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 7, 9)])
def test_the_written_backward_pass_is_autograd_s(shape, training):
    network = randomised(ResNet(shape, 5, (4, 6, 6), (1, 2, 1))).train(training)
    check_supported(network)
    reference = copy.deepcopy(network)
    x = torch.randn(4, *shape, dtype=torch.float64, requires_grad=True)
    grad = torch.randn(4, 5, dtype=torch.float64)
    expected = reference(x)
    expected.backward(grad)
    y, pullback = vjp(network, x.detach(), needs_input_grad=True)
    close = partial(torch.testing.assert_close, rtol=1e-12)
    close(y, expected.detach(), atol=1e-12)
    close(pullback(grad.clone()), x.grad, atol=1e-12 * x.grad.abs().max().item())
    for p, q in zip(network.parameters(), reference.parameters(), strict=True):
        close(p.grad, q.grad, atol=1e-12 * max(1, q.grad.abs().max().item()))
    for p, q in zip(network.buffers(), reference.buffers(), strict=True):
        close(p, q, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((64,), 10), r"input_shape=\(64,\): a ResNet takes images"),
        (((3, 32, 32), 10, (4, 8)), r"widths=\[4, 8\] and blocks=\[2, 2, 2, 2\]: give one number for every stage"),
        (((3, 32, 32), 10, (), ()), r"widths=\[\] and blocks=\[\]"),
        (((3, 32, 7), 10), r"input_shape=\(3, 32, 7\) is too small to be halved 3 times: give fewer stages"),
        (((1, 3, 8), 10, (4, 8, 8), (1, 1, 1)), "too small to be halved 2 times"),
    ],
)
def test_arguments_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResNet(*arguments)


def test_the_smallest_image_is_taken():
    assert ResNet((3, 8, 8), 10, (2, 2, 2, 2)).eval()(torch.zeros(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize("as_instance", [True, False])
def test_a_checkpoint_says_how_to_build_it_again(tmp_path, as_instance):
    build = partial(ResNet, widths=(3, 5), blocks=(1, 2))
    network = build((1, 8, 8), 4) if as_instance else build
    rule = Backprop(network=network, num_classes=4, input_shape=(1, 8, 8))
    run = trainer(tmp_path)
    run.strategy.connect(rule)
    run.save_checkpoint(tmp_path / "rule.ckpt")
    again = Backprop.load_from_checkpoint(tmp_path / "rule.ckpt", weights_only=True)
    assert repr(again.network) == repr(rule.network)
    assert all(map(torch.equal, again.network.state_dict().values(), rule.network.state_dict().values()))
