"""Sampling, and log-probabilities, on a GPU: the forms of `reference.sample` and `reference.logprobs`."""

from kernels.gpu.sampling.cases import compile_cases
from kernels.gpu.sampling.edits import update_counts
from kernels.gpu.sampling.inputs import LogitEdits, SamplerInputs, empty_inputs, from_sampling_tensors
from kernels.gpu.sampling.logprobs import logprobs
from kernels.gpu.sampling.sampler import sample

__all__ = [
    "LogitEdits",
    "SamplerInputs",
    "compile_cases",
    "empty_inputs",
    "from_sampling_tensors",
    "logprobs",
    "sample",
    "update_counts",
]
