"""Which token of which request each row of a step is."""

from typing import NamedTuple

from torch import Tensor


class TokenRows(NamedTuple):
    """The rows of one call, all int32 on the device: N tokens of n sequences.

    positions [N]: of each token in its request, from 0. sequence [N]: its entry of indices, -1 for padding. starts
    [n + 1]: the first row of each sequence. indices [n]: slots, negative for padding. page_table [n, max_pages]: pages
    of the KV cache. longest: most tokens that a sequence can have.
    """

    positions: Tensor
    sequence: Tensor
    starts: Tensor
    indices: Tensor
    page_table: Tensor
    longest: int
