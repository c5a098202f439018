"""Mutants of calls: the pool, the checks of arguments, the operations and the backends that run on a CPU."""

from .mutant import Mutant

DECODE = "backends/test_decode_torch.py"
VERIFY = "test_verify.py"
PREFILL = "test_prefill.py"
POOL = "test_pool.py"
REFUSALS = "test_refusals.py"
ARGUMENTS = "test_arguments.py"
REPEATED = "test_repeated_calls.py"
TRITON_DECODE = "interpreter_cases.py"
TRITON_VERIFY = "verify_interpreter_cases.py"
TRITON_PREFILL = "prefill_interpreter_cases.py"

MUTANTS_OF_CALLS = [
    # ---- the pool
    Mutant("pool.py", "range(slots - 1, 0, -1)", "range(slots - 1, -1, -1)", POOL),
    Mutant("pool.py", "reversed(given)", "given", POOL),
    Mutant("pool.py", "for part in self._memory:", "for part in self._memory[1:]:", POOL),
    Mutant("pool.py", "for part in self._memory:", "for part in (self._memory[0], *self._memory[2:]):", POOL),
    Mutant("pool.py", "({0} | set(", "(set(", POOL),
    Mutant(
        "pool.py",
        'state if self.layout == "VK" else state.transpose(-1, -2)\n        return torch.where',
        "state\n        return torch.where",
        POOL,
    ),
    Mutant("pool.py", "torch.where((slots >= 0)[:, None, None, None], state, 0.0)", "state", POOL + " " + VERIFY),
    Mutant(
        "rollback.py",
        "intermediate_states[row, accepted - 1]",
        "intermediate_states[row, accepted.clamp(max=intermediate_states.shape[1] - 1)]",
        VERIFY,
    ),
    Mutant("rollback.py", "torch.where(accepted > 0, indices, 0).long()", "indices.clamp(min=0).long()", VERIFY),
    Mutant(
        "rollback.py",
        "window = accepted[:, None] + torch.arange",
        "window = accepted[:, None].clamp(max=2) + torch.arange",
        VERIFY,
    ),
    Mutant("pool.py", "if not 0 <= n <= tokens", "if not 0 <= n <= tokens + 1", VERIFY),
    Mutant("pool.py", "other.conv.copy_(self.conv)", "pass", POOL),
    Mutant("pool.py", "if slot >= self.slots]", "if slot > self.slots]", POOL + " " + REFUSALS),
    Mutant("pool_kernels.py", "(count - 1) * ELEMENTS", "count * ELEMENTS", TRITON_VERIFY + " -k commit"),
    Mutant("pool_kernels.py", "tl.where(count + 1 < WINDOW", "tl.where(count < WINDOW", TRITON_VERIFY + " -k commit"),
    Mutant(
        "pool_kernels.py",
        "if slot >= 0:\n        if count > 0:\n            last",
        "if slot >= 0:\n        if count >= 0:\n            last",
        TRITON_VERIFY + " -k commit",
    ),
    # ---- checks of calls
    Mutant("ops.py", "DRAFT_TOKENS = (2, 16)", "DRAFT_TOKENS = (1, 16)", VERIFY),
    Mutant(
        "ops.py",
        "call.shape.scale if scale is None else scale",
        "scale or call.shape.scale",
        "test_fuzz.py -k test_calls",
    ),
    Mutant("arguments.py", '"shape", "dtype",', '"shape",', REPEATED),
    Mutant("arguments.py", ', "requires_grad")', ")", REPEATED),
    Mutant("arguments.py", ", *map(Tensor.stride, tensors)", "", REPEATED),
    Mutant("arguments.py", " or addresses != last[1]:", ":", REPEATED),
    Mutant("arguments.py", "(dims, out is None, _layout(given))", "_layout(given)", REPEATED),
    Mutant("arguments.py", "if times > 1)", "if times > 2)", REFUSALS),
    Mutant("arguments.py", "if 0 in slots:", "if -1 in slots:", REFUSALS),
    Mutant("arguments.py", "bounds[0] != 0 or", "", PREFILL + " " + REFUSALS),
    Mutant("arguments.py", "any(end < start for start, end in pairwise(bounds))", "False", PREFILL),
    Mutant("arguments.py", "max(slots) >= pool.slots", "max(slots) > pool.slots", ARGUMENTS),
    Mutant("ops.py", "scratch.slots <= len(indices)", "scratch.slots < len(indices)", REFUSALS + " " + DECODE),
    Mutant("arguments.py", "and k.dtype is dtype\n", "\n", REFUSALS),
    Mutant("ops.py", "batch = scratch.state[1 : len(indices) + 1]", "batch = scratch.state[: len(indices)]", DECODE),
    Mutant("arguments.py", "if tokens and not sequences:", "if False:", ARGUMENTS),
    Mutant("arguments.py", "if start <= v.data_ptr() < end:", "if False:", ARGUMENTS),
    Mutant("arguments.py", "if x is not None and start <= x.data_ptr() < end:", "if False:", ARGUMENTS),
    Mutant("arguments.py", "        others = (v, *others)\n", "        pass\n", ARGUMENTS),
    Mutant("arguments.py", "if first_sharing(states, others) is not None:", "if False:", ARGUMENTS),
    Mutant("arguments.py", "        or v.requires_grad\n", "", ARGUMENTS),
    Mutant("arguments.py", "        A_log.requires_grad\n        or", "", ARGUMENTS),
    Mutant("memory.py", "(size - 1) * stride", "size * stride", ARGUMENTS),
    Mutant("memory.py", "if first < end and first + span(y) > start:", "if True:", ARGUMENTS),
    Mutant("memory.py", "if first < end and", "if first <= end and", ARGUMENTS),
    Mutant("pool.py", "self._free.extend(reversed(taken))", "pass", ARGUMENTS),
    Mutant("pool.py", "_check_values.reset(token)", "_check_values.set(False)", ARGUMENTS + " " + REFUSALS),
    Mutant("pool.py", "row < tokens * self.state.stride()[0]", "row < self.state.stride()[0]", ARGUMENTS),
    Mutant("pool.py", 'self._check_memory("draft_inputs", draft_inputs)', "pass", ARGUMENTS),
    # ---- torch
    Mutant("backends/torch.py", "_live(indices, o))", "o)", DECODE),
    Mutant("backends/torch.py", "(q * scale).repeat_interleave", "q.repeat_interleave", DECODE),
    Mutant(
        "backends/torch.py",
        "CHUNK = 64",
        "CHUNK = 48",
        PREFILL,
        equivalent="any length of a chunk gives the same result",
    ),
    Mutant("backends/torch.py", ".clamp(min=MIN_LOG_DECAY)", "", PREFILL),
    Mutant(
        "backends/torch.py", "tril().bool(), difference, -torch.inf", "tril(-1).bool(), difference, -torch.inf", PREFILL
    ),
    Mutant("backends/torch.py", "o = torch.exp(G)[:, :, None] * (q @ S", "o = (q @ S", PREFILL),
    Mutant(
        "backends/torch.py",
        "if slot < 0:\n            out[tokens] = 0.0\n            continue\n",
        "if slot < 0:\n            continue\n",
        PREFILL,
    ),
    Mutant(
        "backends/torch.py",
        "state.intermediate[:, t] = S.transpose(-1, -2) if transpose else S",
        "state.intermediate[:, t] = S",
        VERIFY,
    ),
    Mutant("backends/torch.py", "    if update_state:\n", "    if True:\n", VERIFY),
    Mutant(
        "backends/torch.py",
        "slots = indices.clamp(min=0).long()",
        "slots = indices.abs().clamp(max=len(state) - 1).long()",
        DECODE,
    ),
    # ---- Triton, interpreted
    Mutant(
        "backends/triton/recurrent.py",
        "u = beta * (v_vec - g * Sk)",
        "u = beta * (v_vec - Sk)",
        TRITON_DECODE + " -k state_dtypes",
    ),
    Mutant("backends/triton/recurrent.py", "if slot < 0:", "if slot < -1:", TRITON_DECODE + " -k state_dtypes"),
    Mutant(
        "backends/triton/recurrent.py",
        "slot = tl.load(indices + row).to(tl.int64)",
        "slot = tl.load(indices + row)",
        TRITON_DECODE + " -k beyond",
    ),
    Mutant(
        "backends/triton/recurrent.py",
        "row * k_row + key_head * k_head",
        "row * q_row + key_head * q_head",
        TRITON_DECODE + " -k strides",
    ),
    Mutant(
        "backends/triton/recurrent.py",
        "tl.rsqrt(tl.sum(k_vec * k_vec) + EPS)",
        "tl.rsqrt(tl.sum(k_vec * k_vec))",
        TRITON_DECODE + " -k near_zero",
    ),
    Mutant(
        "backends/triton/recurrent.py",
        "q_next = tl.load(q_at + (t + 1) * q_token)",
        "q_next = tl.load(q_at + t * q_token)",
        TRITON_VERIFY + " -k test_tokens",
    ),
    Mutant(
        "backends/triton/prefill.py",
        "if first >= end:\n        return\n    if tl.load(indices",
        "if first > end:\n        return\n    if tl.load(indices",
        TRITON_PREFILL + " -k lengths",
        equivalent="a chunk of no tokens writes zeros to scratch of its own",
    ),
    Mutant(
        "backends/triton/prefill.py",
        "tl.where(cs[:, None] >= cs[None, :], G",
        "tl.where(cs[:, None] > cs[None, :], G",
        TRITON_PREFILL + " -k lengths",
    ),
    Mutant("backends/triton/prefill.py", "tl.maximum(log_g, MIN_LOG)", "log_g", TRITON_PREFILL + " -k limits"),
    Mutant(
        "backends/triton/prefill.py",
        "tl.exp(G_end - G) * (k_norm / key_size)",
        "tl.exp(G_end - G) / key_size",
        TRITON_PREFILL + " -k lengths",
    ),
    Mutant(
        "backends/triton/prefill.py", "zeros, mask=(first + cs < end)[None, :]", "zeros", TRITON_PREFILL + " -k padding"
    ),
]
