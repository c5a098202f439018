"""CUDA graphs of steps, in one memory pool."""

import torch


class StepGraphs:
    """Captures steps that run one at a time; what they allocate shares one pool. On a CPU a step runs as it is."""

    def __init__(self, device: torch.device, *, eager: bool):
        self.device, self.eager = device, eager or device.type != "cuda"
        self._pool = None if self.eager else torch.cuda.graph_pool_handle()

    def captured(self, run):
        """A function that does what run() does: the replay of a graph, captured after a run that compiles kernels."""
        if self.eager:
            return run
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                run()
            torch.cuda.current_stream().wait_stream(side)
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            # thread_local: other threads, such as NCCL's watchdog, may query events meanwhile
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                run()
        return graph.replay
