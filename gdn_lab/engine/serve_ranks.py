"""What one tensor-parallel rank does: weights once, a model for each configuration, a run for each concurrency.

Every rank calls serve_on_rank() with the same Plan; rank 0 writes rows and prints.
"""

import gc
import math
from pathlib import Path
from typing import NamedTuple

import torch

from ..backends.registry import variant
from ..bench.results import Run
from ..layer.configurations import Configuration, configuration
from ..models import STATE_BYTES
from .capacity import RESERVE, RequestMemory, request_memory
from .communicator_choice import DEFAULT, Choice
from .model_weights import ModelWeights
from .requests import Request, drawn, from_trace, sampled
from .row_log import RowLog
from .sampling import Sampling
from .serve import serve
from .served import ServingInterrupted, across_ranks
from .served_model import ServedModel
from .speculation import Speculation

PAGE = 64  # tokens
WARM_TOKENS = 4  # of each request of the run before, which compiles kernels and captures graphs


class Plan(NamedTuple):
    """What to serve. requests: for each concurrency; None: two rounds. input, output, spread: of drawn requests.

    trace: a JSONL file of lengths, in place of these. draft_tokens 0: no speculation. temperature, top_k, top_p: as of
    Sampling. layers: only the first so many. communicator: a name that connect() knows.
    """

    model: str
    tp: int
    concurrencies: list[int]
    configurations: list[str]
    precision: str = "fp8"
    state_dtype: str = "bfloat16"
    toy: bool = False
    layers: int | None = None
    requests: int | None = None
    input: int = 64
    output: int = 256
    spread: float = 0.0
    trace: str | None = None
    prefill: str = "steps"
    chunk: int | None = None
    draft_tokens: int = 0
    acceptance: float = 0.8
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    communicator: str = "fastest"
    seed: int = 0


def serve_on_rank(communicator, plan: Plan, folder: tuple | None, choice: Choice = DEFAULT) -> list[dict]:
    """Serve all that the plan names; return the rows of type "run" and those refused.

    folder: (path, run.json's content) of the Run that rank 0 appends to; None writes nothing. choice: of the fastest
    all-reduce. ServingInterrupted on Ctrl-C, with all rows written.
    """
    run = Run(Path(folder[0]), folder[1]) if folder and communicator.rank == 0 else None
    say = print if communicator.rank == 0 else _silent
    rows, weights = [], rank_weights(communicator, plan)
    communicator = connected(communicator, plan, weights.sizes.step.hidden, choice)
    for name in plan.configurations:
        rows += _serve_configuration(communicator, weights, plan, configuration(name), run, len(rows), say)
        gc.collect()
        if communicator.device.type == "cuda":
            torch.cuda.empty_cache()
    return rows


def connected(communicator, plan: Plan, hidden: int, choice: Choice = DEFAULT):
    """The communicator that the plan names, for sums of up to a verify step of all requests in flight.

    choice: of the variant for each size, where the plan names "fastest".
    """
    if communicator.size == 1:
        return communicator
    from .communicator_connect import connect  # symmetric memory, which one rank does without

    rows = max(plan.concurrencies) * max(1, plan.draft_tokens)
    return connect(plan.communicator, communicator, rows=rows, hidden=hidden, choice=choice)


def _silent(*words, **options) -> None:
    pass


def rank_weights(communicator, plan: Plan) -> ModelWeights:
    """The weights of this rank."""
    return ModelWeights.random(
        plan.model,
        rank=communicator.rank,
        tp=plan.tp,
        precision=plan.precision,
        device=communicator.device,
        seed=plan.seed,
        toy=plan.toy,
        layers=plan.layers,
    )


def _serve_configuration(communicator, weights, plan, entry, run, serves, say) -> list[dict]:
    """The rows of one configuration: one for each concurrency, or one that says why it cannot run."""
    rows = []

    def add(row: dict) -> None:
        rows.append(row)
        if run is not None:
            run.append(row)

    vocab = weights.sizes.vocab
    lists = {concurrency: requests_of(plan, concurrency, vocab) for concurrency in plan.concurrencies}
    try:
        model = new_model(communicator, weights, plan, entry, lists, say)
    except (ValueError, torch.OutOfMemoryError) as error:
        reason = "it needs more memory than is free" if isinstance(error, torch.OutOfMemoryError) else str(error)
        say(f"{entry.name}: refused: {reason}", flush=True)
        for concurrency in plan.concurrencies:
            add(case(communicator, plan, entry, concurrency) | {"status": "refused", "reason": reason})
        return rows
    for concurrency, requests in lists.items():
        common = {"phase": "serving", "serve": serves + len(rows)}
        rows.append(serve_once(communicator, model, plan, entry, concurrency, requests, common, run))
        say(f"{entry.name}, C = {concurrency}: {short(rows[-1])}", flush=True)
    return rows


def serve_once(communicator, model, plan: Plan, entry, concurrency, requests, common: dict, run: Run | None) -> dict:
    """Serve `requests`; return the row of type "run", the last of its rows.

    First come prompts of every size and a short run, which compile and warm. entry: the model's Configuration. common:
    fields of all its rows. run: takes the rows, or None. ServingInterrupted with all rows written.
    """
    vocab = model.vocab
    drafting = Speculation(plan.draft_tokens, plan.acceptance, vocab, plan.seed) if plan.draft_tokens else None
    options = {"prefill": plan.prefill, "chunk": plan.chunk, "speculation": drafting}
    warm = [one._replace(output_length=min(WARM_TOKENS, one.output_length)) for one in requests[:concurrency]]
    append = run.append if run is not None else _silent
    if communicator.device.type == "cuda":
        model.warm_prompts()
    serve(model, warm, concurrency, **options)
    with RowLog(append, common) as log:
        try:
            served = across_ranks(serve(model, requests, concurrency, on_row=log, **options), communicator)
        except ServingInterrupted as interrupt:
            append(_run_row(communicator, plan, entry, concurrency, interrupt.served, common))
            raise
    row = _run_row(communicator, plan, entry, concurrency, served, common)
    append(row)
    return row


def _run_row(communicator, plan, entry, concurrency, served, common) -> dict:
    return (
        {"status": "fact", "type": "run"}
        | case(communicator, plan, entry, concurrency)
        | common
        | served.summary(communicator.size)
    )


def requests_of(plan: Plan, concurrency: int, vocab: int) -> list[Request]:
    """The requests of one run: those of the trace, or as many as the plan names, drawn."""
    if plan.trace is not None:
        requests = from_trace(plan.trace, vocab=vocab, seed=plan.seed)[: plan.requests]
    else:
        count = plan.requests or 2 * concurrency
        requests = drawn(count, plan.input, plan.output, vocab=vocab, seed=plan.seed, spread=plan.spread)
    return sampled(requests, sampling_of(plan))


def sampling_of(plan: Plan) -> Sampling:
    """How the tokens of the plan's requests are chosen."""
    return Sampling(plan.temperature, plan.top_k, plan.top_p, plan.seed)


def new_model(communicator, weights, plan: Plan, entry: Configuration, lists: dict, say) -> ServedModel:
    """A model with slots and pages for all requests in flight, or for as many as fit into the GPU's memory."""
    most, drafts = max(plan.concurrencies), max(1, plan.draft_tokens)
    longest = max(request.length for requests in lists.values() for request in requests) + drafts
    fit = most
    if communicator.device.type == "cuda" and not plan.toy:
        ring = variant(entry.gdn).ring
        dtype = entry.state_dtype or plan.state_dtype
        each = request_memory(plan.model, plan.tp, dtype, plan.draft_tokens, longest, PAGE, ring)
        fit = communicator.broadcast_object(min(most, _fitting(each, communicator.device)))
    if fit < most:
        say(f"{entry.name}: {fit} of {most} requests fit into memory at once; the others wait for a slot.", flush=True)
    padded = sorted({2**n for n in range(int(math.log2(most)) + 1)} | set(plan.concurrencies))
    return ServedModel(
        weights,
        entry,
        max_batch=most,
        slots=max(1, fit) + 1,
        pages=max(1, fit) * -(-longest // PAGE),
        page_size=PAGE,
        max_length=longest,
        state_dtype=getattr(torch, plan.state_dtype),
        communicator=communicator,
        batch_sizes=tuple(padded),
        sampling=plan.temperature > 0,
    )


def _fitting(each: RequestMemory, device) -> int:
    """Requests that fit into the memory that is free now."""
    return max(0, (torch.cuda.mem_get_info(device)[0] - RESERVE) // each.total)


def case(communicator, plan: Plan, entry: Configuration, concurrency: int) -> dict:
    """The fields that say what was served."""
    backend, kernel = entry.gdn.split("/")
    return {
        "phase": "serving",
        "model": plan.model,
        "tp": plan.tp,
        "ranks": communicator.size,
        "precision": plan.precision,
        "state_dtype": entry.state_dtype or plan.state_dtype,
        "toy": plan.toy,
        "configuration": entry.name,
        "backend": backend,
        "variant": kernel,
        "layout": entry.layout,
        "communicator": communicator.name if communicator.size > 1 else "",
        "concurrency": concurrency,
        "draft_tokens": plan.draft_tokens,
        "acceptance": plan.acceptance if plan.draft_tokens else None,
        "input_tokens_each": plan.input,
        "output_tokens_each": plan.output,
        "spread": plan.spread,
        "trace": plan.trace,
        "temperature": plan.temperature,
        "top_k": plan.top_k,
        "top_p": plan.top_p,
        "prefill": plan.prefill,
        "seed": plan.seed,
    }


def short(row: dict) -> str:
    """One line of a run."""
    if not row.get("tpot_ms"):
        return f"{row['requests']} requests, {row['output_tokens']} tokens"
    gap = f", host gaps {row['host_gap_share']:.1%}" if row["host_gap_share"] is not None else ""
    return f"{row['output_throughput']:,.0f} tokens/s, TPOT {row['tpot_ms']:.2f} ms{gap}"


def check(plan: Plan) -> None:
    """ValueError, one sentence, for what can be seen before any weight is made."""
    for name in plan.configurations:
        configuration(name)
    if plan.state_dtype not in STATE_BYTES:
        raise ValueError(f"dtype: expected one of {', '.join(STATE_BYTES)}, got {plan.state_dtype!r}")
    sampling_of(plan).check()
    if plan.draft_tokens and plan.temperature:
        raise ValueError(
            f"temperature: expected 0 with draft tokens, which are verified greedily, got {plan.temperature}"
        )
    if plan.draft_tokens:
        Speculation(plan.draft_tokens, plan.acceptance, 1).check()
