"""Series from files: layouts, splits, and what they refuse."""

import re

import numpy as np
import pandas as pd
import pytest
import torch

from lightning_nobp.datamodules import TimeSeriesDataModule
from lightning_nobp.datamodules.series_files import read_series

DT = 0.5
TIMES = DT * np.arange(100)
X = np.random.default_rng(0).normal(size=(100, 3, 2))
SMALL = {"dt": DT, "window": 4, "horizon": 6, "shuffle": False}


def table(**more):
    columns = {"time": TIMES} | {f"{n}.{c}": X[:, i, k] for i, n in enumerate("abc") for k, c in enumerate("xy")}
    return pd.DataFrame(columns | more)


def write(folder, kind, frame=None, **arrays):
    path = folder / f"series.{kind}"
    frame = table() if frame is None else frame
    if kind == "csv":
        frame.to_csv(path, index=False)
    elif kind == "parquet":
        frame.to_parquet(path)
    elif kind == "npy":
        np.save(path, X)
    else:
        np.savez(path, **{"x": X, "time": TIMES} | arrays)
    return path


def set_up(path, **kwargs):
    data = TimeSeriesDataModule(path=path, **SMALL | kwargs)
    data.setup("fit")
    return data


def samples(data, split):
    return data.batches(split).samples * data.normalisation.scale + data.normalisation.mean


@pytest.mark.parametrize("kind", ["csv", "parquet", "npz", "npy"])
def test_every_layout_gives_the_same_series(kind, tmp_path):
    data = set_up(write(tmp_path, kind))
    whole = torch.cat([samples(data, split) for split in ("train", "val", "test")])
    np.testing.assert_allclose(whole.numpy(), X, rtol=0, atol=1e-12)
    assert (data.num_nodes, data.components, data.dt, data.true_weights) == (3, 2, DT, None)
    assert data.node_names == (("0", "1", "2") if kind in ("npz", "npy") else ("a", "b", "c"))
    [first, *_] = data.train_dataloader()
    assert first[0].shape[1:] == (5, 3, 2)
    assert len(samples(data, "val")) == len(samples(data, "test")) == 10


def test_columns_may_come_in_any_order_and_nodes_may_have_one_component(tmp_path):
    frame = pd.DataFrame({"b": X[:, 1, 0], "a": X[:, 0, 0], "time": TIMES})
    data = set_up(write(tmp_path, "csv", frame))
    assert (data.node_names, data.components) == (("b", "a"), 1)
    mixed = set_up(write(tmp_path, "csv", table()[["a.x", "b.x", "a.y", "b.y"]]))
    whole = torch.cat([samples(mixed, split) for split in ("train", "val", "test")])
    np.testing.assert_allclose(whole.numpy(), X[:, :2], rtol=0, atol=1e-12)


def test_trajectories_are_kept_apart(tmp_path):
    number = np.repeat([4, 7], 50)
    time = DT * np.tile(np.arange(50), 2)
    data = set_up(write(tmp_path, "csv", table(trajectory=number, time=time)), horizon=4)
    assert len(samples(data, "train")) == 2 * 40
    # No window holds samples of both.
    assert not ((data.batches("train").starts < 40) & (data.batches("train").starts + 4 >= 40)).any()
    array = write(tmp_path, "npz", x=X.reshape(2, 50, 3, 2), time=time[:50])
    assert torch.equal(samples(set_up(array, horizon=4), "train"), samples(data, "train"))


def test_names_of_nodes_go_into_the_checkpoint(tmp_path):
    data = set_up(write(tmp_path, "csv"))
    again = TimeSeriesDataModule(path="moved.csv", **SMALL)
    again.load_state_dict(data.state_dict())
    assert again.node_names == ("a", "b", "c")


def test_weights_in_a_file_are_the_truth(tmp_path):
    weights = np.array([[0, 1.0, 0], [0, 0, 2.0], [0.5, 0, 0]])
    data = set_up(write(tmp_path, "npz", weights=weights))
    np.testing.assert_array_equal(data.true_weights.numpy(), weights)


def test_splits_are_as_large_as_asked_for(tmp_path):
    path = write(tmp_path, "npy")
    data = set_up(path, val_size=0.2, test_size=0.3)
    assert [len(samples(data, split)) for split in ("train", "val", "test")] == [50, 20, 30]
    assert set_up(path, val_size=0.0).val_dataloader() == []


def changed(row, column, value):
    frame = table()
    frame.loc[row, column] = value
    return frame


LATER = TIMES + np.where(np.arange(100) > 60, 2.0, 0.0)


@pytest.mark.parametrize(
    ("frame", "arguments", "message"),
    [
        (
            changed(3, "b.y", np.nan),
            {},
            "component 1 of node 'b' is nan at time 1.5 (row 3 from 0), and 1 values in all",
        ),
        (changed(5, "c.x", np.inf), {}, "component 0 of node 'c' is inf at time 2.5 (row 5 from 0)"),
        (table(time=LATER), {}, "from time 30 to 32.5 (row 60 from 0) it is 2.5, not dt=0.5, and 1 of 99 steps"),
        (table(), {"dt": 0.25}, "samples are 0.5 apart, not dt=0.25: give dt in the unit of the column 'time'"),
        (table().drop(columns="b.y"), {}, "there is no column 'b.y'. Give a column a number, <node>.<component>"),
        (table()[["time"]], {}, "no columns. Give a column a number"),
        (table()[["a.x", "a.y"]], {}, "x holds one node: a network has at least two"),
        (table(**{"b.x": 1.0}), {}, "component 0 of node b never changes"),
        (table(**{"c.x": X[:, 0, 0]}), {}, "nodes a and c move together (correlation 1.000000)"),
        (table(), {"lyapunov_exponent": 0.0}, "lyapunov_exponent=0.0 must be positive"),
        (table(), {"dt": 0.0}, "dt=0.0 must be positive"),
        (table(), {"val_size": 1.0}, "val_size=1.0 is a fraction of each trajectory"),
        (table(), {"val_size": 0.5, "test_size": 0.5}, "test_size=0.5 is a fraction of each trajectory"),
        (table(), {"test_size": 0.0}, "test_size=0.0 is a fraction of each trajectory"),
        (table(), {"horizon": 10}, "horizon=10 steps are longer than a trajectory of the test split"),
        (table(), {"window": 80}, "window=80 steps are longer than a trajectory of the train split"),
    ],
)
def test_bad_tables_are_named(frame, arguments, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up(write(tmp_path, "csv", frame), **arguments)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X[0]}, "x of shape (3, 2): give (time, nodes, components)"),
        ({"time": TIMES[:50]}, "time of shape (50,) does not fit 100 samples"),
        ({"weights": np.eye(2)}, "weights of 2 nodes, x of 3"),
        ({"weights": np.ones((2, 3))}, "weights of shape (2, 3): give (nodes, nodes)"),
    ],
)
def test_bad_arrays_are_named(arrays, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up(write(tmp_path, "npz", **arrays))


def test_bad_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="there is no such file"):
        set_up(tmp_path / "none.csv")
    other = tmp_path / "series.txt"
    other.write_text("x")
    with pytest.raises(ValueError, match=re.escape("must end in .csv, .parquet, .npz or .npy")):
        set_up(other)
    np.savez(tmp_path / "y.npz", y=X)
    with pytest.raises(ValueError, match=r"holds y, but no array x"):
        set_up(tmp_path / "y.npz")
    ragged = tmp_path / "ragged.csv"
    ragged.write_text("a,b\n1,2\n3\n")
    with pytest.raises(ValueError, match=r"ragged.csv: 2 names in the header, but 1 columns in line 3"):
        set_up(ragged)
    ragged.write_text("a,b,c\n1,2\n3,4\n")
    with pytest.raises(ValueError, match="3 names in the header, but 2 columns in line 2"):
        set_up(ragged)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty. Give a column a number"),
        ("a,b\n", "has no rows below its header"),
        ("1.5,2\n2,3\n", "has no header: its first row must name the columns"),
        ("a;b\n1;2\n", "columns must be separated by commas, not as in 'a;b'"),
        ("a.x,b.x,a.x\n1,2,3\n", "two columns are called 'a.x'"),
        ("time,a,b\n0,1,2\n,2,3\n1,3,4\n", "nan in column 'time' (row 1 from 0) is no finite number"),
        ("trajectory,a,b\nfirst,1,2\nfirst,2,3\n", "nan in column 'trajectory' (row 0 from 0) is no finite number"),
    ],
)
def test_tables_that_would_be_misread_are_refused(text, message, tmp_path):
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        set_up(path)


def test_tables_of_spreadsheets_are_read(tmp_path):
    path = write(tmp_path, "csv")
    path.write_text(path.read_text(), encoding="utf-8-sig")
    assert set_up(path).node_names == ("a", "b", "c")


def test_times_of_arrays_must_be_finite(tmp_path):
    times = TIMES.copy()
    times[7] = np.nan
    with pytest.raises(ValueError, match=r"it is nan, not dt=0\.5"):
        set_up(write(tmp_path, "npz", time=times))


def test_a_component_that_changes_after_training_only_is_refused(tmp_path):
    late = X.copy()
    late[:80, :, 1] = 1.0
    with pytest.raises(ValueError, match="component 1 never changes in the training series"):
        set_up(write(tmp_path, "npz", x=late))


def test_of_several_trajectories_the_bad_one_is_named(tmp_path):
    frame = table(trajectory=np.repeat([0, 1], 50), time=DT * np.tile(np.arange(50), 2))
    frame.loc[55, "a.x"] = np.nan
    with pytest.raises(ValueError, match=re.escape("trajectory 1: component 0 of node 'a' is nan at time 2.5 (row 5")):
        set_up(write(tmp_path, "csv", frame))


def test_a_table_may_hold_comments_empty_lines_and_gaps(tmp_path):
    path = tmp_path / "series.csv"
    path.write_text('a.x,a.y\n1,"2"\n\n# a, comment\n # b\n 3 , # none, yet\n x,1e400 # much\n')
    [x] = read_series(path).trajectories
    assert torch.equal(x[:, 0].nan_to_num(-1, 9), torch.tensor([[1, 2], [3, -1], [-1, 9]], dtype=torch.float64))
