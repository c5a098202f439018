"""When a step began and ended on the GPU, without waiting for it: CUDA events; the host's clock on a CPU."""

import time

import torch


class StepClock:
    """Seconds since start(). Marks are in the order of the device's stream; read them in the order they were made."""

    def __init__(self, device: torch.device):
        self.device, self._cuda = device, device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begin at 0 when all earlier work on the device is done."""
        if self._cuda:
            torch.cuda.synchronize()
        self._began = time.perf_counter()
        self._last, self._seconds = self.mark(), 0.0

    def now(self) -> float:
        """Seconds on the host."""
        return time.perf_counter() - self._began

    def mark(self):
        """Mark this place in the stream of work."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self, mark) -> None:
        """Wait until the device has come to a mark."""
        if self._cuda:
            mark.synchronize()

    def seconds(self, mark) -> float:
        """When the device came to a mark, counted from the mark read before: events resolve short times only."""
        if not self._cuda:
            return mark - self._began
        self._seconds += self._last.elapsed_time(mark) / 1e3
        self._last = mark
        return self._seconds
