"""How two gradients of the same parameters compare."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Alignment(NamedTuple):
    """Of a gradient with a reference, over all parameters and for each."""

    cosine: Tensor
    """Scalar, from -1 to 1; 0 where either gradient is zero."""
    norm_ratio: Tensor
    """Scalar, norm of the gradient over the norm of the reference; 0 where both are zero."""
    cosines: Tensor
    """``(parameters,)``."""
    norm_ratios: Tensor
    """``(parameters,)``."""


def gradient_alignment(gradients: Sequence[Tensor], references: Sequence[Tensor]) -> Alignment:
    """Cosine and norm ratio between two gradients.

    Args:
        gradients: One tensor a parameter.
        references: Tensors of the same shapes.

    References:
        Lillicrap, Cownden, Tweed and Akerman, "Random feedback weights support learning in deep neural networks",
        arXiv 1411.0247, where the angle is used to compare learning rules.
    """
    products = torch.stack([(g.double() * r.double()).sum() for g, r in zip(gradients, references, strict=True)])
    norms = torch.stack([g.double().square().sum() for g in gradients])
    reference_norms = torch.stack([r.double().square().sum() for r in references])

    def cosine(product: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return (product / (a * b).sqrt()).nan_to_num(0.0)

    def ratio(a: Tensor, b: Tensor) -> Tensor:
        return (a / b).sqrt().nan_to_num(0.0, posinf=math.inf)

    return Alignment(
        cosine(products.sum(), norms.sum(), reference_norms.sum()),
        ratio(norms.sum(), reference_norms.sum()),
        cosine(products, norms, reference_norms),
        ratio(norms, reference_norms),
    )
