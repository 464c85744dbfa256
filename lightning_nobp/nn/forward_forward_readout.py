"""A linear classifier on what Forward-Forward layers have learnt."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_nobp.functional.backprop import bias_vjp, cross_entropy, linear_vjp
from lightning_nobp.nn.backprop import accumulate_grad
from lightning_nobp.nn.forward_forward_network import ForwardForwardNetwork
from lightning_nobp.typed import Typed


class NeutralReadout(Typed, nn.Module):
    """Class scores from the normalised activity of some layers under the neutral label.

    Only the classifier learns; the layers are taken as they are.

    Args:
        network: Whose activity is read; it stays outside of this module.
        layers: Numbers of the layers, from 0.
    """

    def __init__(self, network: ForwardForwardNetwork, layers: Sequence[int]) -> None:
        super().__init__()
        self.layers = list(layers)
        weight = next(network.parameters())
        with torch.no_grad():
            example = self.features(network, weight.new_zeros(1, *network.labelled_input.input_shape))
        self.linear = nn.Linear(example.shape[1], network.num_classes, device=weight.device, dtype=weight.dtype)

    def features(self, network: ForwardForwardNetwork, x: Tensor) -> Tensor:
        """What is read of samples ``(batch, *input_shape)``: ``(batch, features)``."""
        # The layers' batch normalisation counts what they learn from, not what is read.
        with network.evaluating():
            features = network.neutral_features(x)
        return torch.cat([features[number] for number in self.layers], dim=1)

    def forward(self, network: ForwardForwardNetwork, x: Tensor) -> Tensor:
        """Class scores ``(batch, num_classes)``."""
        scores: Tensor = self.linear(self.features(network, x))
        return scores

    @torch.no_grad()
    def add_gradients(self, network: ForwardForwardNetwork, x: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Add the gradient of the cross-entropy, in closed form.

        Args:
            network: Whose activity is read.
            x: Samples, ``(batch, *input_shape)``.
            target: Class numbers, ``(batch,)``.

        Returns:
            The scores and the mean loss.
        """
        features = self.features(network, x)
        scores = self.linear(features)
        loss, grad = cross_entropy(scores, target)
        _, weight_grad = linear_vjp(grad, features, self.linear.weight, needs_input_grad=False)
        accumulate_grad(self.linear.weight, weight_grad)
        accumulate_grad(self.linear.bias, bias_vjp(grad))
        return scores, loss
