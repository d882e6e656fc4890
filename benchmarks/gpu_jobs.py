"""Offline jobs of the GPU's benchmarks: what is to be generated, in a file that any engine's process can read.

Must not know engines.
"""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A shape's name, prompts, and how many tokens each gets, whatever they are.

    settings: further ones of our engine. The same job is the same work for every engine.
    """

    shape: str
    prompts: list[list[int]]
    output_lens: list[int]
    temperature: float
    smoke: bool
    settings: dict[str, Any]

    @property
    def num_output_tokens(self) -> int:
        """Of the whole job."""
        return sum(self.output_lens)

    def write(self, path: Path) -> Path:
        """As JSON; returns `path`."""
        path.write_text(json.dumps(dataclasses.asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "Job":
        """What `write` wrote."""
        return cls(**json.loads(path.read_text()))


def mixed_job(shape: str, *, smoke: bool, num_sequences: int = 256, max_vocab: int = 10_000) -> Job:
    """The job of nano-vllm's bench.py and mini-sglang's offline benchmark, draw by draw.

    256 sequences, input and output lengths uniform in 100 to 1024, ids in 0 to 10000, seed 0: 133,966 output tokens,
    the number in nano-vllm's README. For smoke the lengths are a twentieth, and the ids below 500.
    """
    least, most, top_id = (5, 51, 499) if smoke else (100, 1024, max_vocab)
    draw = random.Random(0)
    prompts = [[draw.randint(0, top_id) for _ in range(draw.randint(least, most))] for _ in range(num_sequences)]
    output_lens = [draw.randint(least, most) for _ in range(num_sequences)]
    return Job(shape, prompts, output_lens, temperature=0.6, smoke=smoke, settings={})
