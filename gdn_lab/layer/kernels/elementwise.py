"""The kernels between the products of a decode step, by the names that layer_reference.py gives them."""

from .conv import conv_update, split
from .conv_sequences import conv_sequences
from .norms import add_norm, gated_norm, quantize, silu_mul

__all__ = ["add_norm", "conv_sequences", "conv_update", "gated_norm", "quantize", "silu_mul", "split"]
