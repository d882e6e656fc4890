"""From a sequence's sampling parameters to the words that its row on the device holds. Must not know the model."""

import numpy as np

from engine.sequence import Sequence
from engine.token_rules import FloatArray, IntArray, TokenRules
from kernels import HAS_COUNTS, HAS_MASK, NUM_SAMPLING_COLUMNS, SamplingColumn

_LEAST_TOP_P = 1e-12
_SEED_END = SamplingColumn.SEED + 2


def sampling_words(sequence: Sequence, rules: TokenRules | None) -> IntArray:
    """The sequence's row of `RowState.sampling`, int32 [NUM_SAMPLING_COLUMNS]."""
    params = sequence.request.params
    words = np.zeros(NUM_SAMPLING_COLUMNS, dtype=np.int32)
    floats = words.view(np.float32)
    # Not zero even where float32 makes it so: the request asked for sampling, and 0 means greedy.
    if params.temperature > 0.0:
        floats[SamplingColumn.TEMPERATURE] = max(params.temperature, float(np.finfo(np.float32).tiny))
    # Likewise: any top_p up to a vocabulary's smallest possible maximum keeps the most likely token alone.
    floats[SamplingColumn.TOP_P] = max(params.top_p, _LEAST_TOP_P)
    floats[SamplingColumn.MIN_P] = params.min_p
    words[SamplingColumn.TOP_K] = params.top_k
    words[SamplingColumn.SEED : _SEED_END] = np.array([sequence.seed], dtype=np.uint64).view(np.int32)
    floats[SamplingColumn.REPETITION] = params.repetition_penalty
    floats[SamplingColumn.FREQUENCY] = params.frequency_penalty
    floats[SamplingColumn.PRESENCE] = params.presence_penalty
    if rules is not None:
        has_mask, has_counts = rules.allowed is not None, params.has_penalties
        words[SamplingColumn.FLAGS] = (HAS_MASK if has_mask else 0) | (HAS_COUNTS if has_counts else 0)
    return words


def mask_words(rules: TokenRules) -> IntArray:
    """The tokens that rules with `allowed` allow, as a row of `RowState.masks`: int32 [ceil(vocab / 32)]."""
    assert rules.allowed is not None
    packed = np.packbits(rules.allowed, bitorder="little")
    return np.pad(packed, (0, -len(packed) % 4)).view(np.int32)


def held_tokens(sequence: Sequence) -> tuple[IntArray, IntArray]:
    """(token ids, counts), int32 [n] each: what the sequence's row of `RowState.counts` holds besides zeros.

    The prompt's tokens matter to the repetition penalty alone, so that they are left out where there is none.
    """
    params, start = sequence.request.params, sequence.num_prompt_tokens
    output = np.array(sequence.token_ids[start:], dtype=np.int32)
    prompt = sequence.token_ids[:start] if params.repetition_penalty != 1.0 else []
    ids, places = np.unique(np.concatenate((np.array(prompt, dtype=np.int32), output)), return_inverse=True)
    counts = np.zeros(len(ids), dtype=np.int32)
    np.add.at(counts, places[len(prompt) :], 2)
    counts[places[: len(prompt)]] |= 1
    return ids, counts


def joined_biases(rules: list[TokenRules | None]) -> tuple[IntArray, IntArray, FloatArray] | None:
    """(starts int32 [rows + 1], token ids int32 [n], values float32 [n]) of the rows' biases; None if none has any."""
    entries = [None if one is None else one.bias() for one in rules]
    starts = np.zeros(len(rules) + 1, dtype=np.int32)
    np.cumsum([0 if entry is None else len(entry[0]) for entry in entries], out=starts[1:])
    if not starts[-1]:
        return None
    present = [entry for entry in entries if entry is not None]
    ids = np.concatenate([ids for ids, _ in present]).astype(np.int32)
    return starts, ids, np.concatenate([values for _, values in present])
