"""The decode step of one decoder layer, and what it is made of.

    configurations.py       the ways in which a step can run, one record each
    weights.py              sizes and random weights of a layer on one tensor-parallel rank
    step.py                 Step: the parts in order, in named ranges
    gdn_layer.py            the GDN layer: projections, convolution, GDN, gated norm
    layer_reference.py      what the elementwise kernels compute, in PyTorch
    experts.py              the mixture of experts; experts_tilings.py: how its kernels are launched
    fp8.py                  FP8 as checkpoints store it
    step_check.py           every part of a step against float64
    step_parts.py           how long each part of a step keeps the GPU busy
    kernels/                elementwise.py, projections.py (products with a weight for few rows), experts_kernels.py

Files that import Triton, those in kernels/, are imported only where a GPU is used.
"""

from .configurations import CONFIGURATIONS, Configuration, configuration, made_for
from .step import BYTES_FORMULA, Step, layers_needed, stacked
from .weights import StepWeights

__all__ = [
    "BYTES_FORMULA",
    "CONFIGURATIONS",
    "Configuration",
    "Step",
    "StepWeights",
    "configuration",
    "layers_needed",
    "made_for",
    "stacked",
]
