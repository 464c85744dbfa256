"""What is written into fields, and what is read from them."""

import math

import pytest
import torch

from lightning_nobp.nn import (
    CoherentReadout,
    DetectorReadout,
    HomodyneReadout,
    ImageEncoder,
    ModeEncoder,
    PulseEncoder,
)


def test_bits_are_amplitudes_of_modes():
    fields = ModeEncoder(4, (0, 2), amplitude=0.5)(torch.tensor([[0.0, 1.0], [0.5, 0.0]]))
    assert fields.tolist() == [[-0.5, 0, 0.5, 0], [0, 0, -0.5, 0]]
    assert fields.is_complex()


def test_pulses_lie_where_they_should_beside_a_reference():
    encoder = PulseEncoder(60, 2, width=0.01, amplitude=0.5)
    fields = encoder(torch.tensor([[[[1.0, 0.0]]]]))
    assert {site: round(float(fields[0, site].real), 6) for site in (10, 30, 50)} == {10: 0.5, 30: -0.5, 50: 0.5}
    assert fields[0, 20].abs() < 1e-6
    # Standard deviation of the amplitude.
    assert fields[0, 11].real.item() == pytest.approx(0.5 * math.exp(-((1 / 60 / 0.01) ** 2) / 2), rel=1e-5)


def test_pulses_on_a_ring_go_on_across_its_end():
    field = PulseEncoder(64, 7, width=0.1)(torch.full((1, 7), 0.5))[0]
    # The reference alone is left, the last of eight.
    assert field.real.argmax() == 60
    torch.testing.assert_close(field[60 - 8], field[(60 + 8) % 64])


def test_an_image_is_the_amplitude_of_a_beam_of_given_power():
    images = torch.rand(3, 2, 8, 8)
    fields = ImageEncoder((16, 16), power=9.0)(images)
    torch.testing.assert_close(fields.abs().square().sum((1, 2)), torch.full((3,), 9.0))
    small = ImageEncoder((8, 8), power=9.0)(images)
    mean = images.mean(1)
    torch.testing.assert_close(small.real, 3 * mean / mean.norm(dim=(1, 2), keepdim=True))
    assert torch.equal(ImageEncoder((8, 8))(torch.zeros(1, 1, 8, 8)), torch.zeros(1, 8, 8, dtype=torch.complex64))


def test_homodyne_detection_reads_one_quadrature():
    field = torch.complex(torch.arange(6.0), torch.ones(6)).expand(2, 6)
    assert HomodyneReadout(6, 2)(field).tolist() == [[1.0, 4.0]] * 2
    pulse = PulseEncoder(64, 1, width=0.05)(torch.tensor([[1.0]]))
    smooth = HomodyneReadout(64, 2, width=0.05)(pulse)
    torch.testing.assert_close(smooth, pulse.real.norm() / math.sqrt(2) * torch.ones(1, 2), rtol=1e-4, atol=1e-4)


def test_two_classes_are_amplitudes_of_opposite_sign():
    readout = CoherentReadout(4, 2, amplitude=0.5, modes=(3,))
    field = torch.zeros(3, 4, dtype=torch.complex64)
    field[0, 3], field[1, 3] = 0.5, -0.5 + 0.5j
    torch.testing.assert_close(readout(field), torch.tensor([[-4.0, 0.0], [-1.0, -5.0], [-1.0, -1.0]]))


def test_more_classes_have_an_output_each():
    readout = CoherentReadout(9, 3, amplitude=2.0)
    field = torch.zeros(1, 9, dtype=torch.complex64)
    field[0, 4] = 2.0
    assert readout(field).tolist() == [[-2.0, 0.0, -2.0]]


def test_detectors_tile_the_grid_and_see_fractions_of_the_light():
    readout = DetectorReadout((6, 8), 10, gain=3.0)
    assert readout.areas.sum(1).tolist() == [4.0] * 10
    assert readout.areas.sum(0).max() == 1
    field = torch.zeros(1, 6, 8, dtype=torch.complex64)
    field[0, 0, 2], field[0, 5, 1] = 3j, -4
    scores = readout(field)[0]
    assert scores[1].item() == pytest.approx(3 * 9 / 25)
    assert scores[8].item() == pytest.approx(3 * 16 / 25)
    assert scores.sum().item() == pytest.approx(3)
    assert not readout(torch.zeros(1, 6, 8, dtype=torch.complex64)).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModeEncoder(4, (0, 0)), r"modes=\(0, 0\): give different numbers from 0 to 3"),
        (lambda: ModeEncoder(4, (4,)), "modes"),
        (lambda: ModeEncoder(4, (1,), amplitude=0.0), "amplitude=0.0 must be positive"),
        (lambda: ModeEncoder(4, (1,))(torch.zeros(1, 2)), "are 2 numbers: there are 1"),
        (lambda: PulseEncoder(8, 1, width=0.0), "width=0.0 must be positive"),
        (lambda: ImageEncoder((4, 4), power=-1.0), "power=-1.0 must be positive"),
        (lambda: ImageEncoder((1, 4)), r"shape=\(1, 4\): give the sites"),
        (lambda: ImageEncoder((4, 4))(torch.zeros(1, 16)), "give images"),
        (lambda: HomodyneReadout(4, 5), "5 outputs of width=0.0 on 4 sites"),
        (lambda: CoherentReadout(4, 2, amplitude=0.0), "amplitude=0.0 must be positive"),
        (lambda: CoherentReadout(4, 3, modes=(1, 2)), "for 3 outputs: give one each"),
        (lambda: CoherentReadout(4, 2, width=0.1, modes=(1,)), "width=0"),
        (lambda: DetectorReadout((4, 2), 10), "no room for num_classes=10 detectors"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
