"""The benchmarks' model of random weights is one that every engine loads and computes alike."""

from pathlib import Path

import torch

from benchmarks.common import TransformersPeer, random_prompts
from benchmarks.random_model import Shape, make_random_model
from engine import LLM, SamplingParams
from engine.text import Tokenizer

SHAPE = Shape(
    hidden_size=64, intermediate_size=96, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=32, vocab_size=5000
)


def test_loads_and_computes_as_in_transformers(tmp_path: Path) -> None:
    make_random_model(tmp_path, SHAPE)
    prompts = random_prompts(2, 12, SHAPE.vocab_size)
    params = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)
    results = LLM(str(tmp_path), dtype="float32", max_model_len=64).generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False
    )
    expected = TransformersPeer(str(tmp_path), torch.float32).generate(prompts, 6)
    assert [result.outputs[0].token_ids for result in results] == expected


def test_tokenizer_has_the_whole_vocabulary_and_takes_any_text(tmp_path: Path) -> None:
    make_random_model(tmp_path, SHAPE)
    tokenizer = Tokenizer.from_dir(tmp_path)
    assert tokenizer.vocab_size == SHAPE.vocab_size
    ids = tokenizer.encode("A tab\t, ñ, 水 and 42")
    assert tokenizer.decode(ids) == "A tab\t, ñ, 水 and 42"
    assert max(ids) > 256  # the merges take effect


def test_same_seed_same_weights_and_another_shape_is_made_anew(tmp_path: Path) -> None:
    make_random_model(tmp_path / "a", SHAPE)
    make_random_model(tmp_path / "b", SHAPE)
    weights = (tmp_path / "a" / "model.safetensors").read_bytes()
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == weights
    make_random_model(tmp_path / "b", SHAPE, seed=1)
    assert (tmp_path / "b" / "model.safetensors").read_bytes() != weights
