"""The Triton kernels together are a complete `Kernels`; what of it needs neither an engine nor a model."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from triton.runtime import interpreter
from triton.runtime.jit import JITFunction

from kernels import AttentionForm, AttentionHeads, AttentionMetadata, LogitEdits, SamplingTensors, StepInputs
from kernels.gpu.hardware import Hardware
from kernels.gpu.kernels import TritonKernels
from kernels.reference import ReferenceKernels
from tests.kernels.oracle import relative_error
from tests.kernels.steps import Step, random_step, untouched


def test_decodes_and_prompts_of_one_batch_are_written_side_by_side(device: torch.device, hardware: Hardware) -> None:
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(0)
    heads = AttentionHeads(4, 2, 16, None, None, 0.0)
    lens = [(1, 1), (1, 20), (5, 21), (1, 7), (16, 16)]
    metadata = AttentionMetadata(
        slot_mapping=torch.arange(16, 16 + 64, device=device),
        query_start_loc=torch.tensor([0, 1, 2, 7, 8, 24], dtype=torch.int32, device=device),
        seq_lens=torch.tensor([seq_len for _, seq_len in lens], dtype=torch.int32, device=device),
        block_table=torch.tensor([[3, 0], [1, 4], [2, 3], [4, 0], [1, 0]], dtype=torch.int32, device=device),
        max_query_len=16,
        max_seq_len=21,
        num_decodes=2,
    )
    qkv = torch.randn(64, 8 * 16, generator=generator).to(device)
    tables = kernels.rope_tables(torch.arange(64, device=device), torch.ones(8, device=device) * 0.1, 1.0)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(5, 16, 2, 16))
        query = candidate.pack_heads(heads)(qkv.clone(), tables, cache, metadata.slot_mapping)[:24]
        plan = candidate.plan_attention(metadata)
        results.append(candidate.paged_attention(query, *cache, plan, AttentionForm(0.25)))
    assert relative_error(*results) < 1e-5


def test_columns_of_a_gathered_table_are_read_with_their_stride(device: torch.device, hardware: Hardware) -> None:
    """What the engine gathers per row or token may be a column of a wider array."""
    kernels, generator = TritonKernels(hardware), torch.Generator().manual_seed(1)
    columns = torch.tensor([[1, 9, 5], [2, 30, 17], [3, 4, 2]], device=device)
    positions, slots = columns[:, 1], columns[:, 2]
    frequencies = torch.rand(16, generator=generator).to(device)[::2]
    qkv = torch.randn(3, 4 * 16, generator=generator).to(device)
    logits = torch.randn(3, 40, generator=generator).to(device)
    results = []
    for candidate in (kernels, ReferenceKernels()):
        tables = candidate.rope_tables(positions, frequencies, 1.0)
        wide = torch.cat(tables, -1).chunk(2, -1)
        cache = tuple(torch.zeros(shape, device=device) for shape in candidate.kv_cache_shapes(2, 16, 1, 16))
        step = candidate.pack_heads(AttentionHeads(2, 1, 16, None, None, 0.0))
        query = step(qkv.clone(), (wide[0], wide[1]), (cache[0], cache[1]), slots)
        chosen = candidate.logprobs(logits, columns[:, 0], 2).chosen
        # With one KV head the two layouts of a cache are the same bytes.
        results.append(torch.cat([x.flatten() for x in (*tables, query, *cache, chosen)]))
    assert relative_error(*results) < 1e-5


class Operations(TorchDispatchMode):
    """The names of torch's operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


# What takes memory, or another view of it, and no work of the GPU.
NO_WORK = {"empty", "view", "slice", "select", "detach"}


def every_operation(
    kernels: TritonKernels, step: Step, out: StepInputs, dtypes: tuple[torch.dtype, torch.dtype]
) -> None:
    """A step, but for its linear layers, as a runner would call it: with views of buffers. dtypes: model's, cache's."""
    dtype, cache_dtype = dtypes
    kernels.expand_step(step.tables, step.state, 16, step.max_blocks, out)
    num_tokens, num_seqs, num_rows, vocab = 30, 5, 3, 300
    x = torch.empty(num_tokens, 64, dtype=dtype)
    kernels.rms_norm(x, x[0], 1e-6)
    kernels.add_rms_norm(x, x, x[0], 1e-6)
    kernels.silu_and_mul(x)
    kernels.gelu_and_mul(x)
    tables = kernels.rope_tables(out.positions[:num_tokens], torch.empty(8), 1.0)
    cache = tuple(torch.empty(s, dtype=cache_dtype) for s in kernels.kv_cache_shapes(4, 16, 1, 16))
    rotate = kernels.pack_heads(AttentionHeads(2, 1, 16, x[0, :16], x[0, :16], 1e-6))
    query = rotate(x, tables, (cache[0], cache[1]), out.slot_mapping[:num_tokens])
    for longest, num_decodes in ((20, 3), (1, 0)):
        metadata = AttentionMetadata(
            out.slot_mapping[:num_tokens], step.tables.query_start_loc, step.tables.seq_lens,
            out.block_table[:num_seqs], longest, 40, num_decodes,
        )  # fmt: skip
        plan = kernels.plan_attention(metadata)
        sinks = torch.empty(2)
        for form in (AttentionForm(1.0), AttentionForm(1.0, 8, 30.0, sinks, 0.5, 0.5)):
            kernels.paged_attention(query[: num_tokens if longest > 1 else num_seqs], *cache, plan, form)
    spare = torch.empty(9, dtype=torch.int32)
    edits = LogitEdits(
        step.state.masks, out.mask_row[:num_rows], spare[: num_rows + 1], spare, spare.view(torch.float32),
        step.state.counts, out.count_slot[:num_rows], out.repetition[:num_rows], out.frequency[:num_rows],
        out.presence[:num_rows],
    )  # fmt: skip
    columns = (out.temperature, out.top_k, out.top_p, out.min_p, out.seeds, out.sample_positions)
    logits = torch.empty(num_rows, vocab, dtype=dtype)
    for some in (None, edits):
        sampling = SamplingTensors(*(column[:num_rows] for column in columns), all_greedy=True, edits=some)
        tokens = kernels.sample(logits, sampling)
    kernels.logprobs(logits, tokens, 5)
    kernels.count_tokens(step.state.counts, out.count_slot[:num_rows], tokens)
    kernels.write_words(step.state.last_tokens, out.sample_rows[:num_rows], tokens)


@pytest.mark.parametrize(
    ("dtype", "cache_dtype"),
    [(torch.bfloat16, torch.bfloat16), (torch.float32, torch.float32), (torch.bfloat16, torch.float8_e4m3fn)],
)
def test_torch_computes_nothing_but_products(
    monkeypatch: pytest.MonkeyPatch, hardware: Hardware, dtype: torch.dtype, cache_dtype: torch.dtype
) -> None:
    """Not even a copy: all that a step does on the GPU, beside its linear layers, are launches of our kernels.

    The launches are left out here; the launchers' own torch is what is looked at, on the CPU's memory.
    """
    launches: list[object] = []
    for launch, name in ((interpreter.GridExecutor, "__call__"), (JITFunction, "run")):
        monkeypatch.setattr(launch, name, lambda kernel, *_, **__: launches.append(kernel))
    step = random_step([(1, 5), (1, 40), (1, 0), (20, 20), (7, 30)], num_rows=8)
    out = untouched(step)
    with Operations() as found:
        every_operation(TritonKernels(hardware), step, out, (dtype, cache_dtype))
    assert found.names <= NO_WORK
    assert len(launches) > 20


def test_what_there_is_no_room_for_is_refused(device: torch.device, hardware: Hardware) -> None:
    kernels = TritonKernels(hardware)
    for head_dim in (257, 63, 512):
        with pytest.raises(ValueError, match="not supported"):
            kernels.pack_heads(AttentionHeads(2, 2, head_dim, None, None, 0.0))
    with pytest.raises(TypeError):
        kernels.paged_attention(torch.zeros(1, 2, 16), torch.empty(0), torch.empty(0), object(), AttentionForm(1.0))
