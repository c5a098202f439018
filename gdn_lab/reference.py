"""The float64 reference: the gated delta rule on the CPU, one token after the other. It defines what is correct.

Per row and value head, with state S [V, K] and the query/key head hv // (HV // HK):

    g = exp(-exp(A_log) * softplus(a + dt_bias));  beta = sigmoid(b)
    q = q / sqrt(sum(q²) + 1e-6) * scale;          k = k / sqrt(sum(k²) + 1e-6)
    S = g S;  u = beta (v - S k);  S = S + u kᵀ;   o = S q

(Yang, Kautz, Hatamizadeh: Gated Delta Networks, 2024; gates and norms as Qwen3-Next and Qwen3.5 compute them.)

The functions are pure: (inputs, state) -> (o, new_state), state [n, HV, V, K], everything float64 on the CPU.
`prefill_chunked` computes what `prefill` does a chunk at a time; the two check each other.
"""

import torch
from torch import Tensor

NORM_EPS = 1e-6
SOFTPLUS_THRESHOLD = 20.0


def decode(q, k, v, a, b, *, A_log, dt_bias, state, scale=None, use_qk_l2norm=True, device="cpu"):
    """Take one token for each row.

    q, k [B, HK, K]; v [B, HV, V]; a, b [B, HV]; A_log, dt_bias [HV]; state [B, HV, V, K]. device: where it is computed.
    Returns o [B, HV, V] and the new state [B, HV, V, K].
    """
    tokens = (x.unsqueeze(1) for x in (q, k, v, a, b))
    options = {"scale": scale, "use_qk_l2norm": use_qk_l2norm, "device": device}
    o, states = _trajectory(*tokens, A_log, dt_bias, state, **options)
    return o[:, 0], states[:, 0]


def verify(q, k, v, a, b, *, A_log, dt_bias, state, scale=None, use_qk_l2norm=True):
    """Take T draft tokens for each row: q, k [B, T, HK, K]; v [B, T, HV, V]; a, b [B, T, HV]; state [B, HV, V, K].

    Returns o [B, T, HV, V] and the state after each token [B, T, HV, V, K]: accepting n tokens keeps states[:, n - 1].
    """
    return _trajectory(q, k, v, a, b, A_log, dt_bias, state, scale=scale, use_qk_l2norm=use_qk_l2norm)


def prefill(q, k, v, a, b, *, A_log, dt_bias, state, cu_seqlens, scale=None, use_qk_l2norm=True):
    """Take packed sequences: q, k [tokens, HK, K]; v [tokens, HV, V]; a, b [tokens, HV]; sequence n holds the tokens
    cu_seqlens[n] to cu_seqlens[n + 1] and starts from state[n] of state [n, HV, V, K]; a sequence may be empty.

    Returns o [tokens, HV, V] and the final state of each sequence [n, HV, V, K].
    """
    return _each_sequence(_recurrent, q, k, v, a, b, A_log, dt_bias, state, cu_seqlens, scale, use_qk_l2norm)


def prefill_chunked(q, k, v, a, b, *, A_log, dt_bias, state, cu_seqlens, scale=None, use_qk_l2norm=True, chunk=64):
    """Compute `prefill` by `chunk` tokens at a time, the form that chunk kernels use."""

    def run(*arguments):
        return _chunked(*arguments, chunk=chunk)

    return _each_sequence(run, q, k, v, a, b, A_log, dt_bias, state, cu_seqlens, scale, use_qk_l2norm)


def log_decay(a, A_log, dt_bias, device="cpu"):
    """Return log g = -exp(A_log) * softplus(a + dt_bias), softplus(x) = x above 20. Any shape [..., HV]; float64."""
    x = _double(a, device) + _double(dt_bias, device)
    return -torch.exp(_double(A_log, device)) * torch.nn.functional.softplus(x, threshold=SOFTPLUS_THRESHOLD)


def _double(x: Tensor, device="cpu") -> Tensor:
    return x.detach().to(device, torch.float64)


def prepared(q, k, v, a, b, A_log, dt_bias, scale=None, use_qk_l2norm=True, device="cpu"):
    """Return float64 q, k, v, log g, beta: q and k normalised, scaled, and repeated to one head for each value head.

    device: where they are computed; a GPU's float64 is as exact, and faster over thousands of steps.
    """
    q, k, v, b = (_double(x, device) for x in (q, k, v, b))
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    if use_qk_l2norm:
        q, k = (x / torch.sqrt((x * x).sum(-1, keepdim=True) + NORM_EPS) for x in (q, k))
    group = v.shape[-2] // q.shape[-2]
    q, k = (x.repeat_interleave(group, dim=-2) for x in (q * scale, k))
    return q, k, v, log_decay(a, A_log, dt_bias, device), torch.sigmoid(b)


def _trajectory(q, k, v, a, b, A_log, dt_bias, state, *, scale, use_qk_l2norm, device="cpu"):
    """Run token by token with a T axis: return o [B, T, HV, V] and the state after each token [B, T, HV, V, K]."""
    q, k, v, log_g, beta = prepared(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm, device)
    S = _double(state, device)
    outputs, states = [], []
    for t in range(q.shape[1]):
        S = torch.exp(log_g[:, t])[..., None, None] * S
        u = beta[:, t, :, None] * (v[:, t] - torch.einsum("bhvk,bhk->bhv", S, k[:, t]))
        S = S + u[..., None] * k[:, t, :, None, :]
        outputs.append(torch.einsum("bhvk,bhk->bhv", S, q[:, t]))
        states.append(S)
    return torch.stack(outputs, 1), torch.stack(states, 1)


def _each_sequence(run, q, k, v, a, b, A_log, dt_bias, state, cu_seqlens, scale, use_qk_l2norm):
    q, k, v, log_g, beta = prepared(q, k, v, a, b, A_log, dt_bias, scale, use_qk_l2norm)
    final = _double(state).clone()
    o = torch.zeros_like(v)
    bounds = cu_seqlens.tolist()
    for n, (start, end) in enumerate(zip(bounds, bounds[1:], strict=False)):
        if end > start:
            part = slice(start, end)
            o[part], final[n] = run(q[part], k[part], v[part], log_g[part], beta[part], final[n])
    return o, final


def _recurrent(q, k, v, log_g, beta, S):
    """Run one prepared sequence token by token: q, k [T, HV, K]; v [T, HV, V]; log_g, beta [T, HV]; S [HV, V, K]."""
    outputs = []
    for t in range(q.shape[0]):
        S = torch.exp(log_g[t])[:, None, None] * S
        u = beta[t, :, None] * (v[t] - torch.einsum("hvk,hk->hv", S, k[t]))
        S = S + u[..., None] * k[t, :, None, :]
        outputs.append(torch.einsum("hvk,hk->hv", S, q[t]))
    return torch.stack(outputs), S


def _chunked(q, k, v, log_g, beta, S, *, chunk):
    """Run one sequence by chunks. With G_i the sum of log g up to token i of the chunk and S_0 the state before it:

        u_i = beta_i (v_i - e^{G_i} S_0 k_i - sum_{j<i} e^{G_i - G_j} (k_j . k_i) u_j)      a triangular system
        o_i = e^{G_i} S_0 q_i + sum_{j<=i} e^{G_i - G_j} (k_j . q_i) u_j
        S   = e^{G_C} S_0 + sum_j e^{G_C - G_j} u_j k_j^T

    Only differences G_i - G_j with j <= i are exponentiated, all <= 0: strong decay underflows and never overflows.
    """
    outputs = []
    for start in range(0, q.shape[0], chunk):
        # [HV, C, ...] for this chunk
        qc, kc, vc = (x[start : start + chunk].transpose(0, 1) for x in (q, k, v))
        G = log_g[start : start + chunk].cumsum(0).T
        bc = beta[start : start + chunk].T
        C = G.shape[1]
        lower = torch.ones(C, C, dtype=torch.bool).tril()
        decay = torch.exp((G[:, :, None] - G[:, None, :]).masked_fill(~lower, float("-inf")))  # [HV, i, j]
        system = torch.eye(C, dtype=torch.float64) + (bc[:, :, None] * decay * (kc @ kc.transpose(1, 2))).tril(-1)
        from_state = torch.exp(G)[..., None] * (kc @ S.transpose(1, 2))
        u = torch.linalg.solve_triangular(system, bc[..., None] * (vc - from_state), upper=False, unitriangular=True)
        outputs.append(torch.exp(G)[..., None] * (qc @ S.transpose(1, 2)) + (decay * (qc @ kc.transpose(1, 2))) @ u)
        to_end = torch.exp(G[:, -1:] - G)[..., None]
        S = torch.exp(G[:, -1])[:, None, None] * S + (to_end * u).transpose(1, 2) @ kc
    return torch.cat(outputs, 1).transpose(0, 1), S
