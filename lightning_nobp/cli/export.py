"""``nobp export``: the trained network, free of this package."""

import argparse
import io
import json
import os
import sys
import warnings
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lightning_nobp.checkpoints import load_checkpoint
from lightning_nobp.files import write_whole
from lightning_nobp.nn import FieldSystem, SpikingLayer, densify
from lightning_nobp.rules import ClassificationRule, NetworkRule

_Exportable = ClassificationRule | NetworkRule


class Scores(nn.Module):
    """What a rule answers, where that is more than its network.

    Args:
        rule: Whose ``forward`` is called.
    """

    def __init__(self, rule: _Exportable) -> None:
        super().__init__()
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        """The rule's scores."""
        scores: Tensor = self.rule(x)
        return scores


def main(arguments: list[str]) -> int:
    """Carry out ``nobp export``; 2 if it cannot be done."""
    parser = argparse.ArgumentParser(
        prog="nobp export", description="Write a checkpoint's network for plain torch (.pt2) or ONNX (.onnx)."
    )
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("file", type=Path, help="to write: .pt2 or .onnx")
    options = parser.parse_args(arguments[1:])
    # A checkpoint may name a user's own classes.
    sys.path.insert(0, os.getcwd())
    try:
        difference = export(options.checkpoint, options.file)
    except (OSError, ValueError, ImportError) as error:
        print(f"nobp: {error}", file=sys.stderr)
        return 2
    print(f"{options.file}: largest difference of its scores from the checkpoint's {difference:.1e}")
    return 0


def export(checkpoint: Path, file: Path) -> float:
    """Write what gives a checkpoint's scores, in evaluation mode, for batches of any size.

    That is the network, or the rule's own ``forward`` where it has one, in the dtype of the checkpoint's weights. A
    ``.pt2`` file holds the extra file ``lightning_nobp.json``: input shape and dtype, and the mean and standard
    deviation with which the inputs were normalised. Of a network that moves in time the file makes one time step, from
    normalised states to normalised states; mean, scale and length of the step are in the same place.

    Args:
        checkpoint: Of a :class:`~lightning_nobp.rules.ClassificationRule` or of a rule for networks in time.
        file: ``.pt2`` (torch.export) or ``.onnx``.

    Returns:
        The largest absolute difference between the scores of the file and those of the rule.

    Raises:
        ValueError: Another suffix, a file that is no checkpoint of such a rule, or a network without a graph.
        ImportError: ONNX is not installed.
    """
    writers = {".pt2": _pt2, ".onnx": _onnx}
    if file.suffix not in writers:
        raise ValueError(f"{file}: the file must end in .pt2 (torch.export) or .onnx")
    rule, content = _load(checkpoint)
    _refuse_what_has_no_graph(rule, checkpoint, file)
    x = torch.randn(3, *_input_shape(rule, checkpoint), dtype=_dtype(content))
    plain = type(rule).forward in (ClassificationRule.forward, NetworkRule.forward)
    with torch.no_grad():
        expected = rule.eval()(x)
    # Sparse layers need this package where the file is used, dense ones with zeros do not.
    rule.add_module("network", densify(rule.built_network()))
    network = (rule.built_network() if plain else Scores(rule)).eval()
    exported, scores = writers[file.suffix](network, x, _about(rule, content))
    write_whole(file, exported)
    return float((scores.double() - expected.double()).abs().max())


def _refuse_what_has_no_graph(rule: _Exportable, checkpoint: Path, file: Path) -> None:
    instead = f"Load it where it is used, by {type(rule).__name__}.load_from_checkpoint"
    if any(isinstance(module, SpikingLayer) for module in rule.modules()):
        raise ValueError(
            f"{checkpoint} holds a spiking network, whose events are found as they come: it has no graph to export. "
            f"{instead}"
        )
    if file.suffix == ".onnx" and any(isinstance(module, FieldSystem) for module in rule.modules()):
        raise ValueError(
            f"{checkpoint} holds a wave field, whose numbers are complex, and ONNX knows none: export it to .pt2. "
            f"{instead}"
        )


def _input_shape(rule: _Exportable, checkpoint: Path) -> tuple[int, ...]:
    """Of one sample."""
    if isinstance(rule, NetworkRule):
        network = rule.built_network()
        return network.num_nodes, network.components
    if rule.input_shape is None:
        raise ValueError(f"{checkpoint} does not know the shape of its inputs: build the rule with input_shape=...")
    return rule.input_shape


def _load(checkpoint: Path) -> tuple[_Exportable, dict[str, Any]]:
    content = load_checkpoint(checkpoint)
    try:
        _import_own(content)
        rule = LightningModule.load_from_checkpoint(checkpoint, map_location="cpu", weights_only=True)
        # Built and filled in float32, whatever the run's precision was.
        rule.to(_dtype(content)).load_state_dict(content["state_dict"], strict=rule.strict_loading)
    except Exception as error:  # whatever a file that is no checkpoint makes torch raise
        raise ValueError(f"{checkpoint} cannot be loaded as a checkpoint of a rule: {error}") from error
    if not isinstance(rule, ClassificationRule | NetworkRule):
        raise ValueError(f"{checkpoint} holds a {type(rule).__name__}, not a rule with a network")
    return rule, content


def _import_own(content: dict[str, Any]) -> None:
    """Import a user's own rule, which Lightning asks for before it builds what a checkpoint names.

    Only from where the user works: a checkpoint of anyone may name any module that is installed.
    """
    module, _, name = str(content["hyper_parameters"].get("_class_path", "")).rpartition(".")
    if not module or module in sys.modules:
        return
    folders = [os.getcwd(), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    top = module.partition(".")[0]
    if PathFinder.find_spec(top, folders) is None:
        raise ValueError(
            f"the module {module} of its rule {name} is not in the current folder: call nobp export where it lies, or "
            "put that folder on PYTHONPATH"
        )
    import_module(module)


def _dtype(content: dict[str, Any]) -> torch.dtype:
    """That of a checkpoint's weights."""
    return next((v.dtype for v in content["state_dict"].values() if v.is_floating_point()), torch.float32)


def _about(rule: _Exportable, content: dict[str, Any]) -> dict[str, Any]:
    """What a user of the file must know."""
    about: dict[str, Any] = {
        "dtype": str(_dtype(content)).removeprefix("torch."),
        "rule": type(rule).__name__,
    }
    if isinstance(rule, NetworkRule):
        network = rule.built_network()
        shape = [network.num_nodes, network.components]
        units = {"mean": network.mean.tolist(), "scale": network.scale.tolist()}
        return about | {"input_shape": shape, "dt": network.dt} | units
    about |= {"input_shape": rule.input_shape, "num_classes": rule.num_classes}
    for state in content.values():
        # What an ImageDataModule keeps in a checkpoint.
        if isinstance(state, dict) and {"mean", "std", "class_names"} <= set(state):
            about |= state
    return about


def _pt2(network: nn.Module, x: Tensor, about: dict[str, Any]) -> tuple[bytes, Tensor]:
    """The file, and the scores that it gives."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, buffer, extra_files={"lightning_nobp.json": json.dumps(about)})
        buffer.seek(0)
        loaded = torch.export.load(buffer).module()
    with torch.no_grad():
        return buffer.getvalue(), loaded(x)


def _onnx(network: nn.Module, x: Tensor, about: dict[str, Any]) -> tuple[bytes, Tensor]:
    """The file, and the scores that it gives."""
    try:
        import onnx.reference
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("an .onnx file needs onnx: pip install 'lightning-nobp[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
        )
        assert program is not None
    model = program.model_proto
    onnx.helper.set_model_props(model, {key: json.dumps(value) for key, value in about.items()})
    session = onnx.reference.ReferenceEvaluator(model)
    [scores] = session.run(None, {model.graph.input[0].name: _to_numpy(x)})
    # numpy's own types have no bfloat16.
    return model.SerializeToString(), torch.from_numpy(np.asarray(scores).astype("float64"))


def _to_numpy(x: Tensor) -> Any:
    if x.dtype is not torch.bfloat16:
        return x.numpy()
    import ml_dtypes  # comes with onnxscript

    return x.float().numpy().astype(ml_dtypes.bfloat16)
