"""The two steps of a model that run in CUDA graphs: one token for each row, or several to verify."""

import torch
from torch import Tensor

from ..layer.sequences import Drafts
from ..layer.workspace import Workspace
from .decoder import Decoder, ModelParts, TokenHead
from .token_rows import TokenRows


class DecodeStep:
    """One token for each of `batch` rows of the static buffers. Writes tokens, positions and next_tokens."""

    def __init__(self, parts: ModelParts, buffers, batch: int, workspace: Workspace):
        self.buffers, self.batch = buffers, batch
        count = torch.arange(batch + 1, dtype=torch.int32, device=buffers.tokens.device)
        self.rows = TokenRows(
            positions=buffers.positions[:batch],
            sequence=count[:batch],
            starts=count,
            indices=buffers.indices[:batch],
            page_table=buffers.page_table[:batch],
            longest=1,
        )
        self.decoder = Decoder(parts, self.rows, buffers.tokens[:batch], workspace)
        self.head = TokenHead(parts, batch, workspace)

    def __call__(self) -> None:
        self.decoder()
        self.choose()

    def choose(self) -> None:
        """Head and sampler; then the next step's inputs."""
        token = self.tokens()
        live = self.rows.indices >= 0
        token = torch.where(live, token, 0)
        self.buffers.next_tokens[: self.batch].copy_(token)
        self.buffers.tokens[: self.batch].copy_(token)
        self.rows.positions.add_(live)

    def tokens(self) -> Tensor:
        """Each row's next token [batch] int64."""
        sampling = self.buffers.sampling and self.buffers.sampling.first(self.batch)
        return self.head(self.decoder.hidden.y, self.batch, sampling, self.rows.positions)


class VerifyStep:
    """`tokens` tokens for each of `batch` rows: drafts [rows, tokens]. Leaves states; chosen [batch, tokens] int64."""

    def __init__(self, parts: ModelParts, buffers, drafts, batch: int, backend: str, workspace: Workspace):
        tokens = drafts.shape[1]
        self.parts, self.buffers, self.batch, self.tokens = parts, buffers, batch, tokens
        device, N = drafts.device, batch * tokens
        count = torch.arange(batch + 1, dtype=torch.int32, device=device)
        self.offset = count.new_tensor(range(tokens))
        self.rows = TokenRows(
            positions=torch.zeros(N, dtype=torch.int32, device=device),
            sequence=count[:batch].repeat_interleave(tokens),
            starts=count * tokens,
            indices=buffers.indices[:batch],
            page_table=buffers.page_table[:batch],
            longest=tokens,
        )
        sequences = Drafts(tokens, backend, self.rows.sequence, self.rows.starts)
        self.decoder = Decoder(parts, self.rows, drafts[:batch].view(N), workspace, sequences)
        self.head = TokenHead(parts, N, workspace)
        self.chosen = torch.zeros(batch, tokens, dtype=torch.int64, device=device)
        self.accepted = torch.zeros(batch, dtype=torch.int32, device=device)

    def __call__(self) -> None:
        first = self.buffers.positions[: self.batch]
        torch.add(first[:, None], self.offset, out=self.rows.positions.view(self.batch, self.tokens))
        self.decoder()
        self.chosen.copy_(self.head(self.decoder.hidden.y, self.batch * self.tokens).view_as(self.chosen))

    def commit(self) -> None:
        """Keep the first `accepted` tokens of each row: states, windows, positions, and the token to feed next."""
        for pool in self.parts.pools:
            pool.commit(self.rows.indices, self.accepted)
        live = self.rows.indices >= 0
        kept = torch.where(live, self.accepted, 0)
        token = self.chosen.gather(1, (kept.long() - 1).clamp(min=0)[:, None])[:, 0]
        token = torch.where(kept > 0, token, self.buffers.tokens[: self.batch])
        self.buffers.tokens[: self.batch].copy_(token)
        self.buffers.next_tokens[: self.batch].copy_(token)
        self.buffers.positions[: self.batch].add_(kept)
