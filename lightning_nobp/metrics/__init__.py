"""Sums over data as torchmetrics: added up over batches, processes and sites."""

from lightning_nobp.metrics.feature_rows import FeatureRows
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
    "NormalEquations",
    "PatchStatistics",
    "SaturatedFraction",
    "SilentFraction",
    "SpikesPerNeuron",
    "SummedMetric",
    "SynapticOperations",
]
