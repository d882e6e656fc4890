"""Small tokenizers of the kinds that models have, built on the spot."""

import json
from pathlib import Path

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

LINES = [
    "Hello world, how are you? The answer is 42.\n",
    "héllo wörld – 你好，世界 🎉🎊👩‍👩‍👧 naïve café\n",
    "  def f(x):\n\treturn x + 1\n",
] * 4
CHAT_MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>"]


def build_byte_level() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=CHAT_MARKS,
        show_progress=False,
    )
    tokenizer.train_from_iterator(LINES, trainer)
    tokenizer.add_tokens(["<tool_call>", "日本"])
    return tokenizer


def build_byte_fallback(*, strip: bool = True) -> tokenizers.Tokenizer:
    """Llama 2's kind: "▁" for the space, bytes for what the vocabulary lacks; without `strip`, Gemma's."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    pieces = ["▁", "▁▁", "▁Hello", "▁wor", "ld", "H", "e", "l", "o", "w", "r", "d", ".", "é", "世", "界", "\ufffd"]
    for token in [f"<0x{byte:02X}>" for byte in range(256)] + pieces:
        vocab[token] = len(vocab)
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def build_metaspace() -> tokenizers.Tokenizer:
    """T5's kind: unigram, Metaspace, unknown characters."""
    scores = [("<unk>", 0.0), ("▁", -2.0), ("▁Hello", -1.0), ("▁world", -1.0), ("e", -3.0), ("l", -3.0), ("▁▁", -4.0)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(scores, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    return tokenizer


def save(tokenizer: tokenizers.Tokenizer, path: Path, **config: object) -> Path:
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return path
