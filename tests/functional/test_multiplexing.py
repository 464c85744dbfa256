"""Who is shown when, and filters."""

import math

import pytest
import torch

from lightning_nobp.functional.multiplexing import expected_cosine, high_pass, low_pass, schedule, shrinkage
from lightning_nobp.functional.separable import separable_gradient


@pytest.mark.parametrize(
    ("times", "perturbation", "slot", "reading"),
    [
        ((1, 3, 3), [0, 1, 2], [0, 0, 0], [0, 1, 2]),
        ((1, 4, 2), [0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 2, 3]),
        ((2, 4, 1), [0, 0, 1, 1], [0, 1, 2, 3], [0, 1, 2, 3]),
        ((2, 4, 2), [0, 1], [0, 1], [0, 0, 1, 1]),
        ((2, 6, 3), [0, 1, 1, 2], [0, 0, 1, 1], [0, 0, 1, 2, 3, 3]),
        ((1, 2, 6), [0, 1], [0, 0], [0, 1]),
    ],
)
def test_schedule(times, perturbation, slot, reading):
    window = schedule(*times)
    assert window.perturbation.tolist() == perturbation
    assert window.slot.tolist() == slot
    assert window.reading.tolist() == reading
    assert window.num_slots == slot[-1] + 1


def test_a_window_ends_early_where_inputs_are_missing():
    window = schedule(2, 6, 3).up_to(1)
    assert window.perturbation.tolist() == [0, 1]
    assert window.reading.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ((0, 4, 1), "tau_p=0 must be a positive whole number"),
        ((1, -4, 1), "tau_theta=-4"),
        ((1, 4, 1.5), "tau_x=1.5"),
        ((True, 4, 1), "tau_p=True"),
        ((3, 4, 1), "tau_theta=4 is no multiple of tau_p=3.* take 3"),
        ((1, 4, 3), "tau_x=3 and tau_theta=4: one must be a multiple"),
        ((1, 4, 6), "tau_x=6 and tau_theta=4"),
    ],
)
def test_time_constants_that_do_not_fit_are_named(times, message):
    with pytest.raises(ValueError, match=message):
        schedule(*times)


def test_the_high_pass_filter_forgets_a_step_and_lets_fast_changes_through():
    state = torch.zeros(())
    for change in [1.0] + [0.0] * 19:
        state = high_pass(state, torch.tensor(change), 10.0)
    assert float(state) == pytest.approx((10 / 11) ** 20)
    assert float(high_pass(torch.zeros(()), torch.tensor(1.0), 1e9)) == pytest.approx(1)


def test_the_low_pass_filter_ends_at_a_constant_and_averages_noise():
    state = torch.zeros(())
    for _ in range(50):
        state = low_pass(state, torch.tensor(2.0), 4.0)
    assert float(state) == pytest.approx(2 * (1 - 0.8**50))


def test_the_law_of_random_codes():
    assert expected_cosine(100, 1) == 1
    assert expected_cosine(16 * 219, 220) == pytest.approx(math.sqrt(16 / 17))
    # The best multiple of an estimate whose mean is g and whose square is |g|^2 / cosine^2.
    assert shrinkage(55, 220) == pytest.approx(expected_cosine(55, 220) ** 2)


def test_the_separable_gradient_is_the_sum_of_outer_products():
    c, u, v, k = (torch.randn(*shape, dtype=torch.float64) for shape in ((5,), (5, 4), (5, 3), (5, 6)))
    torch.testing.assert_close(separable_gradient(c, u, v), torch.einsum("b,bo,bi->oi", c, u, v))
    torch.testing.assert_close(separable_gradient(c, u, v, k), torch.einsum("b,bo,bi,bk->oik", c, u, v, k))
