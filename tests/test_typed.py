"""Wrong arguments are told by their names, before a constructor runs, and when torch stumbles."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from lightning_nobp.functional.quaternion import hamilton_product, quaternion_linear
from lightning_nobp.metrics import DecisionTime
from lightning_nobp.nn import QuaternionLinear
from lightning_nobp.typed import Typed, explained


class Base(Typed):
    def __init__(self, *, size: int = 1, name: Literal["a", "b"] | None = None) -> None:
        self.size, self.name = size, name


class Thing(Base):
    def __init__(
        self,
        shape: Sequence[int] = (1,),
        rate: float = 0.1,
        pair: tuple[int, int] = (1, 2),
        table: Mapping[str, float] | None = None,
        make: Callable[[int], int] = int,
        anything: Any = None,
        late: int | None = None,  # type: ignore[assignment]
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shape": 3}, r"shape=3 is of type int: give Sequence\[int\]"),
        ({"shape": "12"}, "shape='12' is of type str"),
        ({"shape": [1, "x"]}, r"shape=\[1, 'x'\]"),
        ({"rate": "0.1"}, "rate='0.1' is of type str: give float"),
        ({"rate": True}, "rate=True is of type bool"),
        ({"pair": (1, 2, 3)}, r"pair=\(1, 2, 3\)"),
        ({"table": {"x": "y"}}, "table="),
        ({"make": 3}, "make=3 is of type int"),
        ({"size": 1.0}, "size=1.0 is no whole number: give an int"),
        ({"size": True}, "size=True is no whole number"),
        ({"name": 3}, "name=3 is of type int: give 'a', 'b' or None"),
    ],
)
def test_a_wrong_type_is_refused_by_name(arguments, message):
    with pytest.raises(TypeError, match=message):
        Thing(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": float("nan")}, "rate=nan must be finite"),
        ({"shape": [2**70]}, "shape=.* does not fit into 64 bits"),
        ({"name": "c"}, "name='c' is not one of 'a', 'b', or None"),
    ],
)
def test_a_number_that_is_none_and_an_unknown_choice_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        Thing(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"shape": torch.Size([1, 2]), "size": np.int64(3), "rate": np.float32(0.5), "name": "a"},
        {"shape": [], "rate": 1, "pair": [3, 4], "table": {"x": 1}, "anything": object(), "late": None},
    ],
)
def test_what_fits_passes(arguments):
    assert isinstance(Thing(**arguments), Thing)


def test_arguments_by_place_are_checked_too_and_unknown_ones_left_to_python():
    with pytest.raises(TypeError, match="rate='x' is of type str"):
        Thing((1,), "x")
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        Thing(colour="red")


def test_numbers_and_paths_pass_where_wider_ones_are_asked_for_and_nothing_is_asked_without_annotation():
    class Wide(Typed):
        def __init__(self, phase: complex = 1j, folder: Path = Path(), fill=0.0):
            pass

    assert isinstance(Wide(1.0, "a", float("nan")), Wide)
    with pytest.raises(TypeError, match="phase='x' is of type str: give complex"):
        Wide("x")


def test_missing_arguments_are_left_to_python():
    with pytest.raises(TypeError, match=r"hamilton_product\(\) missing 1 required positional argument"):
        hamilton_product(torch.zeros(2, 4))
    with pytest.raises(TypeError, match=r"QuaternionLinear.__init__\(\) missing"):
        QuaternionLinear()


def test_what_torch_stumbles_over_is_told_by_name_and_shape():
    with pytest.raises(
        RuntimeError, match=r"hamilton_product cannot work with p of shape \(2, 4\) and torch.float32, q"
    ):
        hamilton_product(torch.zeros(2, 4), torch.zeros(3, 4))
    with pytest.raises(TypeError, match="q='x' is of type str: give Tensor"):
        hamilton_product(torch.zeros(2, 4), "x")


def test_own_refusals_and_errors_of_functions_that_were_given_pass():
    with pytest.raises(ValueError, match=r"^x has 3 features: quaternions"):
        quaternion_linear(torch.zeros(2, 3), torch.zeros(4, 1, 1))

    def stops(x):
        raise RuntimeError("mine")

    @explained
    def calls(f: Any, x: Any) -> Any:
        return f(x)

    with pytest.raises(RuntimeError, match=r"^mine$"):
        calls(stops, 1)


def test_a_module_is_copied_and_pickled_without_its_arguments():
    import pickle

    from lightning_nobp.nn import MLP

    network = MLP((4,), 2)
    for again in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert isinstance(again, nn.Sequential)
        assert again.hidden_dims == network.hidden_dims


def test_metrics_are_copied_with_their_state():
    metric = DecisionTime(t_max=2.0)
    metric.update(torch.tensor([[[0.5]], [[1.5]]]))
    assert torch.equal(copy.deepcopy(metric).compute(), metric.compute())
