"""Which tensors share memory. All of it is known on the host."""

from torch import Tensor


def shares_memory(x: Tensor, y: Tensor) -> bool:
    """Whether the memory from x's first to its last element overlaps y's. False for tensors without memory (meta)."""
    return first_sharing(x, (y,)) is not None


def first_sharing(x: Tensor, others) -> Tensor | None:
    """Return the first of `others` (tensors or None) whose memory from first to last element overlaps x's, or None.

    Every call with out= asks this of ten tensors, so that what costs least is asked first.
    """
    if x.is_meta:
        return None
    start = x.data_ptr()
    end = start + span(x)
    for y in others:
        if y is None:
            continue
        storage = y.untyped_storage()
        if storage.data_ptr() < end and storage.data_ptr() + storage.nbytes() > start:
            first = y.data_ptr()
            if first < end and first + span(y) > start:
                return y
    return None


def span(x: Tensor) -> int:
    """Bytes from a tensor's first element to the end of its last."""
    if x.is_contiguous():
        return x.nbytes
    if not x.numel():
        return 0
    return (sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True)) + 1) * x.itemsize
