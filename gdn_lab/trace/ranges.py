"""span(name): names a piece of a program for the profilers."""

import nvtx
import torch


class span:
    """Marks what runs inside as a range of this name: `with span("GDN"): …`. Nests; not for reuse.

    Nsight Systems sees every span (NVTX, default domain), Kineto those that begin while it records. About 1 us when
    nobody records, more under Kineto: around a step or its parts, not inside a timed loop.
    """

    __slots__ = ("_nvtx", "_kineto")

    def __init__(self, name: str):
        self._nvtx = nvtx.annotate(name)
        self._kineto = torch.profiler.record_function(name) if torch.autograd._profiler_enabled() else None

    def __enter__(self) -> "span":
        self._nvtx.__enter__()
        if self._kineto is not None:
            self._kineto.__enter__()
        return self

    def __exit__(self, kind, error, traceback) -> None:
        if self._kineto is not None:
            self._kineto.__exit__(kind, error, traceback)
        self._nvtx.__exit__(kind, error, traceback)
