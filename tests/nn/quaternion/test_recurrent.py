"""Recurrent layers of quaternions: four of torch's where weights are real, and their interface."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck

from lightning_nobp.functional.quaternion import hamilton_product, pack, quaternion_linear, unpack
from lightning_nobp.nn import check_supported
from lightning_nobp.nn.quaternion.adam import quaternion_parameters
from lightning_nobp.nn.quaternion.recurrent import QuaternionGRU, QuaternionLSTM, QuaternionRNN

KINDS = {"LSTM": (QuaternionLSTM, nn.LSTM), "GRU": (QuaternionGRU, nn.GRU), "RNN": (QuaternionRNN, nn.RNN)}
N, M, LENGTH, BATCH = 3, 2, 5, 4
OPTIONS = [
    {},
    {"num_layers": 3},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False, "batch_first": True},
    {"algorithm": "fast8"},
    {"side": "right", "algorithm": "block"},
]


def made(kind, **options):
    """A layer in float64 with biases that are not 0."""
    layer = KINDS[kind][0](4 * N, 4 * M, **{"dtype": torch.float64} | options)
    for name, parameter in layer.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return layer


def sequences(options=(), dtype=torch.float64):
    first = "batch_first" in options
    return torch.randn(*((BATCH, LENGTH) if first else (LENGTH, BATCH)), 4 * N, dtype=dtype)


def starts(kind, layer):
    """First states, as the layer wants them."""
    draw = lambda: torch.randn(len(layer.inputs), BATCH, 4 * M, dtype=torch.float64)  # noqa: E731
    return (draw(), draw()) if kind == "LSTM" else draw()


def as_tuple(states):
    return states if isinstance(states, tuple) else (states,)


def of_component(kind, layer, component, options):
    """Torch's layer that does what a quaternion one with real weights does to one component."""
    usual = {name: value for name, value in options.items() if name not in ("algorithm", "side")}
    found = KINDS[kind][1](N, M, **usual, dtype=torch.float64)
    state = {}
    for place, (inputs, recurrent) in enumerate(zip(layer.inputs, layer.recurrent, strict=True)):
        directions = 1 + layer.bidirectional
        ending = f"l{place // directions}" + ("_reverse" if place % directions else "")
        for name, part in (("ih", inputs), ("hh", recurrent)):
            state[f"weight_{name}_{ending}"] = part.weight[0]
            if layer.bias:
                zero = torch.zeros(len(part.weight[0]), dtype=torch.float64)
                state[f"bias_{name}_{ending}"] = zero if part.bias is None else part.bias.chunk(4)[component]
    found.load_state_dict(state)
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_with_real_weights_each_component_goes_through_torchs_layer(kind, options):
    layer, x = made(kind, **options), sequences(options)
    for part in (*layer.inputs, *layer.recurrent):
        part.weight.data[1:] = 0
    hx = starts(kind, layer)
    y, ends = layer(x, hx)
    parts = []
    for component in range(4):
        start = tuple(state.chunk(4, dim=-1)[component].contiguous() for state in as_tuple(hx))
        torchs = of_component(kind, layer, component, options)
        parts.append(torchs(x.chunk(4, dim=-1)[component], start if kind == "LSTM" else start[0]))
    assert torch.allclose(y, torch.cat([part[0] for part in parts], dim=-1), rtol=0, atol=1e-13)
    for i, end in enumerate(as_tuple(ends)):
        expected = torch.cat([as_tuple(part[1])[i] for part in parts], dim=-1)
        assert torch.allclose(end, expected, rtol=0, atol=1e-13)


def test_relu_instead_of_tanh():
    layer, x = made("RNN", nonlinearity="relu"), sequences()
    for part in (*layer.inputs, *layer.recurrent):
        part.weight.data[1:] = 0
    expected = [of_component("RNN", layer, c, {"nonlinearity": "relu"})(x.chunk(4, dim=-1)[c])[0] for c in range(4)]
    assert torch.allclose(layer(x)[0], torch.cat(expected, dim=-1), rtol=0, atol=1e-13)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("algorithm", ["auto", "block", "fast8"])
def test_a_step_of_the_lstm_is_the_formula(side, algorithm):
    layer, x = made("LSTM", side=side, algorithm=algorithm), sequences()
    h, c = starts("LSTM", layer)
    products = lambda part, q: quaternion_linear(q, part.weight, part.bias, side)  # noqa: E731
    z = products(layer.inputs[0], x[0]) + products(layer.recurrent[0], h[0])
    # Quaternion by quaternion: the gates' are one behind the other.
    enter, forget, new, leave = unpack(z).chunk(4, dim=-2)
    cell = forget.sigmoid() * unpack(c[0]) + enter.sigmoid() * new.tanh()
    expected = pack(leave.sigmoid() * cell.tanh())
    y, (last, last_cell) = layer(x[:1], (h, c))
    assert torch.allclose(y[0], expected, rtol=0, atol=1e-14)
    assert torch.equal(last[0], y[0])
    assert torch.allclose(last_cell[0], pack(cell), rtol=0, atol=1e-14)


def test_a_step_of_the_plain_layer_is_a_hamilton_product():
    layer = QuaternionRNN(4, 4, bias=False, dtype=torch.float64)
    x, h = (torch.randn(1, 4, dtype=torch.float64) for _ in range(2))
    w, v = layer.inputs[0].weight.flatten(), layer.recurrent[0].weight.flatten()
    expected = (hamilton_product(w, x) + hamilton_product(v, h)).tanh()
    assert torch.allclose(layer(x, h)[0], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", [{"algorithm": "fast8"}, {"algorithm": "block", "bidirectional": True}], ids=str)
def test_autograd_agrees_with_differences(kind, options):
    layer = KINDS[kind][0](4, 4, dtype=torch.float64, **options)
    names = [name for name, _ in layer.named_parameters()]

    def run(x, *parameters):
        y, ends = torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))
        return y, *as_tuple(ends)

    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(run, (x, *layer.parameters()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shapes_are_torchs(kind, options):
    layer = made(kind, **options)
    usual = {name: value for name, value in options.items() if name not in ("algorithm", "side")}
    torchs = KINDS[kind][1](4 * N, 4 * M, **usual, dtype=torch.float64)
    x = sequences(options)
    for inputs in (x, x[:, 0]):
        (y, ends), (expected, expected_ends) = layer(inputs), torchs(inputs)
        assert y.shape == expected.shape
        assert [e.shape for e in as_tuple(ends)] == [e.shape for e in as_tuple(expected_ends)]
    assert sum(p.numel() for p in layer.inputs.parameters() if p.dim() == 3) * 4 == sum(
        p.numel() for name, p in torchs.named_parameters() if name.startswith("weight_ih")
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_batch_may_come_first_or_be_missing(kind):
    layer, first = made(kind, bidirectional=True), made(kind, bidirectional=True, batch_first=True)
    first.load_state_dict(layer.state_dict())
    x, hx = sequences(), starts(kind, layer)
    y, ends = layer(x, hx)
    swapped, same_ends = first(x.transpose(0, 1), hx)
    assert torch.equal(swapped.transpose(0, 1), y)
    one = tuple(state[:, 1] for state in as_tuple(hx))
    alone, alone_ends = layer(x[:, 1], one if kind == "LSTM" else one[0])
    assert torch.allclose(alone, y[:, 1], rtol=0, atol=1e-14)
    for end, same, of_one in zip(as_tuple(ends), as_tuple(same_ends), as_tuple(alone_ends), strict=True):
        assert torch.equal(same, end)
        assert torch.allclose(of_one, end[:, 1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_first_state_it_is_zero(kind):
    layer, x = made(kind, num_layers=2), sequences()
    hx = starts(kind, layer)
    zero = tuple(torch.zeros_like(state) for state in as_tuple(hx))
    assert torch.equal(layer(x)[0], layer(x, zero if kind == "LSTM" else zero[0])[0])
    assert not torch.equal(layer(x)[0], layer(x, hx)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_may_be_cut_in_two(kind):
    layer, x = made(kind, num_layers=2), sequences()
    whole, ends = layer(x)
    first, between = layer(x[:2])
    second, last = layer(x[2:], between)
    assert torch.allclose(torch.cat([first, second]), whole, rtol=0, atol=1e-14)
    assert all(torch.allclose(a, b, rtol=0, atol=1e-14) for a, b in zip(as_tuple(last), as_tuple(ends), strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_between_layers_and_in_training_only(kind):
    x = sequences()
    layer, plain = made(kind, num_layers=2, dropout=1.0), made(kind, num_layers=2)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(layer.eval()(x)[0], plain(x)[0])
    y = layer.train()(x)[0]
    # The second layer sees nothing of the first.
    assert torch.equal(y, layer(torch.randn_like(x))[0])
    alone, other = made(kind, dropout=1.0), made(kind)
    other.load_state_dict(alone.state_dict())
    assert torch.equal(alone.train()(x)[0], other(x)[0])


def test_gates_start_as_layers_of_their_own():
    layer = QuaternionLSTM(4 * 60, 4 * 100, init="isotropic")
    for part, fans in ((layer.inputs[0], 160), (layer.recurrent[0], 200)):
        for gate in part.weight.detach().chunk(4, dim=1):
            assert abs(gate.square().mean() * 2 * fans - 1) < 0.05
        assert part.bias is None or torch.equal(part.bias, torch.zeros_like(part.bias))
    torch.manual_seed(1)
    layer.reset_parameters()
    first = layer.recurrent[0].weight.clone()
    torch.manual_seed(1)
    layer.reset_parameters()
    assert torch.equal(layer.recurrent[0].weight, first)


# What is expected of a torch layer


@pytest.mark.parametrize("kind", KINDS)
def test_on_the_meta_device_only_shapes_are_computed(kind):
    layer = made(kind, device="meta", bidirectional=True)
    assert all(p.is_meta for p in layer.parameters())
    y, _ = layer(sequences().to("meta"))
    assert (y.shape, y.is_meta) == ((LENGTH, BATCH, 8 * M), True)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_checkpoints_bring_everything_back(kind):
    layer, x = made(kind, num_layers=2), sequences()
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    twin = made(kind, num_layers=2)
    assert not torch.equal(twin(x)[0], layer(x)[0])
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(twin(x)[0], layer(x)[0])
    assert torch.equal(copy.deepcopy(layer)(x)[0], layer(x)[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["auto", "block"])
def test_half_precision_under_autocast(kind, algorithm):
    layer = made(kind, dtype=torch.float32, num_layers=2, algorithm=algorithm)
    x = sequences(dtype=torch.float32)
    expected = layer(x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)[0]
        y.float().square().sum().backward()
    assert (y - expected).norm() < 0.03 * expected.norm()
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_wide_layers_agree_whatever_the_algorithm(kind):
    """Wide enough for ``'auto'`` to take fast8."""
    layers = [KINDS[kind][0](8, 4 * 64, algorithm=a, dtype=torch.float64) for a in ("auto", "block", "fast8")]
    for layer in layers[1:]:
        layer.load_state_dict(layers[0].state_dict())
    x = torch.randn(3, 70, 8, dtype=torch.float64)
    outputs = [layer(x)[0] for layer in layers]
    assert all(torch.allclose(y, outputs[0], rtol=0, atol=1e-13) for y in outputs)


def test_all_parameters_are_quaternions():
    layer = QuaternionGRU(8, 8, num_layers=2)
    assert {id(p) for p in quaternion_parameters(layer)} == {id(p) for p in layer.parameters()}


def test_there_is_no_written_way_back():
    with pytest.raises(TypeError, match=r"'network.0', a QuaternionLSTM.*let autograd do it"):
        check_supported(nn.Sequential(QuaternionLSTM(4, 4)))


def test_printing_shows_sizes_and_what_is_unusual():
    assert repr(QuaternionLSTM(8, 4)).startswith("QuaternionLSTM(\n  8, 4\n")
    layer = QuaternionRNN(8, 4, 2, "relu", False, True, 0.1, True)
    shown = "8, 4, num_layers=2, bias=False, batch_first=True, dropout=0.1, bidirectional=True, nonlinearity='relu'"
    assert layer.extra_repr() == shown


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_size": 6}, "input_size has 6 features: quaternions take four each"),
        ({"hidden_size": 6}, "hidden_size has 6 features"),
        ({"hidden_size": 0}, "hidden_size=0 must be positive"),
        ({"input_size": -4}, "input_size=-4 must be positive"),
        ({"num_layers": 0}, "num_layers=0 must be positive"),
        ({"dropout": 1.5}, "dropout=1.5 must lie between 0 and 1"),
        ({"side": "up"}, "side='up' is not one of"),
        ({"algorithm": "fft"}, "algorithm='fft' is not one of"),
        ({"init": "zero"}, "init='zero' is not one of"),
    ],
)
def test_bad_arguments_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        KINDS[kind][0](**{"input_size": 8, "hidden_size": 8} | options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["input_size", "hidden_size", "num_layers"])
@pytest.mark.parametrize("value", [8.0, "8", True])
def test_sizes_that_are_no_whole_numbers_are_refused(kind, name, value):
    with pytest.raises(TypeError, match=f"{name}={value!r} is no whole number: give an int"):
        KINDS[kind][0](**{"input_size": 8, "hidden_size": 8, name: value})


def test_an_unknown_nonlinearity_is_refused():
    with pytest.raises(ValueError, match="nonlinearity='gelu' is not one of 'tanh', 'relu'"):
        QuaternionRNN(8, 8, nonlinearity="gelu")


@pytest.mark.parametrize("kind", KINDS)
def test_bad_inputs_are_refused(kind):
    layer, first = made(kind), made(kind, batch_first=True)
    with pytest.raises(ValueError, match=r"x of shape \(5, 4, 8\) is neither \(length, batch, 12\) nor \(length, 12\)"):
        layer(torch.zeros(5, 4, 8))
    with pytest.raises(ValueError, match=r"x of shape \(12,\) is neither \(batch, length, 12\)"):
        first(torch.zeros(12))
    with pytest.raises(ValueError, match=r"x of shape \(0, 4, 12\) has a length of 0"):
        layer(torch.zeros(0, 4, 12))
    with pytest.raises(ValueError, match=r"x of shape \(4, 0, 12\) has a length of 0"):
        first(torch.zeros(4, 0, 12))
    with pytest.raises(ValueError, match=r"x is torch.float32, but weight torch.float64"):
        layer(torch.zeros(5, 4, 12))
    packed = nn.utils.rnn.pack_padded_sequence(sequences(), [LENGTH] * BATCH)
    with pytest.raises(TypeError, match="x is a PackedSequence: pad sequences of different lengths"):
        layer(packed)
    wrong = torch.zeros(1, BATCH, 4)
    with pytest.raises(ValueError, match=r"hx holds .*\(1, 4, 4\): give [12] of shape \(1, 4, 8\)"):
        layer(sequences(), (wrong, wrong) if kind == "LSTM" else wrong)


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_first_states_of_a_memory_are_refused_where_there_is_one(kind):
    layer = made(kind)
    state = starts(kind, layer)
    with pytest.raises(TypeError, match="hx is a tuple: give one tensor, the hidden state"):
        layer(sequences(), (state, state))


@pytest.mark.parametrize("pair", [False, True])
def test_first_states_that_are_no_pair_of_tensors_are_refused_by_a_memory(pair):
    layer = made("LSTM")
    hidden, _ = starts("LSTM", layer)
    name = "tuple" if pair else "Tensor"
    with pytest.raises(TypeError, match=rf"hx is a {name}, no pair of tensors: give \(hidden state, cell\)"):
        layer(sequences(), (hidden, None) if pair else hidden)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("given", [False, True])
def test_what_is_exported_takes_any_number_of_sequences(kind, given):
    """Wide enough for ``'auto'`` to take fast8, of many sequences, where nothing is exported."""
    layer = KINDS[kind][0](8, 4 * 64)
    draw = lambda batch: torch.randn(3, batch, 8)  # noqa: E731

    def inputs(batch):
        state = torch.randn(1, batch, 4 * 64)
        return (draw(batch), (state, state) if kind == "LSTM" else state) if given else (draw(batch),)

    batch = {1: torch.export.Dim("batch")}
    shapes = (batch, (batch, batch) if kind == "LSTM" else batch) if given else (batch,)
    file = io.BytesIO()
    torch.export.save(torch.export.export(layer, inputs(70), dynamic_shapes=shapes), file)
    file.seek(0)
    exported = torch.export.load(file).module()
    for number in (2, 9, 70):
        arguments = inputs(number)
        (y, ends), (expected, expected_ends) = exported(*arguments), layer(*arguments)
        assert torch.allclose(y, expected, rtol=0, atol=1e-5)
        for end, expected_end in zip(as_tuple(ends), as_tuple(expected_ends), strict=True):
            assert torch.allclose(end, expected_end, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("algorithm", ["auto", "block", "fast8"])
def test_one_sequence_is_computed_as_among_others(kind, algorithm):
    layer, x = made(kind, algorithm=algorithm, bidirectional=True), sequences()
    assert torch.allclose(layer(x[:, :1])[0], layer(x)[0][:, :1], rtol=0, atol=1e-14)
    assert layer.to("meta")(x[:, :1].to("meta"))[0].shape == (LENGTH, 1, 8 * M)


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_to_repeat_what_was_three_steps_ago(kind):
    torch.manual_seed(0)
    layer, readout = KINDS[kind][0](4, 48), nn.Linear(48, 4)
    optimizer = torch.optim.Adam([*layer.parameters(), *readout.parameters()], 0.01)
    losses = []
    for _ in range(200):
        x = torch.randint(0, 2, (9, 32, 4)) * 2.0 - 1
        loss = (readout(layer(x)[0])[3:] - x[:-3]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # A constant output has a loss of 1.
    assert losses[-1] < 0.2 * losses[0]
    assert losses[-1] < 0.2
