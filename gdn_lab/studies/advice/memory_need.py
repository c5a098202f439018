"""What the state of N requests takes on each GPU, in each dtype, with draft states. Imports no torch."""

from ...models import (
    FP8_RING,
    FP8_STATE,
    STATE_BYTES,
    GDNShape,
    draft_bytes_of,
    draft_nbytes,
    model,
    slot_nbytes_of,
)


def memory_need(name: str, tp: int, slots: int, spec: int = 0, gigabytes: float = 0.0) -> list[dict]:
    """A line for each state dtype, bytes on each of `tp` GPUs in all GDN layers of the model.

    slots: requests that keep a state. spec: draft tokens verified in a step, 0 for none. gigabytes: memory to fill, or
    0. Fields: state_dtype; ring, updates of an FP8 state's, else 0; slot_bytes, of one request's state, convolution
    window, and of FP8 scales and ring; slots_bytes; draft_bytes, of one request's drafts if every state is stored;
    drafts_bytes, if all requests verify at once; total_bytes; fit_without_drafts and fit_with_drafts, requests that fit
    in `gigabytes`, None where nothing was asked.
    """
    shape, layers = GDNShape.from_model(name, tp), model(name).gdn_layers
    lines = []
    for dtype in (*STATE_BYTES, FP8_STATE):
        ring = FP8_RING if dtype == FP8_STATE else 0
        slot = layers * slot_nbytes_of(shape, dtype, ring)
        draft = layers * sum(draft_nbytes(shape, spec, draft_bytes_of(dtype)).values())
        room = int(gigabytes * 1e9)
        lines.append(
            {
                "state_dtype": dtype,
                "ring": ring,
                "slot_bytes": slot,
                "slots_bytes": slots * slot,
                "draft_bytes": draft,
                "drafts_bytes": slots * draft,
                "total_bytes": slots * (slot + draft),
                "fit_without_drafts": room // slot if gigabytes else None,
                "fit_with_drafts": room // (slot + draft) if gigabytes and spec else None,
            }
        )
    return lines
