"""Linear layers: cuBLAS, and for few rows a split-K product of ours where that was measured to be faster.

With at most 64 rows every weight is read once and used little: the product takes as long as the weights take to load.
A program multiplies block_n rows of the weight with all of x, over one part of K; parts write float32 sums to a
workspace, and a second kernel adds them in a fixed order, so that a result is the same every time, as it would not be
with atomic additions. The weight is the left operand (y^T = W x^T): its 64 rows fill a warp group's instruction on
Hopper, which reads both operands from shared memory, while x pads to 16, 32 or 64 columns.

Other types of weights change `_skinny` in one place, where the weight's tile is loaded: e4m3 would be cast to x's type
there (or multiply an e4m3 x as it is), with the scale of each row applied where the sums are stored; int4 would load
half as many bytes, of which byte k holds columns k and k + group / 2 of its group, and make two products of two tiles
of x. Sums, workspace and second kernel stay. Must not know models.
"""

import functools
from collections.abc import Iterator, Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import Hardware
from kernels.gpu.linear_table import MAX_ROWS, LinearTable, SkinnyConfig, bucket_of, default_config, padded_rows

_REDUCE_BLOCK = 512


@triton.jit(do_not_specialize=["M"], do_not_specialize_on_alignment=["M"])
def _skinny(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    M,
    N,
    K,
    x_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """One tile of y^T: `IS_SPLIT` leaves this part's float32 sums in out [parts, M, N], else out is y [M, N]."""
    part = tl.program_id(1)
    # Whole tiles to each part, in one run: a row's bytes are read in order. The last part may get fewer, or none.
    part_size = tl.cdiv(tl.cdiv(K, BLOCK_K), tl.num_programs(1)) * BLOCK_K
    start = part * part_size
    end = tl.minimum(start + part_size, K)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m = tl.arange(0, BLOCK_M)
    # The weight's rows past the last are the last once more, a load without a mask of rows; nothing of them is stored.
    weight_row = tl.minimum(n, N - 1).to(tl.int64) * K
    x_row = m.to(tl.int64) * x_stride
    total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
    for first in range(start, end, BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        inside = (k < K)[None, :]
        # Each weight is used once per step; x and what the next kernel reads should stay in the cache instead. (Where
        # the load becomes an asynchronous copy, triton 3.7 drops the hint.)
        weight = tl.load(
            weight_ptr + weight_row[:, None] + k[None, :], mask=inside, other=0.0, eviction_policy="evict_first"
        )
        # Rows that x does not have cost no traffic: a copy of all 16 would add a quarter to one row's.
        x = tl.load(x_ptr + x_row[:, None] + k[None, :], mask=inside & (m < M)[:, None], other=0.0)
        total = tl.dot(weight, tl.trans(x), total, input_precision="ieee")
    stored = (n < N)[:, None] & (m < M)[None, :]
    if IS_SPLIT:
        row = part.to(tl.int64) * M + m
        tl.store(out_ptr + row[None, :] * N + n[:, None], total, mask=stored)
    else:
        if HAS_BIAS:
            total += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)[:, None]
        y = total.to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + m.to(tl.int64)[None, :] * N + n[:, None], y, mask=stored)


@triton.jit(do_not_specialize=["M", "num_parts"], do_not_specialize_on_alignment=["M", "num_parts"])
def _add_parts(sums_ptr, bias_ptr, y_ptr, M, N, num_parts, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr):
    """`BLOCK` elements of one row of y [M, N]: the sum of sums [parts, M, N], first part to last, and bias."""
    row = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < N
    total = tl.zeros([BLOCK], tl.float32)
    for part in range(num_parts):
        total += tl.load(sums_ptr + (part * M + row) * N + n, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias_ptr + n, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * N + n, total.to(y_ptr.dtype.element_ty), mask=inside)


def skinny_matmul(
    x: Tensor, weight: Tensor, bias: Tensor | None, hardware: Hardware, config: SkinnyConfig | None = None
) -> Tensor:
    """See `reference.linear`: x [M, K] of at most 64 rows, each contiguous; weight [N, K], contiguous; bias [N].

    The same inputs give the same bits. `config`: None is `default_config`.
    """
    num_rows, k = x.shape
    n = weight.shape[0]
    if num_rows > MAX_ROWS:
        raise ValueError(f"a skinny product has at most {MAX_ROWS} rows, not {num_rows}")
    config = config or default_config(num_rows, n, k, hardware)
    y = torch.empty(num_rows, n, dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    is_split = config.split_k > 1
    sums = torch.empty(config.split_k, num_rows, n, dtype=torch.float32, device=x.device) if is_split else y
    _skinny[(triton.cdiv(n, config.block_n), config.split_k)](
        x,
        weight,
        bias,
        sums,
        num_rows,
        n,
        k,
        x.stride(0),
        BLOCK_M=padded_rows(num_rows),
        BLOCK_N=config.block_n,
        BLOCK_K=config.block_k,
        HAS_BIAS=bias is not None,
        IS_SPLIT=is_split,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    if is_split:
        # Four elements, 16 bytes of a sum, per thread.
        _add_parts[(triton.cdiv(n, _REDUCE_BLOCK), num_rows)](
            sums, bias, y, num_rows, n, config.split_k, BLOCK=_REDUCE_BLOCK, HAS_BIAS=bias is not None, num_warps=4
        )
    return y


class Linear:
    """A `PackedLinear`: weight [N, K] as it came, cuBLAS, and `skinny_matmul` for the rows where the table names it.

    The table holds for bfloat16 and float16, which load alike; others always go to cuBLAS.
    """

    def __init__(
        self, weights: Sequence[Tensor], bias: Tensor | None, hardware: Hardware, table: LinearTable | None = None
    ) -> None:
        """weights: [part, K] each, joined along their outputs. table: None measures nothing and is cuBLAS alone."""
        self.weight = weights[0].contiguous() if len(weights) == 1 else torch.cat(list(weights))
        self.bias = bias
        self._hardware = hardware
        has_table = table is not None and self.weight.dtype in (torch.bfloat16, torch.float16)
        self._configs = table.configs(*self.weight.shape) if table is not None and has_table else {}

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, K] to [T, N]."""
        if self._configs and 0 < x.shape[0] <= MAX_ROWS:
            config = self._configs.get(bucket_of(x.shape[0]))
            if config is not None:
                return skinny_matmul(x, self.weight, self.bias, self._hardware, config)
        return torch.nn.functional.linear(x, self.weight, self.bias)


def compile_cases(hardware: Hardware) -> Iterator[CompileCase]:
    """Each bucket of rows on Llama-3.1-8B's output projection, whose sums are split; the head's are not."""
    for num_rows in (16, 32, 64):
        for name, n, k in (("4096 x 4096", 4096, 4096), ("128256 x 4096", 128256, 4096)):
            x = torch.empty(num_rows, k, dtype=torch.bfloat16, device="meta")
            weight = torch.empty(n, k, dtype=torch.bfloat16, device="meta")
            launch = functools.partial(skinny_matmul, x, weight, None, hardware)
            yield CompileCase(f"bfloat16 {num_rows} x {name}", launch)
