"""Lightning callbacks: figures, alignment with backpropagation, layers, summaries, predictions."""

from lightning_nobp.callbacks.figures import LogFigures
from lightning_nobp.callbacks.fit_summary import FitSummary
from lightning_nobp.callbacks.gradient_alignment import GradientAlignment
from lightning_nobp.callbacks.layer_accuracy import LayerAccuracy
from lightning_nobp.callbacks.layer_goodness import LayerGoodness
from lightning_nobp.callbacks.prediction_writer import PredictionWriter
from lightning_nobp.callbacks.run_folder import run_folder

__all__ = [
    "FitSummary",
    "GradientAlignment",
    "LayerAccuracy",
    "LayerGoodness",
    "LogFigures",
    "PredictionWriter",
    "run_folder",
]
