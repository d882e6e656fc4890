"""What do int8 and int4 weights cost in accuracy, and what do they win in time, on a CPU?

    python benchmarks/quantization.py                              # accuracy and speed of the shipped model
    python benchmarks/quantization.py --speed-model DIR            # speed of another model, accuracy of the shipped one

Accuracy: the held-out questions of the shipped model with their right answers. `perplexity` is over the answers'
tokens; `agreement` the share of those positions where the most likely token is the one that bfloat16 gives. Speed:
milliseconds per decode step at several batch sizes, and tokens per second of a prompt; forms take turns, medians of
--repeats.
"""

import argparse
import json
import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from a checkout that is not installed

from benchmarks.common import finish, machine, random_prompts, say
from engine import LLM, SamplingParams
from engine.llm import TokensPrompt
from engine.text import ChatTemplate, Tokenizer

ROOT = Path(__file__).parents[1]
HELDOUT = ROOT / "models/training/heldout"
FORMS = ("none", "int8", "int4")


def answered_questions(model: str, per_skill: int) -> list[tuple[list[int], int]]:
    """(token ids of question and answer, where the answer begins), the first `per_skill` of each skill."""
    tokenizer = Tokenizer.from_dir(model)
    template = ChatTemplate.from_dir(model, tokenizer)
    found = []
    for path in sorted(HELDOUT.glob("*.jsonl")):
        for line in path.read_text().splitlines()[:per_skill]:
            row = json.loads(line)
            kwargs: dict[str, object] = {"enable_thinking": True} if row.get("enable_thinking") else {}
            text = template.render(row["messages"], tools=row.get("tools"), kwargs=kwargs)
            question = tokenizer.encode(text, add_special_tokens=False)
            answer = tokenizer.encode(row["expected"], add_special_tokens=False)
            found.append((question + answer, len(question)))
    return found


def accuracy(model: str, form: str, questions: list[tuple[list[int], int]]) -> dict[str, Any]:
    """Log-probability and most likely token at every position of the answers."""
    llm = LLM(model, dtype="bfloat16", quantization=form)
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    prompts: list[TokensPrompt] = [{"prompt_token_ids": ids} for ids, _ in questions]
    losses, best = [], []
    for result, (ids, start) in zip(llm.generate(prompts, params, use_tqdm=False), questions, strict=True):
        for position in range(start, len(ids)):
            entry = (result.prompt_logprobs or [])[position] or {}
            losses.append(-entry[ids[position]].logprob)
            best.append(next(token_id for token_id, logprob in entry.items() if logprob.rank == 1))
    return {"perplexity": math.exp(statistics.fmean(losses)), "best": best}


def step_ms(llm: LLM, batch_size: int, output_len: int) -> float:
    """Milliseconds of one decode step: what `output_len` more tokens add to the time of the first."""
    seconds = []
    for length in (1, output_len + 1):
        prompts: list[TokensPrompt] = [
            {"prompt_token_ids": ids} for ids in random_prompts(batch_size, 16, llm.vocab_size)
        ]
        start = time.perf_counter()
        llm.generate(prompts, SamplingParams(temperature=0, max_tokens=length, ignore_eos=True), use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    return (seconds[1] - seconds[0]) / output_len * 1e3


def prompt_tok_s(llm: LLM, input_len: int) -> float:
    """Tokens per second of one prompt."""
    prompt: TokensPrompt = {"prompt_token_ids": random_prompts(1, input_len, llm.vocab_size)[0]}
    start = time.perf_counter()
    llm.generate(prompt, SamplingParams(temperature=0, max_tokens=1), use_tqdm=False)
    return input_len / (time.perf_counter() - start)


def speed(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Per form: `batch N` in ms per step, and `prompt` in tokens per second."""
    llms = {
        form: LLM(
            args.speed_model, dtype="bfloat16", quantization=form, max_num_seqs=max(args.batch_sizes),
            max_model_len=1024, enable_prefix_caching=False, kv_cache_memory_gib=1.0,
        )
        for form in FORMS
    }  # fmt: skip
    rows: dict[str, dict[str, list[float]]] = {form: {} for form in FORMS}
    for _ in range(args.repeats + 1):
        for batch_size in args.batch_sizes:
            for form, llm in llms.items():
                measured = step_ms(llm, batch_size, args.output_len)
                rows[form].setdefault(f"batch {batch_size}", []).append(measured)
        for form, llm in llms.items():
            rows[form].setdefault("prompt", []).append(prompt_tok_s(llm, args.input_len))
    # The first of each is the warm-up.
    return {
        form: {name: round(statistics.median(values[1:]), 2) for name, values in row.items()}
        for form, row in rows.items()
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "models/galley-tiny"))
    parser.add_argument("--speed-model", default=str(ROOT / "models/galley-tiny"))
    parser.add_argument("--per-skill", type=int, default=40)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    questions = answered_questions(args.model, args.per_skill)
    by_form = {form: accuracy(args.model, form, questions) for form in FORMS}
    plain = by_form["none"]["best"]
    for row in by_form.values():
        best = row.pop("best")
        row["agreement"] = round(sum(a == b for a, b in zip(best, plain, strict=True)) / len(plain), 4)
        row["perplexity"] = round(row["perplexity"], 4)
    for form, row in by_form.items():
        say(f"{form:5} {row}")
    by_speed = speed(args)
    for form, figures in by_speed.items():
        say(f"{form:5} {figures}")
    finish(
        {
            "benchmark": "quantization",
            **vars(args),
            "num_answers": len(questions),
            "accuracy": by_form,
            "speed": by_speed,
            "machine": machine(),
        }
    )


if __name__ == "__main__":
    main()
