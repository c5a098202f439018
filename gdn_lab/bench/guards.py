"""Guards on a timed kernel: what was timed is run once more on values that did not exist before, and must be right.

A kernel may keep an output by its pointer, skip its work in a CUDA graph, write late, or on another stream; what it
then leaves is not the reference's. And no function that times or judges may have been replaced (seals.py).
"""

import os

import torch

from .. import clock, seals
from ..tolerances import LAST_PLACE, Check, merged

REPLAYED = "the timed calls on new inputs"  # in a row's `checked` and `wrong_on`


class ReplayGuard:
    """Refreshes the inputs of timed calls, and judges what was timed.

    sweep: a Sweep. point: of the calls. inputs, index_sets, out: of the calls; every call writes to the same `out`.
    found: {key: Check} of the cases that were judged, after judge().
    """

    def __init__(self, sweep, point, inputs, index_sets, out):
        self.sweep, self.point, self.inputs, self.index_sets, self.out = sweep, point, inputs, index_sets, out
        self.rng = torch.Generator(out.device)
        self.rng.manual_seed(int.from_bytes(os.urandom(7), "big"))  # no kernel can know what it will be given
        self.found: dict[str, Check] = {}

    def refresh(self) -> None:
        """Put new values into the inputs, drawn as ops.make_inputs() draws them, without waiting for the GPU."""
        self.sweep.redraw(self.inputs, self.rng, strong_decay=True)

    def judge(self, runs: dict) -> None:
        """Run all calls of each variant once, and compare what the last one leaves with the reference.

        runs: {key of a case: function that runs all its calls}.
        """
        for case in self.sweep.cases:
            if case.key in runs and self.sweep.can_replay(case):
                self.found[case.key] = self._judge(case, runs[case.key])

    def _judge(self, case, run) -> Check:
        sweep, last = self.sweep, self.index_sets[-1]
        rows = list(range(min(self.point.batch, sweep.rows_after)))
        pool = sweep.pools[sweep.pool_layout(case)]
        # After many steps with the same inputs the slots of all calls hold much the same: these are told apart again.
        pool.write(last[rows], torch.randn(pool.read(last[rows]).shape, generator=self.rng, device=self.out.device))
        state = pool.read(last[rows])
        sweep.redraw(self.inputs, self.rng, strong_decay=False)  # so that the output depends on the state
        self.out.fill_(torch.nan)
        run()
        then = self.out.clone()  # at once, in the order of the current stream: what comes later is too late
        times = self._times_touched()
        for _ in range(times):
            parts = sweep.reference(self.inputs, state, rows)
            state = torch.cat([part.states for part in parts]).to(sweep.dtype).float()
        more = (times - 1) * LAST_PLACE[sweep.dtype]  # each step before the last rounds the state once
        check = merged([sweep.compare(case, part, then, last, None, more) for part in parts])
        if sweep.device.type == "cuda":
            clock.synchronize()
        return check

    def _times_touched(self) -> int:
        """How often one run touches the slots of its last call: calls repeat once the pool is used up."""
        distinct = (self.sweep.slots - 1) // self.point.batch
        return (len(self.index_sets) - 1) // distinct + 1


def broken_seal(case) -> dict:
    """Return the fields that make an error of an author's timed row if a seal is broken; {} for any other."""
    reason = seals.broken() if case.is_yours else None
    return {"status": "error", "reason": f"{reason}, so its times cannot be believed"} if reason else {}
