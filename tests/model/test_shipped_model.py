"""The model that ships, beside transformers: the same prompts, the same tokens, the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from engine import LLM, SamplingParams
from engine.text import ChatTemplate, Tokenizer
from tests.model.driver import PromptLogits

transformers = pytest.importorskip("transformers")

MODEL = Path(__file__).parents[2] / "models/galley-tiny"
MAX_BYTES = 16 * 2**20
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Get the weather for a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CONVERSATIONS: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
    ([{"role": "user", "content": "What is Galley?"}], None),
    ([{"role": "user", "content": "Count from 3 to 30."}], None),
    ([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 17 + 25? /think"}], None),
    ([{"role": "user", "content": "What is the weather in Paris?"}], TOOLS),
    ([{"role": "user", "content": "Repeat: café naïve 東京 🚢"}], None),
    (
        [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Nice to meet you, Ada!"},
            {"role": "user", "content": "What is my name?"},
        ],
        None,
    ),
]
NUM_TOKENS = 48
BLOCK_SIZE = 32


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_dir(MODEL)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    template = ChatTemplate.from_dir(MODEL, tokenizer)
    chats = [
        tokenizer.encode(template.render(messages, tools=tools), add_special_tokens=False)
        for messages, tools in CONVERSATIONS
    ]
    generator = torch.Generator().manual_seed(0)
    return [*chats, *(torch.randint(20, 800, (n,), generator=generator).tolist() for n in (1, 31, 32, 33, 700))]


@pytest.fixture(scope="module")
def peer() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def expected(peer: Any, prompts: list[list[int]]) -> list[list[int]]:
    generated = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
        generated.append(out[0, len(prompt) :].tolist())
    return generated


def greedy(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    params = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
    results = llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
    return [result.outputs[0].token_ids for result in results]


@pytest.mark.parametrize("budget", [1024, 24], ids=["whole prompts", "chunks of 24"])
def test_greedy_tokens_are_those_of_transformers(
    prompts: list[list[int]], expected: list[list[int]], budget: int
) -> None:
    llm = LLM(str(MODEL), dtype="float32", max_num_batched_tokens=budget)
    assert greedy(llm, prompts) == expected, "batched"
    alone = prompts if budget == 1024 else prompts[:2]
    assert [greedy(llm, [prompt])[0] for prompt in alone] == expected[: len(alone)], "alone"


def test_logits_agree_to_1e_4(peer: Any, prompts: list[list[int]]) -> None:
    logits = PromptLogits(MODEL, torch.float32)
    for prompt in prompts:
        with torch.inference_mode():
            theirs = peer(torch.tensor(prompt)[None]).logits[0]
        torch.testing.assert_close(logits(prompt), theirs, rtol=0, atol=1e-4)


def test_transformers_reads_the_directory_as_we_do(tokenizer: Tokenizer) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(MODEL)
    template = ChatTemplate.from_dir(MODEL, tokenizer)
    for messages, tools in CONVERSATIONS:
        text = theirs.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=True)
        assert template.render(messages, tools=tools) == text
        assert tokenizer.encode(text, add_special_tokens=False) == theirs.encode(text, add_special_tokens=False)


def test_it_is_small_and_takes_long_prompts() -> None:
    assert sum(path.stat().st_size for path in MODEL.rglob("*") if path.is_file()) <= MAX_BYTES
    assert json.loads((MODEL / "config.json").read_text())["max_position_embeddings"] == 16_384
    llm = LLM(str(MODEL))
    [result] = llm.generate({"prompt_token_ids": [50] * 16_000}, SamplingParams(max_tokens=4, ignore_eos=True), False)
    assert len(result.outputs[0].token_ids) == 4
