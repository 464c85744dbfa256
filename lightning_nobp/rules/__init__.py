"""Learning rules: one LightningModule each."""

from lightning_nobp.rules.backprop import Backprop
from lightning_nobp.rules.base import LearningRule
from lightning_nobp.rules.classification import ClassificationRule

__all__ = ["Backprop", "ClassificationRule", "LearningRule"]
