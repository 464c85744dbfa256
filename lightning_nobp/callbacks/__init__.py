"""Lightning callbacks: figures, alignment with backpropagation, layers, hardware, masks, spikes, predictions."""

from lightning_nobp.callbacks.attitude_error import AttitudeError
from lightning_nobp.callbacks.best_in_summary import BestInSummary
from lightning_nobp.callbacks.colour_grid import ColourGrid
from lightning_nobp.callbacks.depth_curve import DepthCurve
from lightning_nobp.callbacks.echo_gradient_check import EchoGradientCheck
from lightning_nobp.callbacks.echo_imperfections import EchoImperfections
from lightning_nobp.callbacks.figures import LogFigures
from lightning_nobp.callbacks.filter_figure import FilterFigure
from lightning_nobp.callbacks.fit_summary import FitSummary
from lightning_nobp.callbacks.ghr_gradient_check import GHRGradientCheck
from lightning_nobp.callbacks.gradient_alignment import GradientAlignment
from lightning_nobp.callbacks.gradient_check import GradientCheck, WrongGradientError
from lightning_nobp.callbacks.hardware_clock import PLATFORMS, HardwareClock, Platform
from lightning_nobp.callbacks.hardware_noise import HardwareNoise
from lightning_nobp.callbacks.last_checkpoint import LastCheckpoint
from lightning_nobp.callbacks.layer_accuracy import LayerAccuracy
from lightning_nobp.callbacks.layer_goodness import LayerGoodness
from lightning_nobp.callbacks.layerwise_checkpoint import LayerwiseCheckpoint, load_layers
from lightning_nobp.callbacks.network_figures import NetworkFigures
from lightning_nobp.callbacks.network_writer import NetworkWriter
from lightning_nobp.callbacks.prediction_writer import PredictionWriter
from lightning_nobp.callbacks.reversal_monitor import ReversalMonitor
from lightning_nobp.callbacks.run_folder import run_folder
from lightning_nobp.callbacks.sparsity_mask import SparsityMask
from lightning_nobp.callbacks.spike_raster import SpikeRaster
from lightning_nobp.callbacks.stop_on_interrupt import StopOnInterrupt
from lightning_nobp.callbacks.stop_when_no_gain import StopWhenNoGain

__all__ = [
    "PLATFORMS",
    "AttitudeError",
    "BestInSummary",
    "ColourGrid",
    "DepthCurve",
    "EchoGradientCheck",
    "EchoImperfections",
    "FilterFigure",
    "FitSummary",
    "GHRGradientCheck",
    "GradientAlignment",
    "GradientCheck",
    "HardwareClock",
    "HardwareNoise",
    "LastCheckpoint",
    "LayerAccuracy",
    "LayerGoodness",
    "LayerwiseCheckpoint",
    "LogFigures",
    "NetworkFigures",
    "NetworkWriter",
    "Platform",
    "PredictionWriter",
    "ReversalMonitor",
    "SparsityMask",
    "SpikeRaster",
    "StopOnInterrupt",
    "StopWhenNoGain",
    "WrongGradientError",
    "load_layers",
    "run_folder",
]
