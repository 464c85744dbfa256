"""Quaternions: their algebra, layers of Hamilton products, GHR derivatives and losses."""

from lightning_nobp.functional.quaternion.algebra import (
    conjugate,
    exp,
    from_complex,
    hamilton_product,
    inverse,
    log,
    norm,
    normalize,
    pack,
    rotate,
    to_complex,
    unpack,
)
from lightning_nobp.functional.quaternion.convolution import (
    quaternion_conv1d,
    quaternion_conv2d,
    quaternion_conv3d,
)
from lightning_nobp.functional.quaternion.ghr import ghr_derivative, naive_derivative
from lightning_nobp.functional.quaternion.linear import quaternion_linear, quaternion_linear_vjp
from lightning_nobp.functional.quaternion.losses import (
    chordal_loss,
    component_mse,
    geodesic_loss,
    rotation_angle,
    unit_mse,
)
from lightning_nobp.functional.quaternion.products import hamilton_block

__all__ = [
    "chordal_loss",
    "component_mse",
    "conjugate",
    "exp",
    "from_complex",
    "geodesic_loss",
    "ghr_derivative",
    "hamilton_block",
    "hamilton_product",
    "inverse",
    "log",
    "naive_derivative",
    "norm",
    "normalize",
    "pack",
    "quaternion_conv1d",
    "quaternion_conv2d",
    "quaternion_conv3d",
    "quaternion_linear",
    "quaternion_linear_vjp",
    "rotate",
    "rotation_angle",
    "to_complex",
    "unit_mse",
    "unpack",
]
