"""Continuous batching: a closed loop that keeps `concurrency` requests in flight until all are answered.

    arrive    a client sends its next request when it has read the last token of the one before
    admit     first come, first served, while a slot is free and the KV cache has room for the whole request
    launch    one step: prompts (prefill), or one token (decode) or several (verify) for every request in flight
    receive   read the tokens of the step before, while this one runs on the GPU

The host is one step behind: it knows by counting, not by reading, which requests a step ends, where each stands and
which pages it needs. So nothing waits for the host but where it takes longer than a step. For the same reason all
tensor-parallel ranks decide alike: no decision depends on a clock or on a token.
"""

import gc
from collections import deque

import numpy as np
import torch

from .energy import energy_j
from .in_flight import INTERRUPTED, REFUSED, InFlight, Launched, never_fits
from .interrupts import held_interrupts
from .metrics import FINISHED
from .prompt_pieces import check_mixed, taken
from .served import Served, ServingInterrupted
from .speculation import Speculation
from .step_clock import StepClock
from .step_inputs import StepInputs

PREFILL_MODES = ("steps", "chunked", "mixed")


def serve(
    model,
    requests,
    concurrency: int,
    *,
    prefill: str = "steps",
    chunk: int | None = None,
    speculation: Speculation | None = None,
    on_row=None,
) -> Served:
    """Answer all requests, `concurrency` of them in flight at a time, and return when the last token has been read.

    model: a ServedModel with all slots and pages free. prefill: "steps" takes prompts as soon as they are admitted, in
    steps of their own of up to `chunk` tokens, and makes the others wait; "chunked" takes up to `chunk` tokens of
    prompts between two decode steps, "mixed" takes them and the next token of all others in one step. chunk: by default
    all that a prefill call of the model can take. speculation: verify drafts instead of decoding. on_row(row): called
    with each row as it is made.

    A request that this model can never hold is refused: its row says why, and the others go on. ServingInterrupted on
    Ctrl-C, with all rows; slots and pages are free again in any case. ValueError for an argument out of range.
    """
    loop = Loop(model, requests, concurrency, prefill, chunk, speculation, on_row)
    with held_interrupts() as interrupt:
        try:
            loop.run(interrupt)
        except Exception:  # after Ctrl-C: another rank has stopped first, and sums with it fail
            if not interrupt.came:
                raise
        finally:
            loop.stop()
    if interrupt.came:
        raise ServingInterrupted(loop.served())
    return loop.served()


class Loop:
    """The state of one serve() call."""

    def __init__(self, model, requests, concurrency, prefill, chunk, speculation, on_row):
        if type(concurrency) is not int or not 1 <= concurrency <= model.max_batch:
            raise ValueError(f"concurrency: expected 1 to {model.max_batch} (max_batch), got {concurrency!r}")
        if prefill not in PREFILL_MODES:
            raise ValueError(f"prefill: expected one of {', '.join(PREFILL_MODES)}, got {prefill!r}")
        self.chunk = model.prefill_tokens if chunk is None else chunk
        if type(self.chunk) is not int or not 1 <= self.chunk <= model.prefill_tokens:
            raise ValueError(f"chunk: expected 1 to {model.prefill_tokens} (prefill_tokens), got {chunk!r}")
        if speculation is not None:
            speculation.check()
        self.drafting = speculation if speculation and speculation.tokens > 1 else None
        self.width = self.drafting.tokens if self.drafting else 1  # tokens that a step takes for each request
        self.model, self.concurrency = model, concurrency
        self.chunked, self.mixed = prefill == "chunked", prefill == "mixed"
        check_mixed(self.mixed, self.drafting, model, concurrency)
        self.coming, self.on_row = iter(requests), on_row or (lambda row: None)
        self.waiting: deque[InFlight] = deque()
        self.prompts: deque[InFlight] = deque()  # admitted, with prompt left
        self.rows: list[InFlight] = []  # row i of the model's buffers
        self.flying: dict[int, InFlight] = {}  # those admitted of which not all tokens are received, by id
        self.promised = self.steps_made = 0
        self.request_rows, self.step_rows, self.tokens = [], [], {}
        self.inputs = StepInputs(model.buffers, model.cache.page_size)
        self.clock = StepClock(model.buffers.tokens.device)
        self.wall_s, self.joules = 0.0, None

    def run(self, interrupt) -> None:
        """Serve until nothing is left, or an interrupt has come."""
        if self.drafting:
            self.model.reserve_drafts(self.concurrency, self.width)
        before = energy_j(self.clock.device)
        gc.disable()  # a collection walks all of torch's objects, which takes longer than a step
        self.clock.start()
        for _ in range(self.concurrency):
            self.arrive()
        steps = []
        while True:
            began = self.clock.now()
            launched = [] if interrupt.came else self.launch()
            waited = sum(self.receive(step) for step in steps)
            for step in launched:
                step.row["host_us"] = 1e6 * (self.clock.now() - began - waited) / len(launched)
            if not launched and not steps:
                break
            steps = launched
        if self.waiting and not interrupt.came:
            free = f"{self.model.slots.free} slots and {self.model.cache.free} of {self.model.cache.pages} pages"
            raise RuntimeError(f"no request can be admitted although none is in flight: {free} are free")
        self.wall_s = self.clock.now()
        after = energy_j(self.clock.device)
        self.joules = after - before if before is not None and after is not None else None

    # ---- requests come and are admitted

    def arrive(self) -> None:
        """A client sends the next request that the model can hold, if any is left."""
        for request in self.coming:
            cached = request.length + self.width - 2  # tokens in its pages at the end: not the last one, but all drafts
            drafts, pages = self.drafting and self.drafting.of(request), self.model.cache.pages_for(cached)
            one = InFlight(request, self.clock.now(), drafts, promised=pages)
            if reason := never_fits(one, cached, self.model):
                self.record(self.request_rows, one.row(REFUSED, reason=reason))
                continue
            self.waiting.append(one)
            return

    def admit(self) -> None:
        """Give a slot to those that wait, in order, as long as there are slots and pages for all that was promised."""
        while self.waiting and self.model.slots.free:
            if self.promised + self.waiting[0].promised > self.model.cache.pages:
                return
            one = self.waiting.popleft()
            one.slot, one.admitted_s = self.model.slots.acquire(), self.clock.now()
            self.promised += one.promised
            self.prompts.append(one)
            self.flying[one.request.id] = one

    # ---- steps

    def launch(self) -> list[Launched]:
        """Admit, then launch prompts or the next tokens; with chunked prefill both, with mixed both in one step."""
        self.admit()
        launched = [self.prefill()] if self.prompts else []
        if self.rows and (self.chunked or not launched):
            launched.append(self.decode())
        return launched

    def prefill(self) -> Launched:
        """Take prompts in order, up to `chunk` tokens; in a mixed step also the next of each row."""
        rows = self.ready() if self.mixed else []
        pieces = taken(self.prompts, min(self.chunk, self.model.prefill_tokens - len(rows)), self.extend)
        decoding = {"decoding": len(rows)} if rows else {}
        began = self.clock.mark()
        tokens = self.model.prefill(**pieces.arguments, **decoding)
        ended = self.clock.mark()
        done, nothing = pieces.done, [[] for _ in rows]
        host = self.inputs.to_host(tokens)
        self.advance(rows, nothing, np.ones(len(rows), np.int32))
        for one in done:
            one.made = 1
        self.join(done, tokens[: len(done)])
        batch = len(rows) or len(pieces.own)
        row = self.step_row("mixed" if rows else "prefill", batch, batch, pieces.tokens + len(rows))
        return Launched(row, [*done, *rows], [*([] for _ in done), *nothing], host, began, ended, self.clock.mark())

    def join(self, done: list[InFlight], tokens: torch.Tensor) -> None:
        """Make requests whose prompts are taken rows of the next decode step; release those of one token."""
        joining = [number for number, one in enumerate(done) if not one.all_made]
        if 0 < len(joining) < len(done):
            tokens = tokens[self.inputs.on_device(np.array(joining))]
        if joining:
            new = [done[number] for number in joining]
            lengths = [len(one.request.prompt) for one in new]
            sampling = [one.request.sampling for one in new]
            self.inputs.add([one.slot for one in new], lengths, [one.pages for one in new], tokens, sampling)
            self.rows = [*self.rows, *new]  # the list of a step on its way stays as it is
        for one in done:
            if one.all_made:
                self.release(one)

    def decode(self) -> Launched:
        """One step of all rows: a token for each, or with drafts as many as are accepted."""
        rows, batch = self.ready(), len(self.rows)
        chunks, counts, drafts = self.chosen(rows) if self.drafting else ([[] for _ in rows], np.ones(batch), None)
        began = self.clock.mark()
        if drafts is None:
            tokens = self.model.decode(batch)
        else:
            self.model.verify(batch, self.width)
            self.model.commit(batch, drafts)
            tokens = self.model.buffers.tokens[:batch]
        ended = self.clock.mark()
        host = self.inputs.to_host(tokens)
        self.advance(rows, chunks, counts)
        padded = min((size for size in self.model.batch_sizes if size >= batch), default=batch)
        row = self.step_row("verify" if self.drafting else "decode", batch, padded, int(counts.sum()))
        return Launched(row, rows, chunks, host, began, ended, self.clock.mark())

    def ready(self) -> list[InFlight]:
        """The rows, with pages for their next tokens, and all that has changed in the model's buffers."""
        for row in self.inputs.short_of_pages(self.width):
            self.extend(self.rows[row], int(self.inputs.positions[row]) + self.width)
            self.inputs.set_pages(row, self.rows[row].pages)
        self.inputs.upload()
        return self.rows

    def advance(self, rows: list[InFlight], chunks: list[list[int]], counts: np.ndarray) -> None:
        """Count the tokens of a launched step, and release the rows that it ends."""
        self.inputs.positions[: len(rows)] += counts.astype(np.int32)
        for one, chunk in zip(rows, chunks, strict=True):
            one.made += len(chunk) + 1
        if gone := [row for row, one in enumerate(rows) if one.all_made]:
            for row in gone:
                self.release(rows[row])
            self.rows = [rows[row] for row in self.inputs.remove(gone)]

    def chosen(self, rows: list[InFlight]) -> tuple[list[list[int]], np.ndarray, torch.Tensor]:
        """Fill the model's drafts; return accepted proposals and how many tokens each row keeps, also on the device."""
        proposed = np.stack([one.drafts.proposals[one.made : one.made + self.width - 1] for one in rows])
        counts = np.empty(len(rows), np.int32)
        for row, one in enumerate(rows):
            counts[row] = min(one.drafts.accepted[one.verified], one.request.output_length - one.made)
            one.verified += 1
        drafts = self.model.drafts[: len(rows)]
        drafts[:, 0] = self.model.buffers.tokens[: len(rows)]
        drafts[:, 1 : self.width] = self.inputs.on_device(proposed)
        chunks = [proposed[row, : count - 1].tolist() for row, count in enumerate(counts)]
        return chunks, counts, self.inputs.on_device(counts)

    def step_row(self, kind: str, batch: int, padded: int, tokens: int) -> dict:
        self.steps_made += 1
        row = {"type": "step", "index": self.steps_made - 1, "kind": kind, "batch": batch}
        return row | {"padded": padded, "tokens": tokens}

    def extend(self, one: InFlight, tokens: int) -> None:
        """Give a request the pages that its first `tokens` tokens need; they were promised, so they are there."""
        missing = self.model.cache.pages_for(tokens) - len(one.pages)
        one.pages += self.model.cache.acquire(max(0, missing))

    def release(self, one: InFlight) -> None:
        """Take back slot and pages of a request whose last step is launched: whatever uses them next comes after it."""
        self.model.slots.release(one.slot)
        self.model.cache.release(one.pages)
        self.promised -= one.promised
        one.slot = -1

    def receive(self, step: Launched) -> float:
        """Read a step's tokens and times. Returns the seconds that the host waited for the device."""
        began = self.clock.now()
        self.clock.wait(step.copied)
        now = self.clock.now()
        for one, chunk, token in zip(step.requests, step.chunks, step.tokens.tolist(), strict=True):
            one.tokens += [*chunk, token]
            one.chunk_s.append(now)
            one.chunk_tokens.append(len(chunk) + 1)
            if len(one.tokens) == one.request.output_length:
                del self.flying[one.request.id]
                self.tokens[one.request.id] = one.tokens
                self.record(self.request_rows, one.row(FINISHED))
                self.arrive()
        start_s, end_s = self.clock.seconds(step.began), self.clock.seconds(step.ended)
        step.row.update(gpu_us=1e6 * (end_s - start_s), start_s=start_s, end_s=end_s)
        self.record(self.step_rows, step.row)
        return now - began

    # ---- the end

    def record(self, rows: list[dict], row: dict) -> None:
        rows.append(row)
        self.on_row(row)

    def stop(self) -> None:
        """Give back what unanswered requests hold, and record these as interrupted."""
        self.wall_s = self.wall_s or self.clock.now()
        for one in [*self.flying.values(), *self.waiting]:
            if one.slot >= 0:
                self.release(one)
            self.tokens[one.request.id] = one.tokens
            self.record(self.request_rows, one.row(INTERRUPTED))
        self.flying, self.waiting = {}, deque()
        gc.enable()
        if self.drafting:
            self.model.reserve_drafts(0, 0)

    def served(self) -> Served:
        return Served(self.request_rows, self.step_rows, self.tokens, self.wall_s, self.joules)
