"""The decode step of one decoder layer, and what it is made of.

    step.py         Step: the parts in their order, in named ranges; the configurations; the weights at a model's sizes
    layer.py        the GDN layer: projections, convolution, GDN, gated norm. layer_kernels.py has its small kernels,
                    layer_reference.py what they compute
    experts.py      the mixture of experts. experts_kernels.py has its kernels, experts_tilings.py how they are launched
    projection_kernels.py   products by a weight for few rows
    fp8.py          FP8 as checkpoints store it
    check.py        every part of a step held against float64
    parts.py        how long each part of a step keeps the GPU busy
    capture.py      a few runs of a step, recorded by whichever profiler is there

What imports Triton, the files of kernels, is imported where a GPU is used.
"""

from .step import (
    BYTES_FORMULA,
    CONFIGURATIONS,
    CPU_CONFIGURATIONS,
    GPU_CONFIGURATIONS,
    Step,
    StepWeights,
    configuration,
    layers_needed,
    stacked,
)

__all__ = [
    "BYTES_FORMULA", "CONFIGURATIONS", "CPU_CONFIGURATIONS", "GPU_CONFIGURATIONS", "Step", "StepWeights",
    "configuration", "layers_needed", "stacked",
]  # fmt: skip
