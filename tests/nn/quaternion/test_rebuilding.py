"""Layers made again from what a rule's checkpoint says of them."""

import pytest
import torch

from lightning_nobp.nn.quaternion.convolution import (
    QuaternionConv1d,
    QuaternionConv2d,
    QuaternionConv3d,
    QuaternionConvTranspose1d,
    QuaternionConvTranspose2d,
    QuaternionConvTranspose3d,
)
from lightning_nobp.nn.quaternion.dropout import QuaternionDropout, QuaternionDropout2d
from lightning_nobp.nn.quaternion.encoding import ColourToQuaternions, PatchesToQuaternions, QuaternionsToReal
from lightning_nobp.nn.quaternion.linear import QuaternionLinear
from lightning_nobp.nn.quaternion.pooling import QuaternionMaxPool2d
from lightning_nobp.nn.quaternion.recurrent import QuaternionGRU, QuaternionLSTM, QuaternionRNN
from lightning_nobp.rules.hyperparameters import to_plain

OPTIONS = {"init": "unitary", "side": "right", "algorithm": "block", "bias": False}
REBUILT = {
    "linear": (QuaternionLinear(8, 12, criterion="glorot", **OPTIONS), (5, 8)),
    "1d": (QuaternionConv1d(8, 12, 3, padding="same", dilation=2), (2, 8, 7)),
    "2d": (QuaternionConv2d(8, 16, (3, 1), 2, (1, 0), (1, 2), 2, padding_mode="circular", **OPTIONS), (2, 8, 7, 6)),
    "3d": (QuaternionConv3d(8, 12, 2), (2, 8, 4, 3, 5)),
    "1d, transposed": (QuaternionConvTranspose1d(8, 12, 3), (2, 8, 7)),
    "2d, transposed": (QuaternionConvTranspose2d(8, 16, 3, 2, 1, (1, 0), 2, dilation=2, **OPTIONS), (2, 8, 4, 5)),
    "3d, transposed": (QuaternionConvTranspose3d(8, 12, 2, 3, output_padding=2), (2, 8, 3, 2, 2)),
    "LSTM": (QuaternionLSTM(8, 12, criterion="he", **OPTIONS), (4, 2, 8)),
    "GRU": (QuaternionGRU(8, 12, 2, True, True, 0.0, True, side="right"), (2, 4, 8)),
    "RNN": (QuaternionRNN(8, 12, nonlinearity="relu", algorithm="fast8"), (4, 2, 8)),
    "pooling": (QuaternionMaxPool2d(3, (2, 1), 1, (1, 2), True), (2, 8, 7, 6)),
    "dropout": (QuaternionDropout(0.3), (5, 8)),
    "dropout of channels": (QuaternionDropout2d(0.3), (5, 8, 3, 3)),
    "colours": (ColourToQuaternions("zero"), (2, 3, 4, 4)),
    "patches": (PatchesToQuaternions(), (2, 3, 4, 4)),
    "to real": (QuaternionsToReal("norm"), (5, 8)),
}


@pytest.mark.parametrize("name", REBUILT)
def test_layers_are_made_again_from_what_a_checkpoint_says(name):
    layer, shape = REBUILT[name]
    plain = to_plain(layer, "network")
    assert isinstance(plain, dict), plain
    again = type(layer)(**plain["init_args"])
    again.load_state_dict(layer.state_dict())
    x, outputs = torch.randn(shape), []
    for either in (layer, again):
        torch.manual_seed(1)
        outputs.append(either(x))
    first, second = (y[0] if isinstance(y, tuple) else y for y in outputs)
    assert torch.equal(first, second)
    for option in ("init", "criterion", "side", "algorithm", "padding_mode"):
        assert getattr(again, option, None) == getattr(layer, option, None)
