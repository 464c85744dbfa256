"""Learning rules: one LightningModule each."""

from lightning_nobp.rules.backprop import Backprop
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.classification import ClassificationRule
from lightning_nobp.rules.forward_forward import ForwardForward, SymBa

__all__ = ["Backprop", "ClassificationRule", "ForwardForward", "LearningRule", "SymBa"]
