"""Sampling, and log-probabilities, on a GPU: the forms of `reference.sample` and `reference.logprobs`."""

from kernels.gpu.sampling.edits import update_counts
from kernels.gpu.sampling.inputs import LogitEdits, SamplerInputs, from_sampling_tensors
from kernels.gpu.sampling.sampler import compile_cases, sample

__all__ = ["LogitEdits", "SamplerInputs", "compile_cases", "from_sampling_tensors", "sample", "update_counts"]
