"""Changes of logits in registers: grammar masks, biases, penalties; and the counts that the penalties read.

`edit_chunk` is called by the chunk pass (chunks.py). Must not know how a token is chosen.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def masked(x, bitmask_ptr, mask_row, num_words, tokens, inside):
    """-inf where the row's bit is not set; mask_row is not -1."""
    words = tl.load(bitmask_ptr + mask_row.to(tl.int64) * num_words + tokens // 32, mask=inside, other=0)
    return tl.where(((words >> (tokens % 32)) & 1) != 0, x, float("-inf"))


@triton.jit
def penalised(x, counts_ptr, slot, vocab, tokens, inside, repetition, frequency, presence):
    """What tokens that the sequence holds already pay; slot is not -1."""
    counts = tl.load(counts_ptr + slot.to(tl.int64) * vocab + tokens, mask=inside, other=0)
    in_output = counts >> 1
    y = tl.where(x > 0.0, x / repetition, x * repetition)
    y -= in_output.to(tl.float32) * frequency
    y -= tl.where(in_output > 0, presence, 0.0)
    return tl.where(counts > 0, y, x)


@triton.jit
def edit_chunk(
    x, tokens, inside, row, first_token, num_tokens, row_ptr, edited_ptr, vocab, edits, must_store, BLOCK: tl.constexpr
):
    """(the edited tile, whether the row has edits): `reference.edit_logits` on `num_tokens` tokens from `first_token`.

    The edited tile is also written to edited_ptr, the row's float32 copy, where something reads it: `must_store`, or
    biases, which are few and anywhere. Those are worked out from the raw logits, each by one thread, over what the
    whole tile has written, and the tile is read again; no token is another chunk's. edits: the fields of `LogitEdits`.
    """
    bitmask_ptr, bias_ids_ptr, bias_values_ptr, counts_ptr = edits[0], edits[3], edits[4], edits[5]
    num_words = (vocab + 31) // 32
    mask_row = tl.load(edits[1] + row)
    first = tl.load(edits[2] + row)
    last = tl.load(edits[2] + row + 1)
    slot = tl.load(edits[6] + row)
    repetition = tl.load(edits[7] + row)
    frequency = tl.load(edits[8] + row)
    presence = tl.load(edits[9] + row)
    if mask_row >= 0:
        x = masked(x, bitmask_ptr, mask_row, num_words, tokens, inside)
    if slot >= 0:
        x = penalised(x, counts_ptr, slot, vocab, tokens, inside, repetition, frequency, presence)
    has_bias = last > first
    has_edits = (mask_row >= 0) | (slot >= 0) | has_bias
    if has_bias | (has_edits & must_store):
        tl.store(edited_ptr + tokens, x, mask=inside)
    if has_bias:
        tl.debug_barrier()
        for start in range(first, last, BLOCK):
            i = start + tl.arange(0, BLOCK)
            ids = tl.load(bias_ids_ptr + i, mask=i < last, other=-1)
            mine = (ids >= first_token) & (ids < first_token + num_tokens)
            y = tl.load(row_ptr + ids, mask=mine, other=0.0).to(tl.float32)
            if mask_row >= 0:
                y = masked(y, bitmask_ptr, mask_row, num_words, ids, mine)
            y += tl.load(bias_values_ptr + i, mask=mine, other=0.0)
            if slot >= 0:
                y = penalised(y, counts_ptr, slot, vocab, ids, mine, repetition, frequency, presence)
            tl.store(edited_ptr + ids, y, mask=mine)
        tl.debug_barrier()
        x = tl.load(edited_ptr + tokens, mask=inside, other=float("-inf"))
    return x, has_edits


@triton.jit(do_not_specialize=["num_rows"])
def _count_tokens(counts_ptr, slots_ptr, token_ids_ptr, num_rows, vocab, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    slots = tl.load(slots_ptr + i, mask=i < num_rows, other=-1).to(tl.int64)
    held = slots >= 0
    at = counts_ptr + slots * vocab + tl.load(token_ids_ptr + i, mask=held, other=0)
    tl.store(at, tl.load(at, mask=held, other=0) + 2, mask=held)


def count_tokens(counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
    """See `reference.count_tokens`: counts int32 [slots, vocab], contiguous; one launch.

    slots: int32 [rows], none twice, -1 for rows that count nothing; token_ids: int64 [rows].
    """
    num_rows = len(slots)
    if num_rows:
        _count_tokens[(triton.cdiv(num_rows, 128),)](
            counts, slots.contiguous(), token_ids.contiguous(), num_rows, counts.shape[1], BLOCK=128, num_warps=4
        )
