"""What the sweep does with a model besides serving runs: times of a step's parts, and a toy's check."""

from ...engine.serve import serve
from .plan import Job
from .serving_rows import CHECK, PART


def part_rows(model, job: Job, p) -> list[dict]:
    """Times of the parts of a decode step, and of the GDN kernel alone, with all requests half-way; rows "part"."""
    if job.draft_tokens:
        return []
    length = p.input_tokens + p.output_tokens // 2
    return [{"type": PART, "length": length} | row for row in model.time_parts(job.concurrency, length)]


def check_row(model, requests, concurrency: int) -> dict:
    """How many requests get the tokens that they get when served alone; a row of type "check".

    Exact where the batch does not change a sum's order, as on a CPU at toy size.
    """
    together, alone = (serve(model, requests, count).tokens for count in (concurrency, 1))
    alike = sum(together[one.id] == alone[one.id] for one in requests)
    return {"type": CHECK, "requests": len(requests), "alike": alike}
