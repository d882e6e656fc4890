"""What every benchmark shares: the work to do, the peer to do it beside, and the note of where it was measured.

Must not know what is measured.
"""

import datetime
import importlib.metadata
import json
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SPECIAL_IDS = 16  # the first ids of a vocabulary are often special tokens


def random_prompts(num_prompts: int, input_len: int, vocab_size: int, seed: int = 0) -> list[list[int]]:
    """`num_prompts` prompts of `input_len` random token ids: the text does not matter to the speed."""
    generator = random.Random(seed)
    return [[generator.randrange(_SPECIAL_IDS, vocab_size) for _ in range(input_len)] for _ in range(num_prompts)]


class TransformersPeer:
    """transformers' `generate` on the same weights: greedy, and exactly `output_len` tokens per prompt."""

    def __init__(self, model: str, dtype: torch.dtype) -> None:
        from transformers import AutoModelForCausalLM

        self.model: Any = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
        # The same work as our ignore_eos: the end-of-sequence id is a token like others, neither an end nor forbidden.
        self.model.generation_config.eos_token_id = None

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """One batch of prompts of equal length; the new token ids of each."""
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            out = self.model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                max_new_tokens=output_len,
                pad_token_id=0,
            )
        new_ids: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return new_ids


def timed(function: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def median_in_turns(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median seconds of each candidate, after one warm-up; they take turns, so that drift hits all alike."""
    for function in candidates.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, function in candidates.items():
            seconds[name].append(timed(function))
    return {name: statistics.median(values) for name, values in seconds.items()}


def percentile(values: list[float], percent: float) -> float:
    """Nearest-rank percentile; NaN of nothing."""
    if not values:
        return float("nan")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def machine() -> dict[str, Any]:
    """Where this is measured: CPU, cores and versions."""
    cpu = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        cpu = f"{len(models)} x {models[0]}" if models else cpu
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": cpu,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "galley": importlib.metadata.version("galley"),
    }


def say(text: str) -> None:
    """A line for people."""
    print(text, file=sys.stderr, flush=True)


def finish(result: dict[str, Any]) -> None:
    """The last line on stdout: one JSON object."""
    print(json.dumps(result), flush=True)
