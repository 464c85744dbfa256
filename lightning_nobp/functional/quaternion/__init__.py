"""Quaternions: their algebra, layers of Hamilton products, GHR derivatives and losses."""

from lightning_nobp.functional.quaternion.activations import (
    cardioid,
    magnitude_tanh,
    mod_relu,
    norm_gate,
    phase_sin,
    phase_tanh,
)
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
    quaternion_conv_transpose1d,
    quaternion_conv_transpose2d,
    quaternion_conv_transpose3d,
)
from lightning_nobp.functional.quaternion.ghr import ghr_derivative, naive_derivative
from lightning_nobp.functional.quaternion.hypercomplex import (
    hamilton_rule,
    phm_to_quaternion,
    phm_weight,
    quaternion_to_phm,
)
from lightning_nobp.functional.quaternion.linear import quaternion_linear, quaternion_linear_vjp
from lightning_nobp.functional.quaternion.losses import (
    chordal_loss,
    component_mse,
    geodesic_loss,
    imaginary_mse,
    rotation_angle,
    unit_mse,
)
from lightning_nobp.functional.quaternion.products import hamilton_block
from lightning_nobp.functional.quaternion.rotation import quaternion_rotation, rotation_matrices

__all__ = [
    "cardioid",
    "chordal_loss",
    "component_mse",
    "conjugate",
    "exp",
    "from_complex",
    "geodesic_loss",
    "ghr_derivative",
    "hamilton_block",
    "hamilton_product",
    "hamilton_rule",
    "imaginary_mse",
    "inverse",
    "log",
    "magnitude_tanh",
    "mod_relu",
    "naive_derivative",
    "norm",
    "norm_gate",
    "normalize",
    "pack",
    "phase_sin",
    "phase_tanh",
    "phm_to_quaternion",
    "phm_weight",
    "quaternion_conv1d",
    "quaternion_conv2d",
    "quaternion_conv3d",
    "quaternion_conv_transpose1d",
    "quaternion_conv_transpose2d",
    "quaternion_conv_transpose3d",
    "quaternion_linear",
    "quaternion_linear_vjp",
    "quaternion_rotation",
    "quaternion_to_phm",
    "rotate",
    "rotation_angle",
    "rotation_matrices",
    "to_complex",
    "unit_mse",
    "unpack",
]
