"""The sampler on a GPU at a real vocabulary, against plain PyTorch, and in a CUDA graph."""

import pytest
import torch

from gdn_lab.engine import sampling_kernels, sampling_reference
from gdn_lab.engine.sampling import GREEDY, Sampling, SamplingRows, sampling_rows

pytestmark = pytest.mark.gpu

VOCAB, ROWS = 248_320, 64
WAYS = [GREEDY, Sampling(1.0), Sampling(0.7, 50), Sampling(1.0, 0, 0.9), Sampling(1.2, 200, 0.8)]


def test_draws_in_a_cuda_graph_are_the_reference_s():
    torch.manual_seed(0)
    logits = (2 * torch.randn(ROWS, VOCAB, device="cuda")).bfloat16()
    each = [WAYS[row % len(WAYS)]._replace(seed=row) for row in range(ROWS)]
    rows = SamplingRows(*(part.cuda() for part in sampling_rows(each)))
    positions = torch.arange(ROWS, dtype=torch.int32, device="cuda")
    tokens = logits.argmax(1)
    expected, graph = tokens.clone(), torch.cuda.CUDAGraph()
    sampling_reference.sample(logits, expected, rows, positions)
    sampling_kernels.sample(logits, tokens.clone(), rows, positions)
    with torch.cuda.graph(graph):
        sampling_kernels.sample(logits, tokens, rows, positions)
    graph.replay()
    torch.cuda.synchronize()
    # sums in another order can move the edge of top-p by a token
    assert (tokens == expected).float().mean() >= 0.95
    assert torch.equal(tokens[:: len(WAYS)], logits.argmax(1)[:: len(WAYS)])
    assert sampling_reference.kept(logits.float(), rows).gather(1, tokens[:, None]).float().mean() >= 0.95


def test_a_row_draws_the_same_token_alone():
    torch.manual_seed(1)
    logits = (2 * torch.randn(ROWS, VOCAB, device="cuda")).bfloat16()
    rows = SamplingRows(*(part.cuda() for part in sampling_rows([WAYS[n % len(WAYS)] for n in range(ROWS)])))
    positions = torch.arange(ROWS, dtype=torch.int32, device="cuda")
    together = logits.argmax(1)
    alone = together.clone()
    sampling_kernels.sample(logits, together, rows, positions)
    for row in range(ROWS):
        one = slice(row, row + 1)
        mine = SamplingRows(*(part[one] for part in rows))
        sampling_kernels.sample(logits[one], alone[one], mine, positions[one])
    assert torch.equal(together, alone)
