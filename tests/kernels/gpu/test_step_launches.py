"""Which kernels each step launches, and that torch computes nothing beside them: the table of docs/kernels.md."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from kernels.gpu.hardware import KNOWN

pytest.importorskip("msgspec")

from engine.api import EngineConfig, SamplingParams
from engine.compile_kernels import meta_runner, start
from engine.layers.decoder import DecoderLayer
from engine.runner import ModelRunner
from engine.sequence import SchedulerOutput, Sequence
from tests.kernels.gpu.test_compile_kernels import CONFIG
from tests.model.driver import make_sequence

PAGE = Path(__file__).parents[3] / "docs/kernels.md"
BEGIN, END = "begin layer", "end layer"

# What of torch a step calls besides our kernels. Nothing of it computes but the products and the look-up.
PRODUCTS = {"mm", "addmm", "linear"}
WORK = {
    "embedding": "embedding",
    # The words of a step from pinned memory.
    "copy_": "copy from the host",
    # Tokens out of the graph's buffer, so that the next replay may write there.
    "clone": "copy of tokens",
    # Hidden states, logits or tokens of some rows.
    "index_select": "rows",
    # The counts of a row that is new, and the biases' starts where nobody has any.
    "zero_": "zeros",
    "zeros": "zeros",
    # Indices from the host, int32, as torch's look-up wants them: int64.
    "to": "int64 indices",
}
NO_WORK = {"empty", "view", "slice", "select", "detach", "t", "unflatten", "alias", "as_strided", "expand"}


class Record(TorchDispatchMode):
    """What a step does, in order: names of kernels, and of torch's operations that do work."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, result = function.overloadpacket.__name__, function(*args, **(kwargs or {}))
        # The host's own tensors are not the device's work.
        is_on_device = any(x.is_meta for x in tree_leaves((args, result)) if isinstance(x, Tensor))
        if is_on_device and name in PRODUCTS:
            self.events.append("product")
        elif is_on_device and name not in NO_WORK:
            self.events.append(WORK.get(name, f"torch.{name}"))
        return result

    def launched(self, kernel: Any, *_: Any, **__: Any) -> None:
        is_logprobs = kernel.fn.__module__.endswith(".logprobs")
        self.events.append(f"`{'logprobs.' if is_logprobs else ''}{kernel.fn.__name__.lstrip('_')}`")


@pytest.fixture
def record(monkeypatch: pytest.MonkeyPatch) -> Record:
    """No kernel is launched, only noted; layers are marked."""
    record, call = Record(), DecoderLayer.__call__

    def layer(self: DecoderLayer, *args: Any) -> Any:
        record.events.append(BEGIN)
        result = call(self, *args)
        record.events.append(END)
        return result

    monkeypatch.setattr(DecoderLayer, "__call__", layer)
    for kind, name in ((interpreter.GridExecutor, "__call__"), (JITFunction, "run")):
        monkeypatch.setattr(kind, name, lambda kernel, *args, **options: record.launched(kernel))
    return record


@pytest.fixture
def runner(tmp_path: Path, record: Record) -> ModelRunner:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    config = EngineConfig(model=str(tmp_path), block_size=16, max_num_seqs=16, max_num_batched_tokens=256)
    runner = meta_runner(config, KNOWN[90])
    start(runner)
    return runner


class Steps:
    """Computes steps of sequences, and says what each did."""

    def __init__(self, runner: ModelRunner, record: Record) -> None:
        self.runner = runner
        self.record = record
        self.num_rows = 0

    def sequence(self, num_tokens: int = 10, **params: Any) -> Sequence:
        params = {"temperature": 0.0, **params}
        sequence = make_sequence([5] * num_tokens, self.num_rows, SamplingParams(**params))
        self.num_rows += 1
        return sequence

    def step(self, *scheduled: tuple[Sequence, int]) -> list[str]:
        for sequence, num_tokens in scheduled:
            while len(sequence.block_ids) * 16 < sequence.num_computed_tokens + num_tokens:
                sequence.block_ids.append(1)
        del self.record.events[:]
        with self.record:
            pending = self.runner.launch(SchedulerOutput(scheduled))
        events = list(self.record.events)
        sampled = self.runner.collect(pending)
        for (sequence, num_tokens), token_ids in zip(scheduled, sampled.token_ids, strict=True):
            sequence.num_computed_tokens += num_tokens
            sequence.token_ids.extend(token_ids)
        return events

    def running(self, num_tokens: int = 10, **params: Any) -> Sequence:
        sequence = self.sequence(num_tokens, **params)
        self.step((sequence, num_tokens))
        self.step((sequence, 1))
        return sequence


def kinds(steps: Steps) -> Iterator[tuple[str, list[str]]]:
    """(kind of step, what it does), for each row of the table."""
    plain = steps.running(temperature=0.9, top_p=0.9, top_k=5, min_p=0.1)
    at_the_end = steps.running(15)
    yield "decodes", steps.step((plain, 1), (steps.running(), 1))
    yield "decodes, one into a new block", steps.step((plain, 1), (at_the_end, 1))
    edits = {"repetition_penalty": 1.5, "allowed_token_ids": (1, 2)}
    yield "decodes, one with edits", steps.step((plain, 1), (steps.running(**edits), 1))
    biased = steps.running(logit_bias={1: 1.0})
    yield "decodes, one with biases", steps.step((plain, 1), (biased, 1))
    yield "decodes, one with log-probabilities", steps.step((plain, 1), (steps.running(logprobs=3), 1))
    yield "a prompt", steps.step((steps.sequence(20), 20))
    yield "a prompt with penalties", steps.step((steps.sequence(20, **edits), 20))
    chunked = steps.sequence(40, prompt_logprobs=2)
    yield "a chunk of a prompt with log-probabilities", steps.step((chunked, 20))
    mixed = steps.sequence(40)
    yield "a chunk of a prompt", steps.step((mixed, 20))
    yield "decodes beside a prompt's last chunk", steps.step((plain, 1), (mixed, 20))


def split_at_layers(events: list[str]) -> tuple[list[str], list[str], list[str]]:
    """(before the layers, each layer, after them); all layers do the same."""
    first, last = events.index(BEGIN), len(events) - 1 - events[::-1].index(END)
    layers: list[list[str]] = []
    for event in events[first : last + 1]:
        if event == BEGIN:
            layers.append([])
        elif event != END:
            layers[-1].append(event)
    assert len(layers) == CONFIG["num_hidden_layers"] and all(layer == layers[0] for layer in layers)
    return events[:first], layers[0], events[last + 1 :]


def table(rows: list[tuple[str, list[str]]]) -> str:
    lines = ["| step | before the layers | each layer | after the layers |", "|---|---|---|---|"]
    for name, events in rows:
        lines.append(f"| {name} | " + " | ".join(", ".join(part) for part in split_at_layers(events)) + " |")
    return "\n".join(lines)


def test_a_step_is_launches_of_our_kernels_products_and_a_look_up(runner: ModelRunner, record: Record) -> None:
    rows = list(kinds(Steps(runner, record)))
    fallbacks = {event for _, events in rows for event in events if event.startswith("torch.")}
    assert fallbacks == set()
    found = table(rows)
    print(found)
    assert found in PAGE.read_text(), "docs/kernels.md has another table"
