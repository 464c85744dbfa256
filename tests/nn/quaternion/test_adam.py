"""QuaternionAdam is Adam without marks, and with them turns as its gradients do."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import conjugate, hamilton_product, norm
from lightning_nobp.nn.quaternion.adam import QuaternionAdam, quaternion_parameters, retract_
from lightning_nobp.nn.quaternion.convolution import QuaternionConv2d, QuaternionConvTranspose1d
from lightning_nobp.nn.quaternion.linear import QuaternionLinear

SHAPES = [(4, 3, 2), (12,)]


def parameters(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, dtype=torch.float64, generator=generator)) for shape in SHAPES]


def gradients(steps=6):
    """Of each step, of each parameter; of very different sizes."""
    generator = torch.Generator().manual_seed(1)
    draw = lambda shape: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    return [[draw(shape) * 10 ** draw(()) for shape in SHAPES] for _ in range(steps)]


def walk(optimizer, values, history):
    """Where the parameters are after every step."""
    places = []
    for grads in history:
        for parameter, grad in zip(values, grads, strict=True):
            parameter.grad = grad.clone()
        optimizer.step()
        places.append([p.detach().clone() for p in values])
    return places


def difference(left, right):
    return max((a - b).abs().max().item() for x, y in zip(left, right, strict=True) for a, b in zip(x, y, strict=True))


OPTIONS = [{}, {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3}, {"betas": (0.0, 0.0), "eps": 0.1}]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_without_marks_it_is_adam(options):
    mine, torchs = parameters(), parameters()
    places = walk(QuaternionAdam(mine, **options), mine, gradients())
    assert difference(places, walk(torch.optim.Adam(torchs, **options), torchs, gradients())) < 1e-14


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_weight_decay_is_that_of_adamw(options):
    options = options | {"weight_decay": 0.3}
    mine, torchs = parameters(), parameters()
    places = walk(QuaternionAdam(mine, **options), mine, gradients())
    assert difference(places, walk(torch.optim.AdamW(torchs, **options), torchs, gradients())) < 1e-14


def test_the_second_moment_is_a_quarter_of_the_squared_length():
    """With betas of 0 and without history, a step has a length in closed form: ``lr g / (|g| / 2 + eps)``."""
    values, (grads,) = parameters(), gradients(1)
    before = [p.detach().clone() for p in values]
    walk(QuaternionAdam(values, 0.1, (0.0, 0.0), 0.01, quaternions=values), values, [grads])
    for value, start, grad in zip(values, before, grads, strict=True):
        length = grad.view(4, -1).norm(dim=0)
        step = -0.1 * grad.view(4, -1) / (length / 2 + 0.01)
        assert torch.allclose(value.detach(), start + step.view_as(start), rtol=0, atol=1e-14)


def turned(value, unit, side):
    parts = value.view(4, -1)
    unit = unit.view(4, 1)
    product = hamilton_product(unit, parts, 0) if side == "left" else hamilton_product(parts, unit, 0)
    return product.view_as(value)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_steps_turn_with_the_gradients(side, weight_decay):
    unit = torch.randn(4, dtype=torch.float64)
    unit = unit / unit.norm()
    turn = lambda history: [[turned(value, unit, side) for value in values] for values in history]  # noqa: E731

    def run(marked, turning):
        values = parameters()
        history = gradients()
        if turning:
            (starts,) = turn([[p.detach() for p in values]])
            values = [nn.Parameter(start) for start in starts]
            history = turn(history)
        optimizer = QuaternionAdam(values, 0.1, weight_decay=weight_decay, quaternions=values if marked else ())
        return walk(optimizer, values, history)

    assert difference(run(True, True), turn(run(True, False))) < 1e-13
    assert difference(run(False, True), turn(run(False, False))) > 0.01


def test_only_marked_parameters_share():
    values, torchs = parameters(), parameters()
    places = walk(QuaternionAdam(values, quaternions=values[:1]), values, gradients())
    adam = walk(torch.optim.Adam(torchs), torchs, gradients())
    assert difference([p[1:] for p in places], [p[1:] for p in adam]) < 1e-14
    assert difference([p[:1] for p in places], [p[:1] for p in adam]) > 1e-4


def test_marks_are_of_all_groups_and_add_up():
    together, apart = parameters(), parameters()
    optimizer = QuaternionAdam([{"params": [p]} for p in apart])
    for parameter in apart:
        optimizer.mark([parameter])
    others = walk(QuaternionAdam(together, quaternions=together), together, gradients())
    assert difference(walk(optimizer, apart, gradients()), others) == 0


def test_groups_have_learning_rates_of_their_own():
    values = parameters()
    start = values[1].detach().clone()
    walk(QuaternionAdam([{"params": values[:1]}, {"params": values[1:], "lr": 0.0}], 0.1), values, gradients())
    assert torch.equal(values[1], start)


def test_parameters_of_others_are_passed_over():
    values, plain = parameters(), parameters()
    optimizer = QuaternionAdam(values, quaternions=parameters(1))
    assert difference(walk(optimizer, values, gradients()), walk(QuaternionAdam(plain), plain, gradients())) == 0


@pytest.mark.parametrize("marks", ["at the start", "before", "after"])
def test_groups_that_are_added_later_are_marked_as_those_of_the_start(marks):
    together, apart = parameters(), parameters()
    optimizer = QuaternionAdam(apart[:1], 0.1, quaternions=apart if marks == "at the start" else ())
    if marks == "before":
        optimizer.mark(apart)
    optimizer.add_param_group({"params": apart[1:], "eps": 1e-8})
    if marks == "after":
        optimizer.mark(apart)
    others = walk(QuaternionAdam(together, 0.1, quaternions=together), together, gradients())
    assert difference(walk(optimizer, apart, gradients()), others) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"lr": -1.0}, "lr=-1.0"), ({"betas": (0.9,)}, r"betas=\(0.9,\) must be two"), ({"eps": -1.0}, "eps=-1.0")],
)
def test_options_of_groups_are_checked_too(options, message):
    values = parameters()
    optimizer = QuaternionAdam(values[:1])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": values[1:]} | options)
    assert len(optimizer.param_groups) == 1
    with pytest.raises(ValueError, match=message):
        QuaternionAdam([{"params": values} | options])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_take_further_groups(copied):
    values = parameters()
    optimizer, (_, last) = copied((QuaternionAdam(values[:1], quaternions=values), values))
    optimizer.add_param_group({"params": [last]})
    optimizer.mark([last])
    assert [group["quaternions"] for group in optimizer.param_groups] == [[0], [0]]


def test_parameters_without_gradient_stay():
    values = parameters()
    start = values[1].detach().clone()
    optimizer = QuaternionAdam(values, weight_decay=0.1, quaternions=values)
    values[0].grad = torch.ones_like(values[0])
    optimizer.step()
    assert torch.equal(values[1], start)
    assert values[1] not in optimizer.state


@pytest.mark.parametrize("marks_again", [True, False])
def test_a_run_goes_on_from_a_checkpoint_bit_by_bit(marks_again):
    values, history = parameters(), gradients()
    optimizer = QuaternionAdam(values, 0.1, weight_decay=0.1, quaternions=values)
    walk(optimizer, values, history[:3])
    file = io.BytesIO()
    torch.save((optimizer.state_dict(), [p.detach() for p in values]), file)
    whole = walk(optimizer, values, history[3:])
    file.seek(0)
    state, places = torch.load(file, weights_only=True)
    resumed = [nn.Parameter(place) for place in places]
    optimizer = QuaternionAdam(resumed, quaternions=resumed if marks_again else ())
    optimizer.load_state_dict(state)
    assert difference(walk(optimizer, resumed, history[3:]), whole) == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_copies_go_on_likewise(copied):
    values, history = parameters(), gradients()
    optimizer = QuaternionAdam(values, quaternions=values)
    walk(optimizer, values, history[:3])
    twin, twins = copied((optimizer, values))
    assert difference(walk(twin, twins, history[3:]), walk(optimizer, values, history[3:])) == 0


def test_marks_outlive_the_state_of_an_optimizer_that_knows_none():
    first, later = nn.Parameter(torch.randn(4, 2)), nn.Parameter(torch.randn(4, 2))
    plain = torch.optim.Adam([first])
    for state in (plain.state_dict(), QuaternionAdam([first]).state_dict()):
        optimizer = QuaternionAdam([first], quaternions=[first, later])
        optimizer.load_state_dict(state)
        optimizer.add_param_group({"params": [later]})
        assert [group["quaternions"] for group in optimizer.param_groups] == [[0], [0]]


def test_a_closure_computes_the_gradients():
    values = parameters()
    optimizer = QuaternionAdam(values, 0.05, quaternions=values)

    def closure():
        optimizer.zero_grad()
        loss = sum(p.square().sum() for p in values)
        loss.backward()
        return loss

    first = optimizer.step(closure)
    for _ in range(200):
        last = optimizer.step(closure)
    assert last < 1e-3 * first


def test_parameters_of_quaternion_layers_are_found():
    layers = QuaternionLinear(8, 8), QuaternionConv2d(4, 8, 3, bias=False), QuaternionConvTranspose1d(4, 4, 2)
    module = nn.ModuleDict({"body": nn.Sequential(*layers), "head": nn.Linear(8, 4)})
    found = quaternion_parameters(module)
    expected = [layers[0].weight, layers[0].bias, layers[1].weight, layers[2].weight, layers[2].bias]
    assert [id(p) for p in found] == [id(p) for p in expected]
    QuaternionAdam(module.parameters(), quaternions=found)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 must not be negative"),
        ({"lr": float("nan")}, "lr=nan must be finite"),
        ({"betas": (1.0, 0.9)}, r"betas=\(1.0, 0.9\) must be two numbers in \[0, 1\)"),
        ({"betas": (0.9, -0.1)}, "must be two numbers"),
        ({"eps": -1.0}, "eps=-1.0 and weight_decay=0.0 must not be negative"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 must not be negative"),
        ({"quaternions": [torch.zeros(6)]}, r"a parameter of shape \(6,\) holds no whole quaternions"),
        ({"quaternions": [torch.zeros(())]}, r"a parameter of shape \(\) holds no whole quaternions"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        QuaternionAdam(parameters(), **options)


def test_retraction_puts_every_quaternion_back_to_length_one():
    weight, bias, zero = torch.randn(4, 3, 2), nn.Parameter(torch.randn(12)), torch.zeros(4, 1)
    direction = weight / norm(weight, dim=0)
    retract_([weight, bias, zero])
    assert torch.allclose(weight, direction)
    assert torch.allclose(norm(bias.view(4, 3), dim=0), torch.ones(3))
    assert torch.equal(zero, torch.zeros(4, 1))
    with pytest.raises(ValueError, match=r"a parameter of shape \(6,\) holds no whole quaternions"):
        retract_([torch.zeros(6)])


@pytest.mark.parametrize("kind", [QuaternionAdam, torch.optim.SGD])
def test_the_rotation_between_two_clouds_of_points_is_found_with_a_quaternion_of_length_one(kind):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(50, 4, dtype=torch.float64, generator=generator)
    truth = torch.randn(4, dtype=torch.float64, generator=generator)
    # Without the constraint, longer weights would scale the points.
    turned = lambda w: hamilton_product(hamilton_product(w, points), conjugate(w))  # noqa: E731
    target = turned(truth / truth.norm())
    weight = nn.Parameter(torch.tensor([1.0, 0, 0, 0], dtype=torch.float64))
    optimizer = kind([weight], lr=0.05)
    optimizer.register_step_post_hook(lambda *_: retract_([weight]))
    for _ in range(500):
        optimizer.zero_grad()
        (turned(weight) - target).square().mean().backward()
        optimizer.step()
        assert abs(norm(weight).item() - 1) < 1e-14
    assert (turned(weight) - target).abs().max() < 1e-3


def test_a_single_parameter_needs_no_list():
    torch.manual_seed(0)
    alone, listed = nn.Parameter(torch.randn(4, 3, 2)), nn.Parameter(torch.zeros(4, 3, 2))
    listed.data.copy_(alone.data)
    assert QuaternionAdam([alone], quaternions=alone).param_groups[0]["quaternions"] == [0]
    optimizer = QuaternionAdam([alone])
    optimizer.mark(alone)
    assert optimizer.param_groups[0]["quaternions"] == [0]
    retract_(alone)
    retract_([listed])
    assert torch.equal(alone, listed)
    torch.testing.assert_close(norm(alone.detach(), dim=0), torch.ones(3, 2))
