"""One engine's side of `benchmarks/cpu_peers.py`: load the model, run the plan, report.

    python -P benchmarks/peer_runner.py ENGINE PLAN.json

Runs in a process of its own, and for a peer with a virtual environment of its own under that one's interpreter. So only
the standard library is imported above, and each engine imports what is its own: vLLM's sees nothing of ours. Lines on
stdout that begin with the mark are JSON for the parent; engines may print others.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

MARK = "@@peer "


class Engine(Protocol):
    """A loaded model."""

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Exactly `output_len` greedy tokens for each prompt, the end-of-sequence id one like others."""
        ...

    def describe(self) -> dict[str, Any]:
        """Versions and settings, for the record."""
        ...


class Galley:
    """This engine, through `LLM`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        from engine import LLM, SamplingParams

        self._sampling_params = SamplingParams
        self._settings = {"max_model_len": plan["max_model_len"], "num_threads": plan["threads"], **plan["settings"]}
        self._llm = LLM(plan["model"], dtype="bfloat16", **self._settings)

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Through `LLM.generate`."""
        params = self._sampling_params(temperature=0, max_tokens=output_len, ignore_eos=True)
        results = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [result.outputs[0].token_ids for result in results]

    def describe(self) -> dict[str, Any]:
        """Versions and settings."""
        import torch

        return {"torch": torch.__version__, "settings": self._settings}


class Vllm:
    """vLLM, through its `LLM`. Its settings stay at their defaults, but for the length and the dtype."""

    def __init__(self, plan: dict[str, Any]) -> None:
        # Whichever interpreter type-checks this does not have vLLM.
        import vllm  # type: ignore[import-not-found, unused-ignore]

        self._vllm = vllm
        self._settings = {"dtype": "bfloat16", "max_model_len": plan["max_model_len"], **plan["settings"]}
        self._llm = vllm.LLM(model=plan["model"], **self._settings)

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Through `LLM.generate`."""
        params = self._vllm.SamplingParams(temperature=0, max_tokens=output_len, ignore_eos=True)
        results = self._llm.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]

    def describe(self) -> dict[str, Any]:
        """Versions and settings."""
        import torch

        config = self._llm.llm_engine.vllm_config
        return {
            "vllm": self._vllm.__version__,
            "torch": torch.__version__,
            "settings": self._settings,
            "prefix_caching": config.cache_config.enable_prefix_caching,
            "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
            "max_num_seqs": config.scheduler_config.max_num_seqs,
            "compilation_mode": str(config.compilation_config.mode),
        }


class Transformers:
    """transformers' `generate`: the prompts as one static batch."""

    def __init__(self, plan: dict[str, Any]) -> None:
        sys.path.insert(0, str(Path(__file__).parents[1]))
        import torch

        from benchmarks.common import TransformersPeer

        torch.set_num_threads(plan["threads"])
        self._peer = TransformersPeer(plan["model"], torch.bfloat16)

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """One call of `generate`."""
        return self._peer.generate(prompts, output_len)

    def describe(self) -> dict[str, Any]:
        """Versions and settings."""
        import torch
        import transformers

        attention = self._peer.model.config._attn_implementation
        return {"transformers": transformers.__version__, "torch": torch.__version__, "attention": attention}


class TransformersContinuous(Transformers):
    """transformers' continuous batching: one manager for all workloads, since starting one is not what is measured."""

    _NUM_BLOCKS = 128  # of 256 tokens: room for every sequence of a workload, without 90% of the machine's memory
    _TIMEOUT_S = 900

    def __init__(self, plan: dict[str, Any]) -> None:
        super().__init__(plan)
        from transformers import GenerationConfig
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        model = self._peer.model
        self._manager = model.init_continuous_batching(
            GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=plan["max_model_len"]),
            ContinuousBatchingConfig(num_blocks=self._NUM_BLOCKS),
        )
        self._manager.warmup()
        self._manager.start()

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Add all, then collect. Raises RuntimeError where the manager gives none."""
        ids = self._manager.add_requests(inputs=prompts, max_new_tokens=output_len)
        done: dict[str, list[int]] = {}
        end = time.monotonic() + self._TIMEOUT_S
        while len(done) < len(ids):
            result = self._manager.get_result(timeout=1)
            if result is None:
                if not self._manager.is_running() or time.monotonic() > end:
                    raise RuntimeError("the continuous batching manager gave no result")
            elif result.error is not None:
                raise RuntimeError(f"continuous batching: {result.error}")
            elif result.is_finished():
                done[result.request_id] = list(result.generated_tokens)
        return [done[request_id] for request_id in ids]


ENGINES: dict[str, Callable[[dict[str, Any]], Engine]] = {
    "galley": Galley,
    "vllm": Vllm,
    "transformers": Transformers,
    "transformers_continuous": TransformersContinuous,
}


def report(content: dict[str, Any]) -> None:
    """A line for the parent."""
    print(MARK + json.dumps(content), flush=True)


def timed_batch(engine: Engine, prompts: list[list[int]], output_len: int) -> tuple[float, list[int]]:
    """Seconds of one batch, and the first token of each output. Raises RuntimeError if an output's length is wrong."""
    start = time.perf_counter()
    outputs = engine.generate(prompts, output_len)
    seconds = time.perf_counter() - start
    lengths = {len(output) for output in outputs}
    if len(outputs) != len(prompts) or lengths != {output_len}:
        raise RuntimeError(f"{len(prompts)} outputs of {output_len} tokens were asked for, not of {sorted(lengths)}")
    return seconds, [output[0] for output in outputs]


def run(engine: Engine, plan: dict[str, Any]) -> dict[str, Any]:
    """Every workload of the plan: a warm-up of its own kind, then each of its batches once."""
    results: dict[str, Any] = {}
    for name, workload in plan["workloads"].items():
        timed_batch(engine, workload["warm_up"], workload["warm_up_len"])
        runs = [timed_batch(engine, prompts, workload["output_len"]) for prompts in workload["batches"]]
        results[name] = {"seconds": [seconds for seconds, _ in runs], "first_tokens": [first for _, first in runs]}
    return results


def main() -> None:
    """Do what the plan says: the first token of a prompt only, or every workload."""
    name, plan_file = sys.argv[1:]
    plan = json.loads(Path(plan_file).read_text())
    engine = ENGINES[name](plan)
    if plan["first_token_prompt"]:
        engine.generate([plan["first_token_prompt"]], 1)
        report({"first_token": True})
        return
    results = run(engine, plan)
    report({"describe": engine.describe(), "workloads": results})


if __name__ == "__main__":
    main()
