"""What was predicted of the kernels with a ring before it was measured.

A prediction is the time of a step over FlashInfer's in place on the same GPU, averaged over whole periods of the ring.
"""

from typing import NamedTuple


class Prediction(NamedTuple):
    """Of bf16 states, or of FP8. heads: value heads on the GPU; its key heads are a quarter of that.

    three_launches, one_launch: which design, each written down before its kernels had run on a GPU; None: not built.
    """

    updates: int
    heads: int
    batch: int
    three_launches: float
    one_launch: float | None
    dtype: str = "bfloat16"


# Three launches, of an H100: a first probe reads the state at 83% of the read bandwidth (420 µs of FlashInfer's 758 at
# B = 512, without any write), a full ring costs its row one more read and write in C + 1 steps, and three kernels with
# PDL take 3 µs more than one.
# One launch, of an H200: the bytes take 0.53 of FlashInfer's time at the measured bandwidth. 95% of that bandwidth is
# reached, as in place, and what does not grow with the batch falls from 16 µs to 6: no kernel waits for another, and
# 2,500 instructions for each head are a fifth of what the schedulers issue in the time that the head's bytes take.
# FP8, three launches, of an H100: reading 20 KB for each head takes 0.28 of FlashInfer's time at the read bandwidth.
# The launch that prepares and the one that writes add 0.02 to 0.03 each where they do not overlap. 220 instructions for
# 64 rows are half of what the schedulers issue in that time; at B = 32 three launches cost 8 µs.
PREDICTIONS = (
    Prediction(16, 64, 512, 0.58, 0.56),
    Prediction(16, 64, 256, 0.58, 0.57),
    Prediction(16, 64, 128, 0.59, 0.58),
    Prediction(16, 64, 32, 0.66, 0.68),
    Prediction(32, 64, 512, 0.59, 0.57),
    Prediction(16, 8, 512, 0.60, 0.60),
    Prediction(16, 8, 256, 0.66, 0.68),
    Prediction(16, 64, 512, 0.36, None, "float8_e4m3fn"),
    Prediction(16, 64, 256, 0.36, None, "float8_e4m3fn"),
    Prediction(16, 64, 128, 0.37, None, "float8_e4m3fn"),
    Prediction(16, 64, 32, 0.52, None, "float8_e4m3fn"),
)
