"""Rows of sampling parameters as plain Python, made into a batch, and what they mean, once more, in Python floats."""

import dataclasses
import math

import torch

from kernels import LogitEdits, SamplingTensors


@dataclasses.dataclass(frozen=True)
class Row:
    """One row's parameters. held: token to its count in the output, 0 if only the prompt has it. bias: -inf bans."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 5
    allowed: frozenset[int] | None = None
    bias: dict[int, float] = dataclasses.field(default_factory=dict)
    held: dict[int, int] = dataclasses.field(default_factory=dict)
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0


def batch(rows: list[Row], vocab_size: int) -> SamplingTensors:
    """The rows as the engine would hand them over: no edits where nobody asks."""

    def column(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype)

    has_edits = any(row.allowed is not None or row.bias or row.held for row in rows)
    return SamplingTensors(
        temperature=column("temperature"),
        top_k=column("top_k", torch.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        seeds=column("seed", torch.int64),
        positions=column("position", torch.int64),
        all_greedy=all(row.temperature == 0.0 for row in rows),
        edits=_edits(rows, vocab_size) if has_edits else None,
    )


def _edits(rows: list[Row], vocab_size: int) -> LogitEdits:
    """Masks and counts have a row for each that asks, in the rows' order, and at least one."""
    masks = [i for i, row in enumerate(rows) if row.allowed is not None]
    bits = torch.zeros(max(1, len(masks)), -(-vocab_size // 32) * 32, dtype=torch.int64)
    for place, i in enumerate(masks):
        bits[place, sorted(rows[i].allowed or ())] = 1
    words = (bits.view(len(bits), -1, 32) << torch.arange(32)).sum(-1)
    counted = [i for i, row in enumerate(rows) if row.held]
    counts = torch.zeros(max(1, len(counted)), vocab_size, dtype=torch.int32)
    for place, i in enumerate(counted):
        held = rows[i].held
        counts[place, list(held)] = 2 * torch.tensor(list(held.values()), dtype=torch.int32) + 1
    biases = [entry for row in rows for entry in row.bias.items()]
    starts = torch.tensor([0, *(len(row.bias) for row in rows)]).cumsum(0)

    def places(chosen: list[int]) -> torch.Tensor:
        column = torch.full((len(rows),), -1, dtype=torch.int32)
        column[chosen] = torch.arange(len(chosen), dtype=torch.int32)
        return column

    def prices(name: str) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=torch.float32)

    return LogitEdits(
        # Bit 31 is the sign.
        bitmask=torch.where(words >= 2**31, words - 2**32, words).to(torch.int32),
        mask_row=places(masks),
        bias_start=starts.to(torch.int32),
        bias_ids=torch.tensor([token for token, _ in biases] or [0], dtype=torch.int32),
        bias_values=torch.tensor([value for _, value in biases] or [0.0], dtype=torch.float32),
        counts=counts,
        count_slot=places(counted),
        repetition=prices("repetition"),
        frequency=prices("frequency"),
        presence=prices("presence"),
    )


def edited(logits: list[float], row: Row) -> list[float]:
    """The logits after allowed ids, bias and penalties, token by token."""
    result = []
    for token, logit in enumerate(logits):
        x = logit
        if row.allowed is not None and token not in row.allowed:
            x = -math.inf
        x += row.bias.get(token, 0.0)
        if token in row.held:
            x = x / row.repetition if x > 0 else x * row.repetition
            x -= row.held[token] * row.frequency
            if row.held[token] > 0:
                x -= row.presence
        result.append(x)
    return result


def probabilities(logits: list[float], row: Row) -> list[float]:
    """What each token is drawn with: edit, divide by the temperature, then min_p, top_k and top_p; no ties please."""
    values = edited(logits, row)
    peak = max(values)
    weights = [math.exp((x - peak) / row.temperature) for x in values]
    order = sorted((i for i, w in enumerate(weights) if w > 0), key=lambda i: -weights[i])
    kept = [i for i in order if weights[i] >= row.min_p]
    if row.top_k:
        kept = kept[: row.top_k]
    total, mass = sum(weights[i] for i in kept), 0.0
    for num, i in enumerate(kept):
        mass += weights[i]
        if mass >= row.top_p * total:
            kept = kept[: num + 1]
            break
    total = sum(weights[i] for i in kept)
    return [weights[i] / total if i in kept else 0.0 for i in range(len(weights))]
