"""Bad servers: one error that says what to do, nothing half installed, and the next try works."""

import bad_server
import pytest
from bad_server import FAULTS, KINDS, SAMPLES, serving

from lightning_nobp.datamodules import CIFAR10DataModule, MNISTDataModule, TinyImageNetDataModule


def assert_refused_and_then_installed(kind, root, server):
    data = kind(root=str(root), val_size=0.2)
    with pytest.raises(OSError, match=r"could not be downloaded \(.+\)\. To do it by hand, .*root=") as caught:
        data.prepare_data()
    assert "\n" not in str(caught.value)
    assert server.asked
    assert [path for path in root.rglob("*") if not path.name.endswith(".lock")] == []
    server.fault = ""
    data.prepare_data()
    assert len(data.load("train").labels) == SAMPLES[kind]


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("kind", [MNISTDataModule, CIFAR10DataModule, TinyImageNetDataModule])
def test_a_failed_download_installs_nothing_and_the_next_one_works(kind, fault, tmp_path, monkeypatch):
    with serving(kind, tmp_path, monkeypatch) as server:
        server.fault = fault
        assert_refused_and_then_installed(kind, tmp_path / "root", server)


@pytest.mark.parametrize("kind", KINDS)
def test_a_slow_download_is_waited_for(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(bad_server.FAULTS, "slow", bad_server.trickle)
    with serving(kind, tmp_path, monkeypatch) as server:
        server.fault = "slow"
        data = kind(root=str(tmp_path / "root"), val_size=0.2)
        data.prepare_data()
        assert len(data.load("train").labels) == SAMPLES[kind]
