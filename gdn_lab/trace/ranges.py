"""Name pieces of a program for the profilers: nvtx_range(name), and the names that this workbook's recordings use."""

import sys

import nvtx

STEP = "decode step"  # one decode step of one layer; a range for each of its parts lies inside
WARM_UP = "warm-up"  # runs that do not count
EAGER = "eager"  # one run of the step, launched kernel by kernel
GRAPH = "graph"  # one replay of the CUDA graph of the same run


class nvtx_range:
    """Mark what runs inside the block as a range of this name: `with nvtx_range("GDN"): …`.

    Nsight Systems sees every range (NVTX, default domain); Kineto sees those that begin while it records. Ranges nest;
    an object marks one range and cannot be used again. Costs about 1 us when nothing records and more under Kineto, so
    put it around a step or its parts, not inside a timed loop.
    """

    __slots__ = ("_nvtx", "_kineto")

    def __init__(self, name: str):
        self._nvtx = nvtx.annotate(name)
        torch = sys.modules.get("torch")  # where it was not imported, Kineto does not record
        recording = torch is not None and torch.autograd._profiler_enabled()
        self._kineto = torch.profiler.record_function(name) if recording else None

    def __enter__(self) -> "nvtx_range":
        self._nvtx.__enter__()
        if self._kineto is not None:
            self._kineto.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._kineto is not None:
            self._kineto.__exit__(kind, error, traceback)
        self._nvtx.__exit__(kind, error, traceback)
