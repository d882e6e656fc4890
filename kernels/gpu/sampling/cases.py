"""What of sampling is compiled ahead of time."""

import functools
from collections.abc import Iterator

import torch

from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.gpu.sampling.edits import count_tokens
from kernels.gpu.sampling.inputs import empty_inputs
from kernels.gpu.sampling.logprobs import logprobs
from kernels.gpu.sampling.sampler import sample


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """A vocabulary of 151936 tokens, logits in bfloat16 and float32, with and without edits; and what goes with it."""
    vocab = 151936
    slots = torch.empty(8, dtype=torch.int32, device="meta")
    tokens = torch.empty(8, dtype=torch.int64, device="meta")
    for dtype in (torch.bfloat16, torch.float32):
        logits = torch.empty(8, vocab, dtype=dtype, device="meta")
        name = f"{str(dtype).removeprefix('torch.')} {vocab}"
        for with_edits in (False, True):
            inputs = empty_inputs(8, vocab, "meta", with_edits=with_edits)
            yield CompileCase(
                f"{name}{', with edits' if with_edits else ''}", functools.partial(sample, logits, inputs)
            )
        yield CompileCase(f"{name}, log-probabilities", functools.partial(logprobs, logits, tokens, 20))
    counts = torch.empty(8, vocab, dtype=torch.int32, device="meta")
    yield CompileCase("counts", functools.partial(count_tokens, counts, slots, tokens))
