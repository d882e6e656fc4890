"""Accuracy of an exported model directory per skill: greedy generation, exact match, Wilson intervals.

`python -m models.training.evaluate --model DIR` prints a table and, last, one JSON line. `--split dev` asks the dev
wordings instead of the frozen held-out prompts; `--failures N` shows wrong answers, which is for dev prompts only:
whoever reads held-out failures and mends the corpus has to write new held-out wordings.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from models.training.draws import HELDOUT, Split
from models.training.heldout import SKILLS, make_rows

MAX_NEW_TOKENS = 200
BATCH_SIZE = 80
Z_95 = 1.959964


def wilson(right: int, total: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share (E. B. Wilson, 1927)."""
    share = right / total
    centre = share + Z_95**2 / (2 * total)
    margin = Z_95 * math.sqrt(share * (1 - share) / total + Z_95**2 / (4 * total**2))
    return (centre - margin) / (1 + Z_95**2 / total), (centre + margin) / (1 + Z_95**2 / total)


def rows_of(skill: str, split: Split, num_prompts: int) -> list[dict[str, Any]]:
    """The frozen prompts of a skill, or `num_prompts` dev prompts."""
    if split == "heldout":
        return [json.loads(line) for line in (HELDOUT / f"{skill}.jsonl").read_text().splitlines()]
    return make_rows(skill, split, num_prompts, seed=1)


def is_right(row: dict[str, Any], answer: str) -> bool:
    """Exact match. Skills with thinking must think, and only what follows </think> is compared."""
    if row["skill"].endswith("_thinking"):
        thought, closed, rest = answer.partition("</think>")
        return bool(closed) and thought.startswith("<think>\n") and rest.strip() == row["expected"]
    return bool(answer == row["expected"])


class Judge:
    """A loaded model directory that answers rows in batches."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    @torch.no_grad()
    def answers(self, rows: list[dict[str, Any]]) -> list[str]:
        """Greedy answers, sorted by prompt length meanwhile so that a batch pads little."""
        prompts = []
        for row in rows:
            options = {"tools": row.get("tools"), "enable_thinking": row.get("enable_thinking", False)}
            options |= {"tokenize": False, "add_generation_prompt": True}
            prompts.append(self._tokenizer.apply_chat_template(row["messages"], **options))
        order = sorted(range(len(rows)), key=lambda index: len(prompts[index]))
        found = [""] * len(rows)
        for start in range(0, len(order), BATCH_SIZE):
            chosen = order[start : start + BATCH_SIZE]
            texts = [prompts[index] for index in chosen]
            inputs = self._tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False)
            inputs.pop("token_type_ids", None)
            output = self._model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, do_sample=False)
            for index, ids in zip(chosen, output[:, inputs["input_ids"].shape[1] :], strict=True):
                found[index] = self._tokenizer.decode(ids, skip_special_tokens=True)
        return found


def main() -> None:
    """Asks every skill and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--split", choices=["dev", "heldout"], default="heldout")
    parser.add_argument("--num-prompts", type=int, default=120, help="dev prompts per skill")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--failures", type=int, default=0, help="wrong answers to show per skill")
    parser.add_argument("--skills", nargs="*", default=list(SKILLS))
    options = parser.parse_args()
    judge, results, start_s = Judge(options.model, getattr(torch, options.dtype)), {}, time.monotonic()
    print("| skill | right | n | accuracy | 95% interval |\n|---|---|---|---|---|")
    for skill in options.skills:
        rows = rows_of(skill, options.split, options.num_prompts)
        answers = judge.answers(rows)
        wrong = [(row, answer) for row, answer in zip(rows, answers, strict=True) if not is_right(row, answer)]
        right, total = len(rows) - len(wrong), len(rows)
        low, high = wilson(right, total)
        print(f"| {skill} | {right} | {total} | {right / total:.1%} | {low:.1%} to {high:.1%} |", flush=True)
        results[skill] = {
            "right": right,
            "n": total,
            "accuracy": round(right / total, 4),
            "low": round(low, 4),
            "high": round(high, 4),
        }
        for row, answer in wrong[: options.failures]:
            print(f"    {row['messages'][-1]['content']!r} -> {answer!r}, not {row['expected']!r}")
    seconds = round(time.monotonic() - start_s, 1)
    print(json.dumps({"split": options.split, "dtype": options.dtype, "seconds": seconds, "skills": results}))


if __name__ == "__main__":
    main()
