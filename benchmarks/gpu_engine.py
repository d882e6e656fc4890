"""The engine as the GPU's benchmarks drive it: loaded with random weights of a shape, and stepped by hand.

Knows the core, the runner and what tells the host's work from its waiting. Must not know bars or reports.
"""

import contextlib
import dataclasses
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import say
from benchmarks.gpu_models import GpuShape
from engine.api import EngineConfig, GenerateRequest, SamplingParams
from engine.core import EngineCore
from engine.runner import load_runner

_CLIENT = 0
_SPECIAL_IDS = 16


def settings_for(shape: GpuShape, *, smoke: bool, **more: Any) -> dict[str, Any]:
    """Keyword arguments of EngineConfig and LLM: random weights, no prefix cache, a GPU or for --smoke the CPU."""
    place: dict[str, Any] = {"device": "cuda", "dtype": "bfloat16"}
    if smoke:
        place = {"device": "cpu", "dtype": "float32", "kv_cache_memory_gib": 0.05}
    sizes = {"max_num_seqs": 4 if smoke else 256, "max_num_batched_tokens": 256 if smoke else 8192}
    return {
        "load_format": "dummy",
        "max_model_len": min(4096, shape.max_len),
        "enable_prefix_caching": False,
        "async_scheduling": True,
        **sizes,
        **place,
        **more,
    }


def load_core(model_dir: Path, settings: dict[str, Any]) -> EngineCore:
    """A core over a runner that is warm; every stage of the start is told with its time."""
    config = EngineConfig(model=str(model_dir), **settings)
    started = time.monotonic()
    runner, info = load_runner(config, lambda stage: say(f"  {time.monotonic() - started:6.1f} s  {stage}"))
    say(f"  {time.monotonic() - started:6.1f} s  loaded")
    return EngineCore(dataclasses.replace(config, max_num_waiting=2**31), info, runner)


class WaitMeter:
    """Seconds that the host waits for the GPU while it is on: in torch's events, streams and whole synchronisations."""

    def __init__(self) -> None:
        self.waited_s = 0.0

    @contextlib.contextmanager
    def on(self) -> Iterator["WaitMeter"]:
        """Times the waits of this process by standing in for torch's own functions."""
        places: list[tuple[Any, str]] = [
            (torch.cuda.Event, "synchronize"), (torch.cuda.Stream, "synchronize"), (torch.cuda, "synchronize"),
        ]  # fmt: skip
        own = [(owner, name, getattr(owner, name)) for owner, name in places]
        for owner, name, function in own:
            setattr(owner, name, self._timed(function))
        try:
            yield self
        finally:
            for owner, name, function in own:
                setattr(owner, name, function)

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.waited_s += time.perf_counter() - started

        return call


@dataclasses.dataclass(frozen=True, slots=True)
class StepTime:
    """One step: seconds since the step before it came back, of these the host's own, and how many tokens it told."""

    wall_s: float
    host_s: float
    num_tokens: int


class Stepper:
    """Requests of random tokens on a core, and the times of its steps."""

    def __init__(self, core: EngineCore, max_num_batched_tokens: int, seed: int = 0) -> None:
        self.core = core
        self.max_num_batched_tokens = max_num_batched_tokens
        self._draw = random.Random(seed)
        self._next_id = 0

    def add(self, num_requests: int, input_len: int, output_len: int) -> None:
        """Queue requests with prompts of their own, greedy, of exactly `output_len` tokens."""
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        for _ in range(num_requests):
            prompt = [self._draw.randrange(_SPECIAL_IDS, self.core.model.vocab_size) for _ in range(input_len)]
            self.core.add_request(
                _CLIENT,
                GenerateRequest(
                    request_id=self._next_id, prompt_token_ids=prompt, params=params, deadline=float("inf")
                ),
            )
            self._next_id += 1

    def step(self) -> int:
        """One step of the core; how many tokens it told."""
        return sum(len(output.new_token_ids) for outputs in self.core.step().values() for output in outputs)

    def run(self) -> list[StepTime]:
        """Step until nothing is left."""
        return list(self.steps())

    def steps(self) -> Iterator[StepTime]:
        """Step until nothing is left, one step for each that is asked for."""
        meter = WaitMeter()
        with meter.on():
            last = time.perf_counter()
            while self.core.has_work():
                waited = meter.waited_s
                num_tokens = self.step()
                now = time.perf_counter()
                wall = now - last
                yield StepTime(wall, max(0.0, wall - (meter.waited_s - waited)), num_tokens)
                # What the caller does with it is not the engine's time.
                last = time.perf_counter()
