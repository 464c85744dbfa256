"""Sums over data as torchmetrics: added up over batches, processes and sites."""

from lightning_nobp.metrics.feature_rows import FeatureRows
from lightning_nobp.metrics.network_statistics import NetworkStatistics
from lightning_nobp.metrics.networks import LinkAUROC, LinkAveragePrecision, ValidPredictionTime, WeightError
from lightning_nobp.metrics.normal_equations import NormalEquations
from lightning_nobp.metrics.patch_statistics import PatchStatistics
from lightning_nobp.metrics.spikes import (
    DecisionTime,
    SaturatedFraction,
    SilentFraction,
    SpikesPerNeuron,
    SynapticOperations,
)
from lightning_nobp.metrics.summed import SummedMetric

__all__ = [
    "DecisionTime",
    "FeatureRows",
    "LinkAUROC",
    "LinkAveragePrecision",
    "NetworkStatistics",
    "NormalEquations",
    "PatchStatistics",
    "SaturatedFraction",
    "SilentFraction",
    "SpikesPerNeuron",
    "SummedMetric",
    "SynapticOperations",
    "ValidPredictionTime",
    "WeightError",
]
