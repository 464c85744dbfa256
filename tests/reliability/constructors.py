"""A valid call of every public constructor, and what its object is used on."""

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, NamedTuple

import torch
from fake_data import make_image_folder
from torch import Tensor, nn

from lightning_nobp import callbacks, datamodules, metrics, rules
from lightning_nobp import nn as layers
from lightning_nobp.functional.multiplexing import schedule
from lightning_nobp.nn.pcanet import PCAConv2d

IMAGE = {"input_shape": (1, 8, 8), "num_classes": 3}
CONV = {"in_channels": 4, "out_channels": 8, "kernel_size": 3}


class Valid(NamedTuple):
    """A valid call."""

    arguments: Callable[[], dict[str, Any]] = dict
    use: tuple[int, ...] | None = None
    """Shape of an input that the object can be called with."""


def mlp() -> nn.Module:
    return layers.MLP((4,), 2, hidden_dims=(3,))


def cost(scores: Tensor, target: Tensor) -> Tensor:
    return (scores - target).square().mean()


def codes() -> layers.ParameterCodes:
    return layers.ParameterCodes(mlp(), "rademacher", 0.01, 0)


def engine(kind: type) -> Callable[[], dict[str, Any]]:
    return lambda: {"network": mlp(), "cost": cost, "codes": codes()}


def _window() -> dict[str, Any]:
    own = codes()
    parts = {"codes": own, "engine": layers.InPlaceEngine(mlp(), cost, own)}
    return parts | {"window": schedule(1, 2, 1)}


def _analog() -> dict[str, Any]:
    own = codes()
    parts = {"codes": own, "engine": layers.InPlaceEngine(mlp(), cost, own)}
    return parts | {"tau_p": 1, "tau_theta": 2, "tau_x": 2, "tau_hp": 10.0}


def _field_network() -> dict[str, Any]:
    network = layers.WaveFieldNetwork((2,), 1, n_steps=3)
    return {"system": network.system, "encoder": network.encoder, "readout": network.readout, "n_steps": 3}


def _labelled() -> layers.LabelledInput:
    return layers.LabelledInput((1, 8, 8), 3)


@cache
def _folder() -> Path:
    return make_image_folder(Path(mkdtemp()))


def of(**arguments: Any) -> Callable[[], dict[str, Any]]:
    return lambda: dict(arguments)


def _images(n: int = 2) -> tuple[int, ...]:
    return (n, 1, 8, 8)


VALID: dict[type, Valid] = {
    **{rule: Valid() for rule in (rules.Backprop, rules.ForwardForward, rules.HamiltonianEcho)},
    **{rule: Valid() for rule in (rules.MultiplexedGradientDescent, rules.PCANet, rules.QuaternionBackprop)},
    **{rule: Valid() for rule in (rules.ResidualCompensation, rules.SelfLearningMachine, rules.SparseProp)},
    **{rule: Valid() for rule in (rules.SpikeTimingBackprop, rules.SymBa, rules.DynamicalNetworkBackprop)},
    layers.sequential: Valid(lambda: {"layers": [nn.Linear(4, 4)]}, (2, 4)),
    layers.CNN: Valid(of(**IMAGE), _images()),
    layers.MLP: Valid(of(**IMAGE), _images()),
    layers.SigmoidMLP: Valid(of(**IMAGE), _images()),
    layers.ResNet: Valid(of(**IMAGE, widths=(4, 8), blocks=(1, 1)), _images()),
    layers.ResCNet: Valid(of(**IMAGE, depth=1, channels=4)),
    layers.HashingNetwork: Valid(of(**IMAGE, kernel_size=3)),
    layers.ForwardForwardMLP: Valid(of(**IMAGE)),
    layers.ForwardForwardCNN: Valid(of(**IMAGE, kernel_sizes=(3, 3), strides=(1, 1), pools=(1, 1), channels=(4, 4))),
    layers.QuaternionMLP: Valid(of(**IMAGE), _images()),
    layers.QuaternionCNN: Valid(of(input_shape=(3, 8, 8), num_classes=3, channels=(8, 8)), (2, 3, 8, 8)),
    layers.SpikingMLP: Valid(of(**IMAGE, hidden_dims=(5,)), _images()),
    layers.SpikingCNN: Valid(of(input_shape=(1, 12, 12), num_classes=3, kernel_size=3), (2, 1, 12, 12)),
    layers.DuffingClassifier: Valid(of(**IMAGE, n_steps=3), _images()),
    layers.LogCoshClassifier: Valid(of(**IMAGE, n_steps=3), _images()),
    layers.NLSENetwork: Valid(of(**IMAGE, slices=2), _images()),
    layers.TwoBeamNetwork: Valid(of(**IMAGE, n_steps=3), _images()),
    layers.WaveFieldNetwork: Valid(of(input_shape=(2,), num_classes=1, n_steps=3), (2, 2)),
    layers.KerrCavityNetwork: Valid(of(input_shape=(2,), num_classes=1, n_steps=3), (2, 2)),
    layers.LearningFieldNetwork: Valid(_field_network),
    layers.EquivariantMLP: Valid(of(in_features=12), (2, 12)),
    layers.QuaternionAutoencoder: Valid(of(), (1, 3, 32, 32)),
    layers.WeightCodes: Valid(lambda: {"network": mlp(), "kind": "rademacher", "amplitude": 0.01, "seed": 0}),
    layers.ActivationCodes: Valid(lambda: {"network": mlp(), "kind": "rademacher", "amplitude": 0.01, "seed": 0}),
    layers.ParameterCodes: Valid(lambda: {"network": mlp(), "kind": "rademacher", "amplitude": 0.01, "seed": 0}),
    layers.BatchedEngine: Valid(engine(layers.BatchedEngine)),
    layers.ForwardModeEngine: Valid(engine(layers.ForwardModeEngine)),
    layers.InPlaceEngine: Valid(engine(layers.InPlaceEngine)),
    layers.WindowEstimator: Valid(_window),
    layers.AnalogEstimator: Valid(_analog),
    layers.SampleEstimator: Valid(
        lambda: {"codes": layers.WeightCodes(mlp(), "rademacher", 0.01, 0), "sample_costs": cost}
    ),
    layers.Cardioid: Valid(use=(2, 8)),
    layers.MagnitudeTanh: Valid(use=(2, 8)),
    layers.PhaseSin: Valid(use=(2, 8)),
    layers.PhaseTanh: Valid(use=(2, 8)),
    layers.ModReLU: Valid(of(num_quaternions=2), (2, 8)),
    layers.NormGate: Valid(of(num_quaternions=2), (2, 8)),
    layers.ColourToQuaternions: Valid(use=(2, 3, 8, 8)),
    layers.PatchesToQuaternions: Valid(use=(2, 3, 8, 8)),
    layers.QuaternionsToReal: Valid(use=(2, 8)),
    layers.QuaternionLinear: Valid(of(in_features=8, out_features=4), (2, 8)),
    layers.QuaternionRotation: Valid(of(in_features=6, out_features=3), (2, 6)),
    layers.QuaternionBatchNorm: Valid(of(num_features=8), (3, 8)),
    layers.QuaternionDropout: Valid(use=(2, 8)),
    layers.QuaternionDropout2d: Valid(use=(2, 8, 3, 3)),
    layers.QuaternionMaxPool2d: Valid(of(kernel_size=2), (2, 8, 4, 4)),
    layers.QuaternionAdam: Valid(lambda: {"params": [nn.Parameter(torch.ones(3))]}),
    layers.NetworkDescent: Valid(
        lambda: {
            "params": layers.DynamicalNetwork(layers.PolynomialDynamics(3, 2), 3, 2, 0.01).parameter_groups()
            if hasattr(layers.DynamicalNetwork, "parameter_groups")
            else [nn.Parameter(torch.ones(3))]
        }
    ),
    **{
        kind: Valid(of(input_size=8, hidden_size=4), (3, 2, 8))
        for kind in (layers.QuaternionGRU, layers.QuaternionLSTM, layers.QuaternionRNN)
    },
    **{
        kind: Valid(of(**CONV), (2, 4, *[7] * dims))
        for dims, kinds in enumerate(
            (
                (layers.QuaternionConv1d, layers.QuaternionConvTranspose1d),
                (layers.QuaternionConv2d, layers.QuaternionConvTranspose2d),
                (layers.QuaternionConv3d, layers.QuaternionConvTranspose3d),
            ),
            start=1,
        )
        for kind in kinds
    },
    **{
        kind: Valid(of(n=4, **CONV), (2, 4, *[7] * dims))
        for dims, kind in enumerate((layers.PHMConv1d, layers.PHMConv2d, layers.PHMConv3d), start=1)
    },
    layers.PHMLinear: Valid(of(n=4, in_features=8, out_features=4), (2, 8)),
    layers.SparseLinear: Valid(of(in_features=8, out_features=4), (2, 8)),
    layers.SparseConv2d: Valid(of(**CONV), (2, 4, 7, 7)),
    layers.Residual: Valid(lambda: {"body": nn.Linear(4, 4)}, (2, 4)),
    layers.TwoClasses: Valid(use=(2, 1)),
    layers.PCAConv2d: Valid(of(**CONV | {"kernel_size": 3})),
    layers.Readout: Valid(of(num_features=4, num_classes=3)),
    layers.CompensationLayer: Valid(
        lambda: {
            "conv": PCAConv2d(1, 4, 3),
            "num_classes": 3,
            "pooling": {"mean": [1]},
            "power": 1.0,
            "activation": "relu",
            "halve": False,
        }
    ),
    layers.FFLinear: Valid(of(in_features=8, out_features=4)),
    layers.FFConv2d: Valid(of(**CONV)),
    layers.LabelledInput: Valid(of(**IMAGE)),
    layers.ForwardForwardNetwork: Valid(
        lambda: {"layers": [layers.FFLinear(64, 4, label_features=3)], "labelled_input": _labelled()}
    ),
    layers.DuffingNetwork: Valid(of(n_units=4)),
    layers.LogCoshNetwork: Valid(of(n_units=4, hidden_features=5)),
    layers.KleinGordonField: Valid(of(channels=1, shape=(8,))),
    layers.NLSEField: Valid(of(shape=(8,))),
    layers.TwoFieldNLSE: Valid(of(shape=(16,))),
    layers.KerrCavityArray: Valid(of()),
    layers.HamiltonianLayer: Valid(lambda: {"system": layers.DuffingNetwork(4), "dt": 0.1, "n_steps": 3}),
    layers.FieldEcho: Valid(lambda: {"system": layers.NLSEField((8,)), "dt": 0.1, "n_steps": 3}),
    layers.HamiltonianNetwork: Valid(
        lambda: {
            "encoder": layers.PositionEncoder(4),
            "layer": layers.HamiltonianLayer(layers.DuffingNetwork(4), 0.1, 3),
            "readout": layers.LastUnits(2),
        },
        (2, 4),
    ),
    layers.PositionEncoder: Valid(of(n_units=4), (2, 4)),
    layers.DriveEncoder: Valid(of(in_features=4, drive_features=3, n_units=4), (2, 4)),
    layers.LastUnits: Valid(of(count=2)),
    layers.ImageEncoder: Valid(of(shape=(8, 8)), _images()),
    layers.DetectorReadout: Valid(of(shape=(8, 8), num_classes=3)),
    layers.ModeEncoder: Valid(of(num_modes=4, modes=(0, 1)), (2, 2)),
    layers.PulseEncoder: Valid(of(sites=16, num_inputs=2), (2, 2)),
    layers.HomodyneReadout: Valid(of(sites=16, num_outputs=1)),
    layers.CoherentReadout: Valid(of(sites=16, num_classes=2)),
    layers.DynamicalNetwork: Valid(
        lambda: {"local": layers.PolynomialDynamics(3, 2), "num_nodes": 3, "components": 2, "dt": 0.01}
    ),
    layers.LocalDynamics: Valid(of(num_nodes=3, components=2), (5, 3, 2)),
    layers.PolynomialDynamics: Valid(of(num_nodes=3, components=2), (5, 3, 2)),
    layers.FirstSpike: Valid(),
    layers.SpikeTrace: Valid(),
    layers.SpikeCount: Valid(),
    layers.MembraneReadout: Valid(of(in_features=4, num_classes=3)),
    layers.EarliestSpikePool2d: Valid(of(kernel_size=2)),
    layers.SpikeDropout: Valid(),
    layers.SpikingLinear: Valid(of(in_features=4, out_features=3)),
    layers.SpikingConv2d: Valid(of(in_channels=1, out_channels=2, kernel_size=3)),
    layers.LatencyEncoder: Valid(use=_images()),
    layers.RegularEncoder: Valid(use=_images()),
    layers.ThresholdCrossingEncoder: Valid(use=_images()),
    **{
        kind: Valid()
        for kind in (
            datamodules.AttitudeDataModule,
            datamodules.CIFAR10DataModule,
            datamodules.CIFAR100DataModule,
            datamodules.CoupledOscillatorsDataModule,
            datamodules.DigitsDataModule,
            datamodules.FashionMNISTDataModule,
            datamodules.MNISTDataModule,
            datamodules.NIST7x7DataModule,
            datamodules.ParityDataModule,
            datamodules.TinyImageNetDataModule,
            datamodules.XORDataModule,
            datamodules.YinYangDataModule,
        )
    },
    datamodules.GrayToColourDataModule: Valid(
        lambda: {"images": datamodules.CIFAR10DataModule()},
    ),
    datamodules.ImageFolderDataModule: Valid(lambda: {"root": _folder()}),
    datamodules.TimeSeriesDataModule: Valid(of(path="series.csv", dt=0.1)),
    **{
        kind: Valid()
        for kind in (
            callbacks.AttitudeError,
            callbacks.BestInSummary,
            callbacks.ColourGrid,
            callbacks.DepthCurve,
            callbacks.EchoGradientCheck,
            callbacks.EchoImperfections,
            callbacks.FilterFigure,
            callbacks.FitSummary,
            callbacks.GHRGradientCheck,
            callbacks.GradientAlignment,
            callbacks.HardwareClock,
            callbacks.HardwareNoise,
            callbacks.LayerAccuracy,
            callbacks.LayerGoodness,
            callbacks.LayerwiseCheckpoint,
            callbacks.LogFigures,
            callbacks.NetworkFigures,
            callbacks.NetworkWriter,
            callbacks.PredictionWriter,
            callbacks.ReversalMonitor,
            callbacks.SpikeRaster,
            callbacks.StopWhenNoGain,
        )
    },
    callbacks.SparsityMask: Valid(of(sparsity=0.9, end=100)),
    callbacks.Platform: Valid(of(perturbation_seconds=1.0, update_seconds=1.0, sample_seconds=1.0)),
    metrics.DecisionTime: Valid(of(t_max=2.0)),
    metrics.FeatureRows: Valid(of(num_features=4)),
    metrics.NetworkStatistics: Valid(of(num_nodes=3, terms=4, components=2)),
    metrics.NormalEquations: Valid(of(num_features=4, num_targets=2)),
    metrics.PatchStatistics: Valid(of(channels=1, kernel_size=3)),
    metrics.ValidPredictionTime: Valid(of(dt=0.1)),
    **{
        kind: Valid()
        for kind in (
            metrics.LinkAUROC,
            metrics.LinkAveragePrecision,
            metrics.SaturatedFraction,
            metrics.SilentFraction,
            metrics.SpikesPerNeuron,
            metrics.SynapticOperations,
            metrics.WeightError,
        )
    },
}

BASES = {
    *(rules.ClassificationRule, rules.ClosedFormRule, rules.LearningRule, rules.NetworkRule),
    *(datamodules.ImageDataModule, datamodules.SeriesDataModule, callbacks.GradientCheck, metrics.SummedMetric),
    *(layers.CoupledFields, layers.EchoLayer, layers.Estimator, layers.FFLayer, layers.FieldSystem),
    *(layers.HamiltonianSystem, layers.NodeDynamics, layers.SpikeEncoder, layers.SpikingLayer),
}
"""Bases that nobody builds: their arguments are tried in their subclasses."""

RECORDS = {layers.Estimate, layers.Turn, callbacks.WrongGradientError}
"""What the package itself fills: named tuples and an error."""


def public_classes() -> dict[str, list[type]]:
    """Every public class that is called, by package."""
    packages = {"rules": rules, "nn": layers, "datamodules": datamodules, "callbacks": callbacks, "metrics": metrics}
    return {
        name: [c for c in (getattr(package, n) for n in package.__all__) if inspect.isclass(c)]
        for name, package in packages.items()
    }


def arguments_of(cls: type) -> list[str]:
    """Names that a constructor takes, those of its bases among them if it hands them on."""
    names: list[str] = []
    for base in cls.__mro__:
        if not base.__module__.startswith("lightning_nobp.") or "__init__" not in vars(base):
            continue
        parameters = list(inspect.signature(vars(base)["__init__"]).parameters.values())[1:]
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return list(dict.fromkeys(names))
