"""Inputs of the sampler without content: for compiling, and for a graph's static buffers. Must not know sequences."""

import torch
from torch import Tensor

from kernels.interface import LogitEdits, SamplingTensors


def empty_inputs(num_rows: int, vocab: int, device: str | torch.device, *, with_edits: bool) -> SamplingTensors:
    """Uninitialised inputs of the right types."""

    def column(dtype: torch.dtype, size: int = num_rows) -> Tensor:
        return torch.empty(size, dtype=dtype, device=device)

    edits = None
    if with_edits:
        edits = LogitEdits(
            bitmask=torch.empty(num_rows, -(-vocab // 32), dtype=torch.int32, device=device),
            mask_row=column(torch.int32),
            bias_start=column(torch.int32, num_rows + 1),
            bias_ids=column(torch.int32, 1024),
            bias_values=column(torch.float32, 1024),
            counts=torch.empty(num_rows, vocab, dtype=torch.int32, device=device),
            count_slot=column(torch.int32),
            repetition=column(torch.float32),
            frequency=column(torch.float32),
            presence=column(torch.float32),
        )
    return SamplingTensors(
        temperature=column(torch.float32),
        top_k=column(torch.int32),
        top_p=column(torch.float32),
        min_p=column(torch.float32),
        seeds=column(torch.int64),
        positions=column(torch.int64),
        all_greedy=False,
        edits=edits,
    )
