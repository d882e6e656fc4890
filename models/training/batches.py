"""Batches of constant size: conversations sorted into rows of a few lengths, with the labels of the answers only."""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from models.training.chat import Conversation, render

LENGTHS = [48, 64, 80, 96, 128, 160, 192, 224, 256, 288, 320, 384, 448, 512, 640, 768]
TOKENS_PER_STEP = 4096
NO_LABEL = -1


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and for each whether it is to be predicted."""

    ids: list[int]
    trained: list[bool]


@dataclass(frozen=True)
class Batch:
    """Rows of `length` tokens: tokens and labels are `[TOKENS_PER_STEP]`.

    A label is the next token, or NO_LABEL where nothing is learned.
    """

    length: int
    tokens: Tensor
    labels: Tensor
    num_rows: int
    num_tokens: int


def encode(tokenizer: Tokenizer, conversations: Iterable[Conversation]) -> list[Example]:
    """Encodes piece by piece; no token spans two pieces, since each ends or begins with a chat mark or a line end."""
    rendered = [render(conversation) for conversation in conversations]
    encodings = tokenizer.encode_batch([text for pieces in rendered for text, _ in pieces], add_special_tokens=False)
    examples, place = [], 0
    for pieces in rendered:
        ids: list[int] = []
        trained: list[bool] = []
        for _, is_trained in pieces:
            ids += encodings[place].ids
            trained += [is_trained] * len(encodings[place].ids)
            place += 1
        examples.append(Example(ids, trained))
    return examples


def make_batches(examples: list[Example]) -> Iterator[Batch]:
    """Every example once, except those longer than the longest row. Trailing batches may have empty rows."""
    by_length: dict[int, list[Example]] = {}
    for example in examples:
        length = next((length for length in LENGTHS if len(example.ids) - 1 <= length), None)
        if length is not None:
            by_length.setdefault(length, []).append(example)
    for length, group in by_length.items():
        num_rows = TOKENS_PER_STEP // length
        for start in range(0, len(group), num_rows):
            yield _batch(group[start : start + num_rows], length)


def _batch(examples: list[Example], length: int) -> Batch:
    tokens = torch.zeros(TOKENS_PER_STEP, dtype=torch.long)
    labels = torch.full((TOKENS_PER_STEP,), NO_LABEL, dtype=torch.long)
    for row, example in enumerate(examples):
        ids, used = torch.tensor(example.ids), slice(row * length, row * length + len(example.ids) - 1)
        tokens[used] = ids[:-1]
        labels[used] = torch.where(torch.tensor(example.trained[1:]), ids[1:], NO_LABEL)
    return Batch(length, tokens, labels, len(examples), sum(len(example.ids) for example in examples))


def shuffled_full_batches(examples: list[Example], rng: random.Random) -> list[Batch]:
    """Batches in random order.

    Of those under 60% full only a share equal to their filling is kept, so that no length is favoured.
    """
    batches = []
    for batch in make_batches(examples):
        filled = batch.num_rows / (TOKENS_PER_STEP // batch.length)
        if filled >= 0.6 or rng.random() < filled:
            batches.append(batch)
    rng.shuffle(batches)
    return batches
