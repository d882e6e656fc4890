"""Trains the tokenizer: byte-level BPE with single digits, the blank and each chat mark a token of its own.

With the blank apart, a word has the same tokens wherever it stands, so that copying it is copying tokens.
`python -m models.training.tokenizer --out PATH` writes tokenizer.json.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from models.training.chat import MARKUP_TOKENS, SPECIAL_TOKENS, render
from models.training.corpus import conversation
from models.training.draws import Draw, read_list

VOCAB_SIZE = 1536
NUM_CONVERSATIONS = 20_000
SPLIT_PATTERN = r"\p{L}+|\p{N}| |[^\s\p{L}\p{N}]+|\s"


def _texts(seed: int) -> Iterator[str]:
    draw = Draw(random.Random(seed))
    for _ in range(NUM_CONVERSATIONS):
        yield "".join(text for text, _ in render(conversation(draw)))
    yield from read_list("words.txt", by_line=False)[0]


def train_tokenizer(seed: int, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """A tokenizer with the special and markup tokens as its first ids."""
    tokenizer = Tokenizer(models.BPE())
    by_kind = pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([by_kind, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS + MARKUP_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=2,
    )
    tokenizer.train_from_iterator(_texts(seed), trainer)
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in SPECIAL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def copyable_pieces(tokenizer: Tokenizer) -> list[str]:
    """Vocabulary entries that are printable text without blanks: material for copying exercises."""
    first = len(SPECIAL_TOKENS) + len(MARKUP_TOKENS)
    texts = [tokenizer.decode([token]) for token in range(first, tokenizer.get_vocab_size())]
    return [text for text in texts if text and text.strip() == text and "\ufffd" not in text and text.isprintable()]


def main() -> None:
    """Trains and saves the tokenizer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--vocab-size", type=int, default=VOCAB_SIZE)
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.seed, options.vocab_size)
    tokenizer.save(str(options.out))
    draw = Draw(random.Random(3))
    texts = ["".join(text for text, _ in render(conversation(draw))) for _ in range(2000)]
    num_tokens = sum(len(encoding.ids) for encoding in tokenizer.encode_batch(texts))
    print(f"{tokenizer.get_vocab_size()} tokens; {num_tokens / len(texts):.1f} tokens a conversation")


if __name__ == "__main__":
    main()
