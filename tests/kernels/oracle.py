"""What the operations mean, once more and independently, in float64 numpy-like torch. Tests compare with this."""

import torch
from torch import Tensor


def attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_table: Tensor,
    lens: list[tuple[int, int]],
    scale: float,
) -> Tensor:
    """Token by token, head by head: lens are (query_len, seq_len) pairs."""
    num_heads, num_kv_heads = query.shape[1], key_cache.shape[2]
    block_size = key_cache.shape[1]
    rows = []
    token = 0
    for s, (query_len, seq_len) in enumerate(lens):
        slots = [int(block_table[s, j // block_size]) * block_size + j % block_size for j in range(seq_len)]
        keys = key_cache.flatten(0, 1)[slots].double()
        values = value_cache.flatten(0, 1)[slots].double()
        for i in range(query_len):
            visible = seq_len - query_len + i + 1
            heads = []
            for h in range(num_heads):
                kv = h * num_kv_heads // num_heads
                scores = keys[:visible, kv] @ query[token, h].double() * scale
                heads.append(torch.softmax(scores, 0) @ values[:visible, kv])
            rows.append(torch.cat(heads))
            token += 1
    return torch.stack(rows)


def kept_tokens(logits: list[float], temperature: float, top_k: int, top_p: float) -> set[int]:
    """The support that top_k and then top_p leave, in Python floats; ties of the last kept token are kept."""
    peak = max(logits)
    scaled = [(x - peak) / temperature for x in logits]
    order = sorted(range(len(scaled)), key=lambda i: -scaled[i])
    kept = order
    if 0 < top_k < len(order):
        kept = [i for i in order if scaled[i] >= scaled[order[top_k - 1]]]
    if top_p < 1.0:
        weights = [float(torch.tensor(scaled[i], dtype=torch.float64).exp()) for i in kept]
        total, mass = sum(weights), 0.0
        for n, weight in enumerate(weights):
            mass += weight
            if mass >= top_p * total:
                kept = [i for i in kept if scaled[i] >= scaled[kept[n]]]
                break
    return set(kept)


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())
