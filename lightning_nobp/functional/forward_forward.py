"""Forward-Forward and SymBa: every layer has its own loss on its own activity, with its gradient in closed form.

A layer computes ``h = phi(z)``, ``z = u W^T + b``, from the normalised activity ``u`` of the layer below. Its
*goodness* G is a function of h alone. The loss raises the goodness of positive samples (an image with its right label)
above that of negative ones (an image with a wrong label). With q = dL/dG of each row,

    dL/dW = delta^T u,   dL/db = sum of the rows of delta,   delta = q * dG/dh * phi'(z),

and nothing flows to ``u``: no error travels between layers.

References:
    Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for
    Optimizing Convergence", arXiv 2303.08418.
"""

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

GoodnessKind = Literal["mean_square", "sum_square", "mean_abs", "negative"]
PairLoss = Literal["ff", "symba", "swish"]
CandidateLoss = Literal["ff", "symba", "swish", "class_softmax"]
NormaliseKind = Literal["rms", "l2"]
PatternKind = Literal["normal", "uniform", "bernoulli", "orthogonal"]


# Goodness and normalisation


def goodness(h: Tensor, kind: GoodnessKind = "mean_square", dim: int | tuple[int, ...] | None = None) -> Tensor:
    """How active a layer is.

    Args:
        h: Activity, ``(batch, ...)``.
        kind: ``'mean_square'``, mean of h^2; ``'sum_square'``, its sum; ``'mean_abs'``, mean of ``|h|``;
            ``'negative'``, minus the mean square, for layers that are quiet on positive samples.
        dim: Dimensions to average or sum; all but the first by default.

    Returns:
        ``(batch,)``, or what remains of the shape.

    Raises:
        ValueError: An unknown kind.
    """
    dims = tuple(range(1, h.dim())) if dim is None else dim
    if kind == "mean_square":
        return h.square().mean(dims)
    if kind == "sum_square":
        return h.square().sum(dims)
    if kind == "mean_abs":
        return h.abs().mean(dims)
    if kind == "negative":
        return -h.square().mean(dims)
    raise ValueError(f"goodness={kind!r} is not one of {', '.join(map(repr, get_args(GoodnessKind)))}")


def _square_slope(kind: GoodnessKind, h: Tensor) -> float:
    """Derivative of the goodness divided by ``h``, where it is made of squares."""
    return {"sum_square": 2.0, "mean_square": 2 / h[0].numel(), "negative": -2 / h[0].numel()}[kind]


def normalise_activity(h: Tensor, kind: NormaliseKind = "rms", eps: float = 1e-12) -> Tensor:
    """Keep only the direction of an activity, so that a layer cannot read off the goodness of the one below.

    Args:
        h: ``(batch, ...)``.
        kind: ``'rms'`` divides by ``sqrt(mean(h^2) + eps)``, ``'l2'`` by ``norm(h) + eps``: smaller by the square root
            of the number of units.
        eps: Keeps a silent layer at zero; 1e-6 suits bfloat16.

    Raises:
        ValueError: An unknown kind.
    """
    dims = tuple(range(1, h.dim()))
    if kind == "rms":
        return h * torch.rsqrt(h.square().mean(dims, keepdim=True) + eps)
    if kind == "l2":
        return h / (h.square().sum(dims, keepdim=True).sqrt() + eps)
    raise ValueError(f"normalise={kind!r} is not one of 'rms', 'l2'")


# Losses


def forward_forward_loss(
    g_pos: Tensor, g_neg: Tensor, threshold: float = 1.0, alpha: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Each goodness against a threshold: ``softplus(alpha (theta - G_p)) + softplus(alpha (G_n - theta))``.

    Args:
        g_pos: Goodness of positive samples, ``(batch,)``.
        g_neg: Goodness of negative samples, ``(batch,)``.
        threshold: theta. With the mean square as goodness and 1 here, ``alpha`` equal to the number of units gives
            the sum of squares against the number of units.
        alpha: Slope.
        reduction: ``'mean'`` over the batch, ``'sum'`` or ``'none'``.

    References:
        Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    """
    each = -F.logsigmoid(alpha * (g_pos - threshold)) - F.logsigmoid(alpha * (threshold - g_neg))
    return _reduce(each, reduction)


def symba_loss(g_pos: Tensor, g_neg: Tensor, alpha: float = 4.0, reduction: str = "mean") -> Tensor:
    """The two goodnesses of one image against each other: ``softplus(-alpha (G_p - G_n))``.

    Args:
        g_pos: Goodness of positive samples, ``(batch,)``.
        g_neg: Goodness of the same images with wrong labels, ``(batch,)``.
        alpha: Slope.
        reduction: ``'mean'`` over the batch, ``'sum'`` or ``'none'``.

    References:
        Lee and Song, "SymBa: Symmetric Backpropagation-Free Contrastive Learning with Forward-Forward Algorithm for
        Optimizing Convergence", arXiv 2303.08418.
    """
    return _reduce(-F.logsigmoid(alpha * (g_pos - g_neg)), reduction)


def swish_pair_loss(g_pos: Tensor, g_neg: Tensor, alpha: float = 4.0, reduction: str = "mean") -> Tensor:
    """``v sigmoid(v)`` of ``v = -alpha (G_p - G_n)``: not monotonic, so that pairs far enough apart are let go.

    Args:
        g_pos: Goodness of positive samples, ``(batch,)``.
        g_neg: Goodness of the same images with wrong labels, ``(batch,)``.
        alpha: Slope.
        reduction: ``'mean'`` over the batch, ``'sum'`` or ``'none'``.
    """
    return _reduce(F.silu(-alpha * (g_pos - g_neg)), reduction)


def class_softmax_loss(candidates: Tensor, target: Tensor, alpha: float = 4.0) -> Tensor:
    """Softmax cross-entropy over the goodness of all labels; with two classes it is :func:`symba_loss`.

    Args:
        candidates: Goodness of each image with each label, ``(batch, num_classes)``.
        target: Right labels, ``(batch,)``.
        alpha: Slope.
    """
    return F.cross_entropy(alpha * candidates, target)


class Coefficients(NamedTuple):
    """Derivatives of a loss with respect to goodness, and the loss."""

    q: tuple[Tensor, Tensor]
    """Of positive and of negative samples, ``(batch,)`` each; ``1 / batch`` is in them."""
    loss: Tensor
    """Mean over the batch."""


def loss_coefficients(
    loss: PairLoss, g_pos: Tensor, g_neg: Tensor, *, alpha: float = 4.0, threshold: float = 1.0
) -> Coefficients:
    """dL/dG of the mean loss, in closed form.

    SymBa: with ``s = sigmoid(-alpha (G_p - G_n))``, ``-alpha s`` and ``+alpha s``: equal and opposite. Forward-Forward:
    ``-alpha sigmoid(alpha (theta - G_p))`` and ``alpha sigmoid(alpha (G_n - theta))``. Swish: with
    ``v = -alpha (G_p - G_n)`` and ``s = sigmoid(v)``, ``-+ alpha (s + v s (1 - s))``.

    Args:
        loss: ``'ff'``, ``'symba'`` or ``'swish'``.
        g_pos: Goodness of positive samples, ``(batch,)``.
        g_neg: Goodness of negative samples, ``(batch,)``.
        alpha: Slope.
        threshold: Of ``'ff'``.

    Returns:
        ``((q_pos, q_neg), loss)``.

    Raises:
        ValueError: An unknown loss.
    """
    scale = alpha / len(g_pos)
    if loss == "ff":
        q_pos = torch.sigmoid(alpha * (threshold - g_pos)).mul_(-scale)
        q_neg = torch.sigmoid(alpha * (g_neg - threshold)).mul_(scale)
        return Coefficients((q_pos, q_neg), forward_forward_loss(g_pos, g_neg, threshold, alpha))
    v = -alpha * (g_pos - g_neg)
    s = torch.sigmoid(v)
    if loss == "symba":
        q_neg, value = s * scale, -F.logsigmoid(-v).mean()
    elif loss == "swish":
        q_neg, value = (s + v * s * (1 - s)) * scale, F.silu(v).mean()
    else:
        raise ValueError(f"loss={loss!r} is not one of 'ff', 'symba', 'swish'")
    return Coefficients((-q_neg, q_neg), value)


def class_softmax_coefficients(candidates: Tensor, target: Tensor, alpha: float = 4.0) -> tuple[Tensor, Tensor]:
    """dL/dG of :func:`class_softmax_loss`, ``alpha (softmax - one_hot) / batch``, and the loss.

    Args:
        candidates: Goodness of each image with each label, ``(batch, num_classes)``.
        target: Right labels, ``(batch,)``.
        alpha: Slope.
    """
    log_probabilities = F.log_softmax(alpha * candidates, dim=-1)
    q = log_probabilities.exp()
    q.scatter_add_(-1, target.unsqueeze(-1), q.new_full((len(q), 1), -1.0))
    return q.mul_(alpha / len(q)), F.nll_loss(log_probabilities, target)


def candidate_loss(
    loss: CandidateLoss, candidates: Tensor, target: Tensor | None = None, *, alpha: float = 4.0, threshold: float = 1.0
) -> Tensor:
    """Any of the losses, for candidates in rows.

    Args:
        loss: A pair loss, or ``'class_softmax'``.
        candidates: Goodness, ``(2, batch)``, positive and negative; of ``'class_softmax'`` ``(num_classes, batch)``.
        target: Right labels, ``(batch,)``, of ``'class_softmax'``.
        alpha: Slope.
        threshold: Of ``'ff'``.

    Returns:
        The mean over the batch.
    """
    if loss == "class_softmax":
        assert target is not None
        return class_softmax_loss(candidates.t(), target, alpha)
    if loss == "ff":
        return forward_forward_loss(candidates[0], candidates[1], threshold, alpha)
    pair_loss = symba_loss if loss == "symba" else swish_pair_loss
    return pair_loss(candidates[0], candidates[1], alpha)


def candidate_coefficients(
    loss: CandidateLoss, candidates: Tensor, target: Tensor | None = None, *, alpha: float = 4.0, threshold: float = 1.0
) -> tuple[Tensor, Tensor]:
    """dL/dG of :func:`candidate_loss`, with the same arguments.

    Returns:
        The derivative, in the shape of ``candidates``, and the mean loss.
    """
    if loss == "class_softmax":
        assert target is not None
        q, value = class_softmax_coefficients(candidates.t(), target, alpha)
        return q.t(), value
    (q_pos, q_neg), value = loss_coefficients(loss, candidates[0], candidates[1], alpha=alpha, threshold=threshold)
    return torch.stack([q_pos, q_neg]), value


def local_error(
    h: Tensor, q: Tensor, kind: GoodnessKind = "mean_square", slope: Tensor | None = None, extra: Tensor | None = None
) -> Tensor:
    """Derivative of a layer's own loss with respect to its pre-activation z: ``(q dG/dh + extra) phi'(z)``.

    Args:
        h: Activity, ``(batch, ...)``.
        q: dL/dG of each row, ``(batch,)``.
        kind: Of the goodness.
        slope: phi'(z), the shape of ``h``; not needed for ReLU and a goodness that is flat at zero, since h is zero
            where the slope is.
        extra: Derivative with respect to ``h`` of what else is in the loss.

    Returns:
        The shape of ``h``.
    """
    q = q.view(-1, *[1] * (h.dim() - 1))
    # One pass over the activity: it may be large.
    error = h.sign().mul_(q / h[0].numel()) if kind == "mean_abs" else h * (q * _square_slope(kind, h))
    if extra is not None:
        error = error.add_(extra)
    return error if slope is None else error.mul_(slope)


def local_gradients(
    u: Tensor, h: Tensor, q: Tensor, kind: GoodnessKind = "mean_square", slope: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradients of a dense layer's own loss.

    Args:
        u: Input of the layer, ``(batch, in_features)``.
        h: Its activity, ``(batch, out_features)``.
        q: dL/dG of each row, ``(batch,)``.
        kind: Of the goodness.
        slope: phi'(z), the shape of ``h``; not needed for ReLU and a goodness that is flat at zero, since h is zero
            where the slope is.

    Returns:
        Gradients of the weight ``(out_features, in_features)`` and of the bias ``(out_features,)``.
    """
    delta = local_error(h, q, kind, slope)
    return delta.t() @ u, delta.sum(0)


def peer_normalisation(h: Tensor, running_mean: Tensor, momentum: float = 0.9) -> tuple[Tensor, Tensor, Tensor]:
    """Keep the units of a layer about equally active: ``mean_j (mean(m) - m_j)^2`` of their running means m.

    Args:
        h: Activity on positive samples, ``(batch, units, ...)``; of maps, the units are the channels.
        running_mean: ``(units,)``.
        momentum: Weight of the old running mean.

    Returns:
        The loss, its gradient with respect to ``h`` (through this batch's part of m alone), and the new running mean.

    References:
        Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    """
    rest = [0, *range(2, h.dim())]
    means = momentum * running_mean + (1 - momentum) * h.mean(rest)
    excess = means - means.mean()
    grad = excess * (2 * (1 - momentum) / h.numel())
    return excess.square().mean(), grad.view(-1, *[1] * (h.dim() - 2)).expand_as(h), means


# Labels


def overlay_label(x: Tensor, y: Tensor | None, num_classes: int, amplitude: float = 5.0) -> Tensor:
    """Replace the first ``num_classes`` features of each image by ``amplitude`` times its one-hot label.

    Args:
        x: Images, ``(batch, ...)``, with at least ``num_classes`` values each.
        y: Labels, ``(batch,)``; None for the neutral label.
        num_classes: Number of labels.
        amplitude: Height of the label.

    Returns:
        ``(batch, features)``, a copy.

    Raises:
        ValueError: The images have too few values.
    """
    flat = x.flatten(1).clone()
    if flat.shape[1] < num_classes:
        raise ValueError(
            f"label='overlay' needs at least {num_classes} input values, not {flat.shape[1]}: use label='append'"
        )
    flat[:, :num_classes] = 1 / num_classes if y is None else F.one_hot(y, num_classes)
    flat[:, :num_classes] *= amplitude
    return flat


def class_patterns(
    num_classes: int, dim: int, kind: PatternKind = "normal", generator: torch.Generator | None = None
) -> Tensor:
    """One fixed random pattern of unit length for each class: the Intrinsic Class Pattern of SymBa.

    Equal lengths keep the norm of an input independent of its label.

    Args:
        num_classes: Number of patterns.
        dim: Length of each.
        kind: ``'normal'``, ``'uniform'`` on [-1, 1], ``'bernoulli'``, half ones and half zeros on average, or
            ``'orthogonal'``.
        generator: Of the random numbers.

    Returns:
        ``(num_classes, dim)``, no two rows alike.

    Raises:
        ValueError: An unknown kind, or too few dimensions for so many different or orthogonal patterns.
    """
    if dim < 1 or (kind == "orthogonal" and dim < num_classes) or (kind == "bernoulli" and 2**dim <= num_classes):
        raise ValueError(f"pattern_dim={dim} is too small for {num_classes} patterns of the kind {kind!r}")
    # Wherever the default device is, and in full precision, so that a seed means the same patterns everywhere.
    options: dict[str, Any] = {"device": "cpu" if generator is None else generator.device, "dtype": torch.float32}
    if kind == "orthogonal":
        basis: Tensor = torch.linalg.qr(torch.randn(dim, num_classes, generator=generator, **options))[0]
        return basis.t().contiguous()
    while True:
        if kind == "normal":
            patterns = torch.randn(num_classes, dim, generator=generator, **options)
        elif kind == "uniform":
            patterns = 2 * torch.rand(num_classes, dim, generator=generator, **options) - 1
        elif kind == "bernoulli":
            patterns = (torch.rand(num_classes, dim, generator=generator, **options) < 0.5).float()
        else:
            raise ValueError(f"pattern={kind!r} is not one of {', '.join(map(repr, get_args(PatternKind)))}")
        unit = F.normalize(patterns, dim=1)
        if len(torch.unique(unit, dim=0)) == num_classes and patterns.any(1).all():
            return unit


# Negative samples


def sample_wrong_labels(y: Tensor, num_classes: int, generator: torch.Generator | None = None) -> Tensor:
    """A label other than the right one, each with the same probability.

    Args:
        y: Right labels, ``(batch,)``.
        num_classes: Number of labels, at least two.
        generator: Of the random numbers, on the device of ``y``.
    """
    return (y + torch.randint(1, num_classes, y.shape, generator=generator, device=y.device)) % num_classes


def sample_hard_labels(
    scores: Tensor, y: Tensor, temperature: float = 10.0, generator: torch.Generator | None = None
) -> Tensor:
    """A wrong label that the network believes in: drawn from ``softmax(temperature * scores)`` without the right one.

    Args:
        scores: Goodness of each label, ``(batch, num_classes)``.
        y: Right labels, ``(batch,)``.
        temperature: Inverse temperature; infinity takes the best wrong label.
        generator: Of the random numbers, on the device of ``scores``.
    """
    logits = scores if math.isinf(temperature) else temperature * scores
    if not math.isinf(temperature):
        # The largest of logits with Gumbel noise is a draw from their softmax.
        logits = logits - torch.empty_like(logits).exponential_(generator=generator).log_()
    return logits.scatter(-1, y.unsqueeze(-1), -math.inf).argmax(-1)


def hybrid_images(x: Tensor, blurs: int = 6, generator: torch.Generator | None = None) -> Tensor:
    """Negatives without labels: each image mixed with another one through a mask of large random blobs.

    The mask is random bits, blurred again and again with [1/4, 1/2, 1/4] in both directions, and cut at one half: the
    mixture has the short-range statistics of real images but not their shapes.

    Args:
        x: Images, ``(batch, channels, height, width)``. A single one is mixed with itself.
        blurs: How often the mask is blurred.
        generator: Of the random numbers, on the device of ``x``.

    References:
        Hinton, "The Forward-Forward Algorithm: Some Preliminary Investigations", arXiv 2212.13345.
    """
    mask = torch.randint(2, (len(x), 1, *x.shape[-2:]), generator=generator, device=x.device).to(x.dtype)
    kernel = torch.tensor([0.25, 0.5, 0.25], dtype=x.dtype, device=x.device)
    for _ in range(blurs):
        mask = F.conv2d(F.pad(mask, (1, 1, 0, 0), mode="replicate"), kernel.view(1, 1, 1, 3))
        mask = F.conv2d(F.pad(mask, (0, 0, 1, 1), mode="replicate"), kernel.view(1, 1, 3, 1))
    others = torch.randint(1, max(2, len(x)), (1,), generator=generator, device=x.device)
    return torch.where(mask > 0.5, x, x[(torch.arange(len(x), device=x.device) + others) % len(x)])


def _reduce(each: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return each
    if reduction in ("mean", "sum"):
        return each.mean() if reduction == "mean" else each.sum()
    raise ValueError(f"reduction={reduction!r} is not one of 'mean', 'sum', 'none'")
