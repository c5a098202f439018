"""The kernel of decode_torch.py without its line about padding: see what the judge says.

    gdn-lab judge examples/wrong_padding.py

An index of -1 then means the pool's last slot, which may be another request's.
"""

import torch

from gdn_lab import variant


@variant("example/wrong-padding", layout="VK", state_dtypes=("bfloat16", "float32"), allocates=True)
def decode(q, k, v, a, b, *, A_log, dt_bias, state, indices, scale, use_qk_l2norm, out):
    """As decode_torch.py, but for the clamp."""
    slots = indices.long()  # WRONG: a padding row must change no slot that a request has
    S = state[slots].float()

    q, k, v = q.float(), k.float(), v.float()
    if use_qk_l2norm:
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6) for x in (q, k))
    q, k = (x.repeat_interleave(v.shape[1] // x.shape[1], dim=1) for x in (q * scale, k))
    g = torch.exp(-torch.exp(A_log) * torch.nn.functional.softplus(a.float() + dt_bias))
    beta = torch.sigmoid(b.float())

    S = g[..., None, None] * S
    u = beta[..., None] * (v - (S @ k[..., None])[..., 0])
    S = S + u[..., None] * k[..., None, :]
    state[slots] = S.to(state.dtype)
    out.copy_((S @ q[..., None])[..., 0])
