"""Rows of sampling parameters as plain Python, made into a batch, and what they mean, once more, in Python floats."""

import dataclasses
import math

import torch

from kernels import AllowedTokens, Penalties, SamplingTensors, TokenBias


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
    """The rows as the engine would hand them over: nothing that nobody asks for."""

    def column(name: str, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype)

    allowing = [(i, row.allowed) for i, row in enumerate(rows) if row.allowed is not None]
    biases = [(i, token, value) for i, row in enumerate(rows) for token, value in row.bias.items()]
    held = [(i, token, count) for i, row in enumerate(rows) for token, count in row.held.items()]
    allowed = bias = penalties = None
    if allowing:
        mask = torch.zeros(len(allowing), vocab_size, dtype=torch.bool)
        for i, (_, tokens) in enumerate(allowing):
            mask[i, sorted(tokens)] = True
        allowed = AllowedTokens(torch.tensor([i for i, _ in allowing]), mask)
    if biases:
        at, tokens, values = zip(*biases, strict=True)
        bias = TokenBias(torch.tensor(at), torch.tensor(tokens), torch.tensor(values, dtype=torch.float32))
    if held:
        at, tokens, counts = zip(*held, strict=True)
        penalties = Penalties(
            torch.tensor(at),
            torch.tensor(tokens),
            torch.tensor(counts, dtype=torch.int32),
            *(column(name) for name in ("repetition", "frequency", "presence")),
        )
    return SamplingTensors(
        temperature=column("temperature"),
        top_k=column("top_k", torch.int32),
        top_p=column("top_p"),
        min_p=column("min_p"),
        seeds=column("seed", torch.int64),
        positions=column("position", torch.int64),
        all_greedy=all(row.temperature == 0.0 for row in rows),
        allowed=allowed,
        bias=bias,
        penalties=penalties,
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
