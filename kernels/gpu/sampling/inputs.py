"""What the sampler reads, all of it on the device: one graph serves every mixture of greedy, plain and filtered rows.

Also the way from the engine's sparse `SamplingTensors` to these, by device operations alone. Must not know sequences.
"""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional

from kernels.interface import AllowedTokens, Penalties, SamplingTensors, TokenBias


@dataclasses.dataclass(frozen=True, slots=True)
class LogitEdits:
    """What changes logits before the choice; `reference.edit_logits` in a form of fixed shapes, all contiguous.

    bitmask: int32 [masks, ceil(vocab / 32)], bit t % 32 of word t // 32 set where token t is allowed; mask_row: int32
    [rows], the row of `bitmask`, -1 for none.
    bias_start: int32 [rows + 1]; entries [bias_start[r], bias_start[r + 1]) of bias_ids int32 [capacity] and
    bias_values float32 [capacity] are row r's, no token twice; -inf bans.
    counts: int32 [slots, vocab], 2 * how often the output holds the token + 1 if the prompt does; count_slot: int32
    [rows], the row of `counts`, -1 for none. repetition, frequency, presence: float32 [rows]; 1, 0 and 0 are none.
    """

    bitmask: Tensor
    mask_row: Tensor
    bias_start: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    counts: Tensor
    count_slot: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class SamplerInputs:
    """How each row is sampled, [rows] each; what the fields mean is `SamplingTensors`'s.

    temperature, top_p, min_p: float32; top_k: int32; seeds, positions: int64. edits: None where no row may have any,
    which is a launch of another, cheaper kernel; with it rows without edits cost next to nothing.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor
    edits: LogitEdits | None = None


def empty_inputs(num_rows: int, vocab: int, device: str | torch.device, *, with_edits: bool) -> SamplerInputs:
    """Uninitialised inputs of the right types, for compiling and for a graph's static buffers."""

    def column(dtype: torch.dtype, size: int = num_rows) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    edits = None
    if with_edits:
        edits = LogitEdits(
            bitmask=torch.empty(num_rows, -(-vocab // 32), dtype=torch.int32, device=device),
            mask_row=column(torch.int32),
            bias_start=column(torch.int32, num_rows + 1),
            bias_ids=column(torch.int32, 1024),
            bias_values=column(torch.float32, 1024),
            counts=torch.empty(num_rows, vocab, dtype=torch.int32, device=device),
            count_slot=column(torch.int32),
            repetition=column(torch.float32),
            frequency=column(torch.float32),
            presence=column(torch.float32),
        )
    return SamplerInputs(
        temperature=column(torch.float32),
        top_k=column(torch.int32),
        top_p=column(torch.float32),
        min_p=column(torch.float32),
        seeds=column(torch.int64),
        positions=column(torch.int64),
        edits=edits,
    )


def from_sampling_tensors(sampling: SamplingTensors, num_rows: int, vocab: int) -> SamplerInputs:
    """The same rows for the kernels. Never waits for the device; needs 4 * num_rows * vocab bytes for penalties.

    What the caller gathered may be strided; the kernels read each column as one run.
    """
    edits = None
    if sampling.allowed is not None or sampling.bias is not None or sampling.penalties is not None:
        device = sampling.temperature.device
        edits = LogitEdits(
            *_packed(sampling.allowed, num_rows, vocab, device),
            *_by_row(sampling.bias, num_rows, device),
            *_counted(sampling.penalties, num_rows, vocab, device),
        )
    return SamplerInputs(
        sampling.temperature.contiguous(),
        sampling.top_k.contiguous(),
        sampling.top_p.contiguous(),
        sampling.min_p.contiguous(),
        sampling.seeds.contiguous(),
        sampling.positions.contiguous(),
        edits,
    )


def _packed(allowed: AllowedTokens | None, num_rows: int, vocab: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(bitmask, mask_row)."""
    num_words = -(-vocab // 32)
    mask_row = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
    if allowed is None:
        return torch.empty(1, num_words, dtype=torch.int32, device=device), mask_row
    bits = functional.pad(allowed.mask, (0, num_words * 32 - vocab)).view(-1, num_words, 32)
    # Bit 31 is the sign: the sum wraps to it.
    shifted = bits.to(torch.int32) << torch.arange(32, dtype=torch.int32, device=device)
    order = torch.arange(len(allowed.rows), dtype=torch.int32, device=device)
    return shifted.sum(-1, dtype=torch.int32), mask_row.index_copy(0, allowed.rows, order)


def _starts(rows: Tensor, num_rows: int) -> Tensor:
    """int32 [num_rows + 1]: entries of ascending `rows` that belong to row r are [starts[r], starts[r + 1])."""
    return torch.searchsorted(rows.contiguous(), torch.arange(num_rows + 1, device=rows.device), out_int32=True)


def _by_row(bias: TokenBias | None, num_rows: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(bias_start, bias_ids, bias_values)."""
    if bias is None:
        return (
            torch.zeros(num_rows + 1, dtype=torch.int32, device=device),
            torch.empty(1, dtype=torch.int32, device=device),
            torch.empty(1, dtype=torch.float32, device=device),
        )
    return _starts(bias.rows, num_rows), bias.token_ids.to(torch.int32).contiguous(), bias.values.contiguous()


def _counted(
    held: Penalties | None, num_rows: int, vocab: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(counts, count_slot, repetition, frequency, presence); a row's slot is its own number."""
    if held is None:
        none = torch.full((num_rows,), -1, dtype=torch.int32, device=device)
        unused = torch.empty(num_rows, dtype=torch.float32, device=device)
        return torch.empty(1, vocab, dtype=torch.int32, device=device), none, unused, unused, unused
    counts = torch.zeros(num_rows, vocab, dtype=torch.int32, device=device)
    counts.index_put_((held.rows, held.token_ids), 2 * held.counts + 1)
    starts = _starts(held.rows, num_rows)
    order = torch.arange(num_rows, dtype=torch.int32, device=device)
    slots = order.masked_fill(starts[1:] == starts[:-1], -1)
    prices = (held.repetition.contiguous(), held.frequency.contiguous(), held.presence.contiguous())
    return counts, slots, *prices
