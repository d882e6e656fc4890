"""Sampling, and log-probabilities, on a GPU: the forms of `reference.sample` and `reference.logprobs`."""

from kernels.gpu.sampling.cases import compile_cases
from kernels.gpu.sampling.edits import count_tokens
from kernels.gpu.sampling.inputs import empty_inputs
from kernels.gpu.sampling.logprobs import logprobs
from kernels.gpu.sampling.sampler import sample

__all__ = [
    "compile_cases",
    "count_tokens",
    "empty_inputs",
    "logprobs",
    "sample",
]
