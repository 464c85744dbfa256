"""Networks made of fields."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_nobp.functional.hamiltonian import strang
from lightning_nobp.nn import (
    FieldEcho,
    KerrCavityArray,
    KerrCavityNetwork,
    NLSENetwork,
    TwoBeamNetwork,
    TwoFieldNLSE,
    WaveFieldNetwork,
)

SMALL = {
    "cavities": partial(KerrCavityNetwork, (1, 1, 2), 2, n_steps=20),
    "waves": partial(WaveFieldNetwork, (3,), 4, n_steps=20),
    "beams": partial(TwoBeamNetwork, (1, 4, 4), 3, system=TwoFieldNLSE((8, 8)), n_steps=20),
    "light": partial(NLSENetwork, (1, 4, 4), 3, shape=(8, 8), slices=4),
}
SHAPES = {"cavities": (1, 1, 2), "waves": (3,), "beams": (1, 4, 4), "light": (1, 4, 4)}


@pytest.mark.parametrize("name", SMALL)
def test_networks_give_scores_in_their_own_precision(name):
    x = torch.rand(5, *SHAPES[name])
    network = SMALL[name]()
    scores = network(x)
    assert scores.shape == (5, network.num_classes)
    assert scores.dtype == torch.float32
    assert network.double()(x).dtype == torch.float64
    torch.testing.assert_close(network.double()(x).float(), scores, rtol=1e-3, atol=1e-3)
    assert not any(value.is_complex() for value in network.state_dict().values())


@pytest.mark.parametrize("name", SMALL)
def test_networks_can_be_built_without_memory(name):
    with torch.device("meta"):
        network = type(SMALL[name]())(SHAPES[name], 2)
    assert all(value.is_meta for value in network.state_dict().values())


def test_samples_do_not_see_each_other():
    x = torch.rand(4, 1, 1, 2, dtype=torch.float64)
    network = SMALL["cavities"]().double()
    torch.testing.assert_close(torch.cat([network(row[None]) for row in x]), network(x))


def test_inputs_and_outputs_have_modes_of_their_own():
    network = KerrCavityNetwork((2,), 2, amplitude=0.3)
    state = network.start(torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(state[0, :4], torch.tensor([0.3, -0.3, 0, 0]) + 0j)
    torch.testing.assert_close(state[0, 4:].real, network.learning_field)
    state[0, 3] = 0.15
    assert network.read(state).argmax() == 1


def test_the_echo_of_light_gives_the_gradients_of_autograd():
    torch.manual_seed(0)
    network = NLSENetwork((1, 8, 8), 10, slices=6).double()
    x, target = torch.rand(4, 1, 8, 8).double(), torch.arange(4)
    loss = nn.functional.cross_entropy(network(x), target)
    [found] = torch.autograd.grad(loss, list(network.parameters()))
    echo = network.echo
    field = strang(echo.system, network.encoder(x), dt=echo.dt, n_steps=echo.n_steps)
    plain = nn.functional.cross_entropy(network.readout(field), target)
    [wanted] = torch.autograd.grad(plain, list(network.parameters()))
    assert loss.item() == pytest.approx(plain.item(), rel=1e-12)
    assert ((found - wanted).norm() / wanted.norm()).item() < 1e-5


def test_light_learns_digits():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits = load_digits()
    x, target = torch.tensor(digits.images).float().unsqueeze(1) / 16, torch.tensor(digits.target)
    network = NLSENetwork((1, 8, 8), 10)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.1)
    for index in torch.randperm(1500).view(-1, 50).repeat(3, 1):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[index]), target[index]).backward()
        optimizer.step()
    with torch.no_grad():
        assert (network(x[1500:]).argmax(1) == target[1500:]).float().mean() > 0.8


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: KerrCavityNetwork((1, 2, 2), 2), r"need 5 modes of 4: take WaveFieldNetwork"),
        (lambda: KerrCavityNetwork((2,), 2, dt=0.0), "dt=0.0 must be positive"),
        (lambda: WaveFieldNetwork((2,), 2, system=TwoFieldNLSE((8, 8))), r"shape=\(8, 8\): pulses run on one axis"),
        (lambda: TwoBeamNetwork((1, 4, 4), 2, system=TwoFieldNLSE()), r"shape=\(64,\): images need two axes"),
        (lambda: NLSENetwork((1, 4, 4), 2, shape=(2, 2, 2)), "shape"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_layers_show_their_arguments():
    text = repr(nn.Sequential(FieldEcho(TwoFieldNLSE(), 0.1, 5), KerrCavityNetwork((2,), 2, KerrCavityArray(g=-1.0))))
    for part in ("dt=0.1, n_steps=5", "chi=1.5", "g=-1.0", "modes=(3,)", "n_steps=500"):
        assert part in text
