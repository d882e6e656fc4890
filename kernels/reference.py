"""Every operation once, in eager torch: specification, oracle of the tests, baseline of the benchmarks.

Written to be read, not to be fast: float32 throughout, one sequence after the other. `ReferenceKernels` also is a
complete `Kernels`, slow but right on any device. Must not know sequences, requests or the engine.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.interface import (
    HAS_COUNTS,
    HAS_MASK,
    AttentionForm,
    AttentionHeads,
    AttentionMetadata,
    Logprobs,
    PackedLinear,
    RotateAndStore,
    RowState,
    SamplingColumn,
    SamplingTensors,
    StepInputs,
    StepTables,
)

_MASK_32 = 0xFFFFFFFF


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """X [T, in] times weight [out, in] transposed, plus bias [out]; float32 accumulation, rounded once to x's dtype."""
    y = x.float() @ weight.float().T
    return (y if bias is None else y + bias.float()).to(x.dtype)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """X / sqrt(mean(x^2) + eps) * weight over the last dimension (Zhang and Sennrich 2019), float32 inside."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual form: `total = x + residual` rounded to the dtype, and rms_norm(total); returns (norm, total)."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def rope_tables(positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), both float32 [T, D / 2], for positions [T] and inv_freq [D / 2]; `scale` multiplies both."""
    angles = positions.float()[:, None] * inv_freq.float()
    return angles.cos() * scale, angles.sin() * scale


def apply_rope(heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding (Su et al. 2021) in the half-rotation form of GPT-NeoX, Llama and Qwen; heads [T, heads, D].

    tables: [T, R / 2]. Dimension i < R/2 and dimension i + R/2 are the two coordinates that angle i turns; those from R
    on stay as they are.
    """
    cos, sin = (table[:, None] for table in tables)
    half = cos.shape[-1]
    first, second, rest = heads.float().tensor_split((half, 2 * half), -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1).to(heads.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """silu(gate) * up of SwiGLU (Shazeer 2020) for gate_up [T, 2 * width]: gate first, up second."""
    gate, up = gate_up.float().chunk(2, -1)
    return (gate * torch.sigmoid(gate) * up).to(gate_up.dtype)


def gelu_and_mul(gate_up: Tensor) -> Tensor:
    """gelu(gate) * up (GEGLU, Shazeer 2020) in the tanh form (Hendrycks and Gimpel 2016), as `silu_and_mul`."""
    gate, up = gate_up.float().chunk(2, -1)
    return (torch.nn.functional.gelu(gate, approximate="tanh") * up).to(gate_up.dtype)


def to_cache(x: Tensor, dtype: torch.dtype, scale: float) -> Tensor:
    """X as a cache of `dtype` holds it: e4m3 caches hold x / scale, saturating at 448."""
    if dtype != torch.float8_e4m3fn:
        return x.to(dtype)
    return (x.float() / scale).clamp(-448.0, 448.0).to(dtype)


def store_kv(key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor) -> None:
    """Write token t's key and value [T, Hkv, D] to slot `slot_mapping[t]` = block * block_size + offset.

    The caches are [blocks, block_size, Hkv, D] and contiguous. A slot of -1 is padding and writes nothing. No slot
    occurs twice, except in the null block, whose content means nothing.
    """
    for new, cache in ((key, key_cache), (value, value_cache)):
        # Bytes, because torch cannot index an e4m3 tensor on every device.
        flat = cache.view(torch.uint8).view(-1, *cache.shape[2:-1], cache.shape[-1] * cache.element_size())
        used = slot_mapping >= 0
        flat[slot_mapping[used]] = new[used].contiguous().view(torch.uint8)


def rotate_and_store(
    heads: AttentionHeads,
    qkv: Tensor,
    tables: tuple[Tensor, Tensor],
    cache: tuple[Tensor, Tensor],
    slot_mapping: Tensor,
) -> Tensor:
    """`rms_norm` per query and key head where it has a weight, `apply_rope` on both, `store_kv`.

    qkv: [T, (H + 2 * Hkv) * D]; returns the queries [T, H, D].
    """
    every = qkv.view(qkv.shape[0], -1, heads.head_dim)
    key_at, value_at = heads.num_heads, heads.num_heads + heads.num_kv_heads
    query, key, value = every[:, :key_at], every[:, key_at:value_at], every[:, value_at:]
    if heads.query_norm is not None:
        query = rms_norm(query, heads.query_norm, heads.eps)
    if heads.key_norm is not None:
        key = rms_norm(key, heads.key_norm, heads.eps)
    key = to_cache(apply_rope(key, tables), cache[0].dtype, heads.key_scale)
    store_kv(key, to_cache(value, cache[1].dtype, heads.value_scale), *cache, slot_mapping)
    return apply_rope(query, tables)


def paged_attention(
    query: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    metadata: AttentionMetadata,
    form: AttentionForm,
) -> Tensor:
    """softmax(scale * q k^T + causal mask) v for each sequence of a ragged batch, K and V read through its block table.

    query: [T, H, D]; caches: [blocks, block_size, Hkv, D] and hold this step's K/V already. Query head h reads
    key/value head h // (H / Hkv). The query tokens of a sequence are its last ones: query i of n sees the first
    seq_len - n + i + 1 keys. float32 inside; returns [T, H * D] in query's dtype. `form` says what else is done to the
    scores: cap, then mask by window, then one more column for the sink, which takes weight and gives no value.
    """
    num_tokens, num_heads, head_dim = query.shape
    block_size, num_kv_heads = key_cache.shape[1:3]
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=query.dtype, device=query.device)
    starts = metadata.query_start_loc.tolist()
    for s, seq_len in enumerate(metadata.seq_lens.tolist()):
        start, end = starts[s], starts[s + 1]
        blocks = metadata.block_table[s, : -(-seq_len // block_size)].long()
        keys = _cached(key_cache, blocks, seq_len, form.key_scale).repeat_interleave(num_heads // num_kv_heads, 1)
        values = _cached(value_cache, blocks, seq_len, form.value_scale).repeat_interleave(num_heads // num_kv_heads, 1)
        scores = torch.einsum("qhd,khd->hqk", query[start:end].float(), keys) * form.scale
        if form.soft_cap:
            scores = form.soft_cap * torch.tanh(scores / form.soft_cap)
        last_key = torch.arange(seq_len - (end - start), seq_len, device=query.device)[:, None]
        key = torch.arange(seq_len, device=query.device)
        hidden = key > last_key
        if form.window:
            hidden |= key <= last_key - form.window
        scores = scores.masked_fill(hidden, float("-inf"))
        if form.sinks is not None:
            sinks = form.sinks.float()[:, None, None].expand(-1, end - start, 1)
            scores = torch.cat((scores, sinks), -1)
        weights = scores.softmax(-1)[..., :seq_len]
        out[start:end] = torch.einsum("hqk,khd->qhd", weights, values).flatten(1).to(query.dtype)
    return out


def _cached(cache: Tensor, blocks: Tensor, seq_len: int, scale: float) -> Tensor:
    """The first seq_len tokens of these blocks, float32 [seq_len, Hkv, D]."""
    chosen = cache.view(torch.uint8)[blocks].view(cache.dtype) if cache.element_size() == 1 else cache[blocks]
    return chosen.flatten(0, 1)[:seq_len].float() * scale


def fmix32(h: Tensor) -> Tensor:
    """The finaliser of MurmurHash3 on int64 tensors that hold unsigned 32-bit words.

    h ^= h >> 16; h *= 0x85EBCA6B; h ^= h >> 13; h *= 0xC2B2AE35; h ^= h >> 16, all modulo 2^32.
    Source: Appleby, MurmurHash3.cpp (public domain).
    """
    h = ((h ^ (h >> 16)) * 0x85EBCA6B) & _MASK_32
    h = ((h ^ (h >> 13)) * 0xC2B2AE35) & _MASK_32
    return h ^ (h >> 16)


def row_keys(seeds: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
    """Two 32-bit words (in int64) per row from its seed and the position of the new token.

    a = fmix32(seed_low + 0x9E3779B9); a = fmix32(a ^ seed_high); k1 = fmix32(a ^ position_low);
    k2 = fmix32((k1 + 0x9E3779B9) ^ position_high), sums modulo 2^32.
    """
    a = fmix32(((seeds & _MASK_32) + 0x9E3779B9) & _MASK_32)
    a = fmix32(a ^ ((seeds >> 32) & _MASK_32))
    k1 = fmix32(a ^ (positions & _MASK_32))
    k2 = fmix32(((k1 + 0x9E3779B9) & _MASK_32) ^ ((positions >> 32) & _MASK_32))
    return k1, k2


def gumbel_noise(seeds: Tensor, positions: Tensor, vocab_size: int) -> Tensor:
    """Standard Gumbel noise, float32 [rows, vocab_size], a pure function of (seed, position, token id).

    h = fmix32(token ^ k1) + k2 modulo 2^32 with (k1, k2) of `row_keys`; v = (h + 0.5) * 2^-32 in float32, at most
    1 - 2^-24; noise = -log(-log1p(-v)). -log1p(-v) is exponential, and exact where it is small: at the maximum.
    """
    k1, k2 = row_keys(seeds, positions)
    tokens = torch.arange(vocab_size, dtype=torch.int64, device=seeds.device)
    h = (fmix32(tokens ^ k1[:, None]) + k2[:, None]) & _MASK_32
    v = ((h.to(torch.float32) + 0.5) * 2.0**-32).clamp_(max=1.0 - 2.0**-24)
    return -torch.log(-torch.log1p(-v))


def edit_logits(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """A float32 copy of logits [rows, vocab] after everything that also changes a greedy choice, in vLLM's order.

    Tokens that are not allowed become -inf; biases are added, a ban being a bias of -inf; then each token x that the
    sequence holds already pays: x / repetition where x > 0, else x * repetition (Keskar et al. 2019), less frequency
    times its count in the output, less presence if that count is not 0. The caller leaves every row a token above -inf.
    """
    wide = logits.to(torch.float32, copy=True)
    edits = sampling.edits
    if edits is None:
        return wide
    starts = edits.bias_start.tolist()
    bits = torch.arange(32, dtype=torch.int32, device=logits.device)
    for r, (mask, slot) in enumerate(zip(edits.mask_row.tolist(), edits.count_slot.tolist(), strict=True)):
        row = wide[r]
        if mask >= 0:
            is_allowed = (edits.bitmask[mask][:, None] >> bits).bitwise_and(1).flatten()[: len(row)] != 0
            row.masked_fill_(~is_allowed, float("-inf"))
        biased = slice(starts[r], starts[r + 1])
        row[edits.bias_ids[biased].long()] += edits.bias_values[biased]
        if slot >= 0:
            in_output = edits.counts[slot] >> 1
            y = torch.where(row > 0, row / edits.repetition[r], row * edits.repetition[r])
            y = y - in_output * edits.frequency[r]
            y = y - (in_output > 0) * edits.presence[r]
            row.copy_(torch.where(edits.counts[slot] > 0, y, row))
    return wide


def truncation_threshold(scaled: Tensor, top_k: int, top_p: float, min_p: float) -> Tensor:
    """The least value of `scaled` (one row of (logits - max) / T, float32) that min_p, top_k and then top_p keep.

    min_p keeps the tokens whose probability is at least min_p times the largest, so whose scaled value is at least
    log(min_p); top_k the k largest. top_p then keeps the smallest prefix, in descending order, of the softmax over what
    those kept whose mass reaches top_p, and at least one token. Tokens that tie with the last kept one stay too, so
    that the answer does not depend on how a sort orders equals.
    """
    ordered = scaled.sort(descending=True).values
    if min_p > 0.0:
        ordered = ordered[ordered >= math.log(min_p)]
    if 0 < top_k < len(ordered):
        ordered = ordered[ordered >= ordered[top_k - 1]]
    if top_p >= 1.0:
        return ordered[-1]
    mass = ordered.softmax(-1, dtype=torch.float64).cumsum(-1)
    num_kept = int((mass < top_p).sum()) + 1
    return ordered[min(num_kept, len(ordered)) - 1]


def sample(logits: Tensor, sampling: SamplingTensors) -> Tensor:
    """One token id per row of logits [rows, vocab]; int64 [rows]. Ties go to the lowest id.

    The logits are first changed by `edit_logits`. A row of temperature 0 takes its argmax. Any other row takes the
    argmax of (logits - max) / T + Gumbel noise over the tokens that min_p, top_k and top_p keep, which draws from their
    softmax (Gumbel 1954; "Gumbel-max trick"). Subtracting the row's maximum changes no probability and keeps the
    quotient finite at the least temperatures. The noise is keyed by (seed, position, token id): a row's token depends
    on nothing else in the batch.
    """
    wide = edit_logits(logits, sampling)
    tokens = wide.argmax(-1)
    if sampling.all_greedy:
        return tokens
    for row, temperature in enumerate(sampling.temperature.tolist()):
        if temperature == 0.0:
            continue
        scaled = (wide[row] - wide[row].max()) / temperature
        threshold = truncation_threshold(
            scaled, int(sampling.top_k[row]), float(sampling.top_p[row]), float(sampling.min_p[row])
        )
        noise = gumbel_noise(sampling.seeds[row : row + 1], sampling.positions[row : row + 1], wide.shape[1])[0]
        tokens[row] = (scaled + noise).masked_fill(scaled < threshold, float("-inf")).argmax()
    return tokens


def logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
    """log_softmax in float32 of the logits as the model gave them: of each row's own token, and of its best ones.

    token_ids: int64 [rows]. The rank of a token is 1 + the number of tokens with a greater logit. A vocabulary of fewer
    than `num_top` tokens gives them all.
    """
    wide = logits.float()
    logs = wide.log_softmax(-1)
    own = token_ids[:, None]
    top_ids = wide.sort(dim=-1, descending=True, stable=True).indices[:, :num_top]
    return Logprobs(
        chosen=logs.gather(1, own)[:, 0],
        ranks=(wide > wide.gather(1, own)).sum(-1) + 1,
        top_ids=top_ids,
        top=logs.gather(1, top_ids),
    )


def expand_step(tables: StepTables, state: RowState, block_size: int, max_blocks: int, out: StepInputs) -> None:
    """What a step's tables and the rows of its sequences say, written out per token, sequence and sampled row.

    Sequence i has the tokens from query_start_loc[i] to query_start_loc[i + 1], the last ones of seq_lens[i]; a
    token's slot is that of its position in its row's blocks. Only the entries of blocks that hold keys are written to
    `out.block_table`, at most `max_blocks` of a sequence.
    """
    starts, places = tables.query_start_loc.tolist(), tables.sample_places.tolist()
    for i, (row, seq_len) in enumerate(zip(tables.rows.tolist(), tables.seq_lens.tolist(), strict=True)):
        tokens = slice(starts[i], starts[i + 1])
        blocks = state.block_table[row].long()
        if seq_len == 0:
            out.input_ids[tokens], out.positions[tokens], out.slot_mapping[tokens] = 0, 0, -1
        else:
            token_ids = tables.token_ids[tokens]
            positions = torch.arange(seq_len - len(token_ids), seq_len, device=token_ids.device)
            out.input_ids[tokens] = torch.where(token_ids == -1, state.last_tokens[row], token_ids).long()
            out.positions[tokens] = positions
            out.slot_mapping[tokens] = blocks[positions // block_size] * block_size + positions % block_size
        num_blocks = min(-(-seq_len // block_size), max_blocks)
        out.block_table[i, :num_blocks] = state.block_table[row, :num_blocks]
        if places[i] >= 0:
            out.logits_indices[places[i]] = starts[i + 1] - 1
            out.sample_positions[places[i]] = seq_len
            _expand_sampling(state.sampling[row], row, places[i], out)


def _expand_sampling(columns: Tensor, row: int, place: int, out: StepInputs) -> None:
    """The parameters of one row, int32 [10], as those of the sampled row `place`."""
    floats = columns.view(torch.float32)
    out.sample_rows[place] = row
    out.temperature[place] = floats[SamplingColumn.TEMPERATURE]
    out.top_p[place] = floats[SamplingColumn.TOP_P]
    out.min_p[place] = floats[SamplingColumn.MIN_P]
    out.top_k[place] = columns[SamplingColumn.TOP_K]
    low, high = columns[SamplingColumn.SEED : SamplingColumn.SEED + 2].tolist()
    out.seeds[place] = high * 2**32 + (low & _MASK_32)
    out.repetition[place] = floats[SamplingColumn.REPETITION]
    out.frequency[place] = floats[SamplingColumn.FREQUENCY]
    out.presence[place] = floats[SamplingColumn.PRESENCE]
    flags = int(columns[SamplingColumn.FLAGS])
    out.mask_row[place] = row if flags & HAS_MASK else -1
    out.count_slot[place] = row if flags & HAS_COUNTS else -1


def write_words(words: Tensor, places: Tensor, values: Tensor) -> None:
    """words[places[i]] = values[i], for int32 words [n], places [m], and values [m] of any integer type."""
    words[places.long()] = values.to(words.dtype)


def count_tokens(counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """One more of token_ids[i] in the output of slots[i], unless that is -1; see `LogitEdits.counts`."""
    for slot, token in zip(slots.tolist(), token_ids.tolist(), strict=True):
        if slot >= 0:
            counts[slot, token] += 2


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Tensors as one, along their first dimension."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


@dataclasses.dataclass(frozen=True, slots=True)
class _PlainLinear:
    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class ReferenceKernels:
    """`Kernels` made of the definitions above; its caches are [blocks, block_size, Hkv, D]."""

    rms_norm = staticmethod(rms_norm)
    add_rms_norm = staticmethod(add_rms_norm)
    rope_tables = staticmethod(rope_tables)
    silu_and_mul = staticmethod(silu_and_mul)
    gelu_and_mul = staticmethod(gelu_and_mul)
    sample = staticmethod(sample)
    logprobs = staticmethod(logprobs)
    expand_step = staticmethod(expand_step)
    write_words = staticmethod(write_words)
    count_tokens = staticmethod(count_tokens)

    def pack_linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, is_head: bool = False) -> PackedLinear:
        """The weights as they are."""
        return _PlainLinear(joined(weights), bias)

    def pack_heads(self, heads: AttentionHeads) -> RotateAndStore:
        """See `rotate_and_store`."""
        return functools.partial(rotate_and_store, heads)

    def kv_cache_shapes(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """[blocks, block_size, Hkv, D], both."""
        shape = (num_blocks, block_size, num_kv_heads, head_dim)
        return shape, shape

    def plan_attention(self, metadata: AttentionMetadata) -> object:
        """The metadata is all that the definition needs."""
        return metadata

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, form: AttentionForm
    ) -> Tensor:
        """See `paged_attention`."""
        if not isinstance(plan, AttentionMetadata):
            raise TypeError("the plan was not made by plan_attention")
        return paged_attention(query, key_cache, value_cache, plan, form)
