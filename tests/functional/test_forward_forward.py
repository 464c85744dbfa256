"""Losses, goodness and sampling against autograd, identities and frequencies, in float64."""

import itertools
import math

import pytest
import torch
from torch.nn import functional as F

from lightning_nobp.functional import forward_forward as ff

KINDS = ("mean_square", "sum_square", "mean_abs", "negative")
LOSSES = {"ff": ff.forward_forward_loss, "symba": ff.symba_loss, "swish": ff.swish_pair_loss}
ACTIVATIONS = {
    "relu": (torch.relu, None),
    "tanh": (torch.tanh, lambda z: 1 - z.tanh() ** 2),
    "softplus": (F.softplus, torch.sigmoid),
}


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize(("loss", "kind", "activation"), list(itertools.product(LOSSES, KINDS, ACTIVATIONS)))
def test_closed_form_equals_autograd(loss, kind, activation):
    phi, slope = ACTIVATIONS[activation]
    u = random(12, 7)
    weight, bias = random(5, 7).requires_grad_(), random(5).requires_grad_()
    z = F.linear(u, weight, bias)
    g = ff.goodness(phi(z), kind)
    expected = torch.autograd.grad(LOSSES[loss](g[:6], g[6:], alpha=3.0), (weight, bias))

    z = z.detach()
    g = ff.goodness(phi(z), kind)
    q, value = ff.loss_coefficients(loss, g[:6], g[6:], alpha=3.0)
    actual = ff.local_gradients(u, phi(z), torch.cat(q), kind, None if slope is None else slope(z))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(value, LOSSES[loss](g[:6], g[6:], alpha=3.0))


@pytest.mark.parametrize("kind", KINDS)
def test_goodness_of_maps_and_its_derivative(kind):
    h = random(3, 4, 5, 6).requires_grad_()
    [expected] = torch.autograd.grad(ff.goodness(h, kind).sum(), h)
    torch.testing.assert_close(ff.local_error(h.detach(), torch.ones(3, dtype=torch.float64), kind), expected)
    torch.testing.assert_close(ff.goodness(h.detach(), kind, dim=1).shape, torch.Size((3, 5, 6)))


def test_symba_pushes_both_equally_and_sees_only_the_difference():
    g_pos, g_neg = random(50), random(50)
    (q_pos, q_neg), loss = ff.loss_coefficients("symba", g_pos, g_neg)
    assert torch.equal(q_pos, -q_neg)
    shifted = ff.loss_coefficients("symba", g_pos + 3.7, g_neg + 3.7)
    torch.testing.assert_close(shifted.q, (q_pos, q_neg), rtol=1e-12, atol=1e-15)
    difference = loss - ff.symba_loss(g_neg, g_pos)
    torch.testing.assert_close(difference, -4 * (g_pos - g_neg).mean())
    assert not torch.allclose(
        ff.loss_coefficients("ff", g_pos, g_neg).q[0], ff.loss_coefficients("ff", g_pos + 3.7, g_neg).q[0]
    )


def test_pair_with_the_right_label_twice_moves_symba_nowhere():
    u, h, g = random(8, 3), random(8, 4).relu(), None
    g = ff.goodness(h)
    q, loss = ff.loss_coefficients("symba", g, g)
    both = [ff.local_gradients(torch.cat([u, u]), torch.cat([h, h]), torch.cat(q))[k] for k in (0, 1)]
    assert all(x.abs().max() < 1e-15 for x in both)
    assert loss.item() == pytest.approx(math.log(2))
    q, _ = ff.loss_coefficients("ff", g, g)
    assert ff.local_gradients(torch.cat([u, u]), torch.cat([h, h]), torch.cat(q))[0].abs().max() > 1e-3


def test_class_softmax_of_two_classes_is_symba():
    candidates, target = random(9, 2), torch.arange(9) % 2
    g_pos, g_neg = (candidates.gather(1, t.unsqueeze(1)).squeeze(1) for t in (target, 1 - target))
    torch.testing.assert_close(ff.class_softmax_loss(candidates, target), ff.symba_loss(g_pos, g_neg))
    q, loss = ff.class_softmax_coefficients(candidates, target)
    (q_pos, q_neg), expected = ff.loss_coefficients("symba", g_pos, g_neg)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(q.gather(1, target.unsqueeze(1)).squeeze(1), q_pos)
    torch.testing.assert_close(q.gather(1, 1 - target.unsqueeze(1)).squeeze(1), q_neg)


def test_sum_of_squares_is_the_mean_with_another_slope():
    h = random(6, 20)
    g_sum, g_mean = ff.goodness(h, "sum_square"), ff.goodness(h)
    (a, _), (b, _) = (ff.loss_coefficients("symba", g[:3], g[3:], alpha=s)[0] for g, s in ((g_sum, 0.1), (g_mean, 2.0)))
    torch.testing.assert_close(a * 20, b)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_reductions(reduction):
    g_pos, g_neg = random(5), random(5)
    for loss in LOSSES.values():
        value = loss(g_pos, g_neg, reduction=reduction)
        torch.testing.assert_close(value.sum() / 5, loss(g_pos, g_neg))


@pytest.mark.parametrize("kind", ["rms", "l2"])
def test_normalised_activity_keeps_the_direction_and_nothing_of_the_size(kind):
    h = random(4, 3, 5)
    u = ff.normalise_activity(h, kind)
    torch.testing.assert_close(ff.normalise_activity(7 * h, kind), u)
    torch.testing.assert_close(u.square().sum((1, 2)), torch.full((4,), 15.0 if kind == "rms" else 1.0).double())
    assert torch.equal(ff.normalise_activity(torch.zeros(2, 3), kind), torch.zeros(2, 3))


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3, 2)])
def test_peer_normalisation_equals_autograd(shape):
    h, old = random(*shape).requires_grad_(), random(4)
    m = 0.8 * old + 0.2 * h.transpose(0, 1).flatten(1).mean(1)
    expected_loss = (m.mean() - m).square().mean()
    [expected] = torch.autograd.grad(expected_loss, h)
    loss, grad, means = ff.peer_normalisation(h.detach(), old, 0.8)
    torch.testing.assert_close((loss, grad, means), (expected_loss.detach(), expected, m.detach()))


def test_overlay_replaces_the_first_values():
    x, y = random(3, 1, 4, 5), torch.tensor([2, 0, 1])
    out = ff.overlay_label(x, y, 3, amplitude=5.0)
    assert torch.equal(out[:, :3], 5 * torch.eye(3, dtype=torch.float64)[y])
    assert torch.equal(out[:, 3:], x.flatten(1)[:, 3:])
    torch.testing.assert_close(ff.overlay_label(x, None, 3)[:, :3], torch.full((3, 3), 5 / 3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"at least 30 input values, not 20"):
        ff.overlay_label(x, y, 30)


@pytest.mark.parametrize("kind", ["normal", "uniform", "bernoulli", "orthogonal"])
def test_patterns_are_repeatable_different_and_of_unit_length(kind):
    one, other = (ff.class_patterns(10, 12, kind, torch.Generator().manual_seed(s)) for s in (3, 3))
    assert torch.equal(one, other)
    torch.testing.assert_close(one.norm(dim=1), torch.ones(10))
    assert len(one.unique(dim=0)) == 10
    if kind == "orthogonal":
        torch.testing.assert_close(one @ one.T, torch.eye(10), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("dim", "kind"), [(0, "normal"), (9, "orthogonal"), (3, "bernoulli")])
def test_too_short_patterns_are_refused(dim, kind):
    with pytest.raises(ValueError, match=f"pattern_dim={dim} is too small for 10"):
        ff.class_patterns(10, dim, kind)


def test_wrong_labels_are_wrong_and_uniform():
    y = torch.full((40_000,), 3)
    drawn = ff.sample_wrong_labels(y, 5, torch.Generator().manual_seed(0))
    counts = torch.bincount(drawn, minlength=5) / len(y)
    torch.testing.assert_close(counts, torch.tensor([0.25, 0.25, 0.25, 0, 0.25]), rtol=0, atol=0.01)


def test_hard_labels_follow_the_softmax_without_the_right_one():
    scores, y = torch.tensor([[0.1, 0.4, -0.2, 0.3]]).expand(40_000, 4), torch.ones(40_000, dtype=torch.long)
    drawn = ff.sample_hard_labels(scores, y, 5.0, torch.Generator().manual_seed(0))
    expected = (5 * scores[0]).index_fill(0, torch.tensor(1), -math.inf).softmax(0)
    torch.testing.assert_close(torch.bincount(drawn, minlength=4) / 40_000, expected, rtol=0, atol=0.005)
    assert (ff.sample_hard_labels(scores[:5], y[:5], math.inf) == 3).all()


def test_hybrids_take_every_pixel_from_one_of_two_images():
    x = torch.arange(1.0, 7).view(6, 1, 1, 1).expand(6, 1, 28, 28)
    mixed = ff.hybrid_images(x, generator=torch.Generator().manual_seed(0))
    for own, image in zip(x, mixed, strict=True):
        values = image.unique()
        assert len(values) == 2
        assert own[0, 0, 0] in values
    share = (mixed == x).float().mean()
    assert 0.4 < share < 0.6
    # Blobs: neighbouring pixels nearly always come from the same image.
    assert (mixed[..., 1:] == mixed[..., :-1]).float().mean() > 0.85


def test_a_single_image_is_its_own_mixture():
    x = random(1, 1, 6, 6)
    assert torch.equal(ff.hybrid_images(x), x)


def test_patterns_are_the_same_in_every_default_dtype():
    def draw(kind):
        return ff.class_patterns(4, 8, kind, torch.Generator().manual_seed(0))

    for kind in ("normal", "uniform", "bernoulli", "orthogonal"):
        expected = draw(kind)
        torch.set_default_dtype(torch.bfloat16)
        try:
            assert torch.equal(draw(kind), expected)
        finally:
            torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ff.goodness(torch.ones(2, 3), "cube"), "goodness='cube'.*'mean_square'"),
        (lambda: ff.normalise_activity(torch.ones(2, 3), "max"), "normalise='max'.*'rms', 'l2'"),
        (lambda: ff.loss_coefficients("hinge", torch.ones(2), torch.ones(2)), "loss='hinge'.*'ff', 'symba'"),
        (lambda: ff.class_patterns(3, 4, "stripes"), "pattern='stripes'.*'normal'"),
        (lambda: ff.symba_loss(torch.ones(2), torch.ones(2), reduction="max"), "reduction='max'.*'mean'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(call, message):
    with pytest.raises(ValueError, match=message):
        call()
