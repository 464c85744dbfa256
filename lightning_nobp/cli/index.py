"""The rules by name, without importing torch."""

from typing import NamedTuple


class RuleEntry(NamedTuple):
    """One line of ``nobp list``."""

    name: str
    class_path: str
    summary: str
    paper: str


RULES = (
    RuleEntry(
        "Backprop",
        "lightning_nobp.rules.Backprop",
        "backpropagation written out by hand: the yardstick",
        "Learning representations by back-propagating errors (Nature 323, 1986)",
    ),
    RuleEntry(
        "ForwardForward",
        "lightning_nobp.rules.ForwardForward",
        "every layer learns to tell right from wrong labels; no backward pass",
        "The Forward-Forward Algorithm: Some Preliminary Investigations (arXiv 2212.13345)",
    ),
    RuleEntry(
        "SymBa",
        "lightning_nobp.rules.SymBa",
        "Forward-Forward of right against wrong labels, without a threshold",
        "SymBa: Symmetric Backpropagation-Free Contrastive Learning (arXiv 2303.08418)",
    ),
    RuleEntry(
        "MultiplexedGradientDescent",
        "lightning_nobp.rules.MultiplexedGradientDescent",
        "perturbs all parameters at once and correlates with the cost",
        "Multiplexed gradient descent: Fast online training of modern datasets on ... (arXiv 2303.03986)",
    ),
    RuleEntry(
        "SparseProp",
        "lightning_nobp.rules.SparseProp",
        "backpropagation at the cost of the weights that there are",
        "SparseProp: Efficient Sparse Backpropagation for Faster Training of ... (arXiv 2302.04852)",
    ),
    RuleEntry(
        "QuaternionBackprop",
        "lightning_nobp.rules.QuaternionBackprop",
        "backpropagation through quaternions by the GHR calculus",
        "Quaternion Backpropagation (arXiv 2212.13082)",
    ),
    RuleEntry(
        "SpikeTimingBackprop",
        "lightning_nobp.rules.SpikeTimingBackprop",
        "exact gradients of spike times, many spikes a neuron, no time steps",
        "Timing-Based Backpropagation in Spiking Neural Networks Without ... (arXiv 2211.16113)",
    ),
    RuleEntry(
        "HamiltonianEcho",
        "lightning_nobp.rules.HamiltonianEcho",
        "gradients from the echo of a simulation reversed in time",
        "Self-learning machines based on Hamiltonian echo backpropagation (arXiv 2103.04992)",
    ),
    RuleEntry(
        "SelfLearningMachine",
        "lightning_nobp.rules.SelfLearningMachine",
        "a field that learns by its own echo and a decay step",
        "Self-learning machines based on Hamiltonian echo backpropagation (arXiv 2103.04992)",
    ),
    RuleEntry(
        "DynamicalNetworkBackprop",
        "lightning_nobp.rules.DynamicalNetworkBackprop",
        "who is coupled to whom, and how each node moves, from time series",
        "Backpropagation on Dynamical Networks (arXiv 2207.03093)",
    ),
    RuleEntry(
        "ResidualCompensation",
        "lightning_nobp.rules.ResidualCompensation",
        "each layer in closed form, fitted to what those before it got wrong",
        "Deep Residual Compensation Convolutional Network without Backpropagation (arXiv 2301.11663)",
    ),
    RuleEntry(
        "PCANet",
        "lightning_nobp.rules.PCANet",
        "principal components twice, hashing, histograms, a linear classifier",
        "PCANet: A Simple Deep Learning Baseline for Image Classification? (arXiv 1404.3606)",
    ),
)

NETWORKS = (
    "CNN",
    "MLP",
    "DuffingClassifier",
    "EquivariantMLP",
    "ForwardForwardCNN",
    "ForwardForwardMLP",
    "HamiltonianNetwork",
    "HashingNetwork",
    "KerrCavityNetwork",
    "LearningFieldNetwork",
    "LocalDynamics",
    "LogCoshClassifier",
    "NLSENetwork",
    "PolynomialDynamics",
    "QuaternionAutoencoder",
    "QuaternionCNN",
    "QuaternionMLP",
    "ResCNet",
    "ResNet",
    "SigmoidMLP",
    "SpikingCNN",
    "SpikingMLP",
    "TwoBeamNetwork",
    "WaveFieldNetwork",
)
"""Networks of :mod:`lightning_nobp.nn` that the command line knows by these names: other packages have an MLP too."""

DATA_MODULES = (
    "XORDataModule",
    "YinYangDataModule",
    "ParityDataModule",
    "NIST7x7DataModule",
    "DigitsDataModule",
    "MNISTDataModule",
    "FashionMNISTDataModule",
    "CIFAR10DataModule",
    "CIFAR100DataModule",
    "TinyImageNetDataModule",
    "ImageFolderDataModule",
    "AttitudeDataModule",
    "CoupledOscillatorsDataModule",
    "TimeSeriesDataModule",
    "GrayToColourDataModule",
)
