"""The set of operations that the engine calls, as a Protocol, and the tensors that describe a batch to them.

`kernels.reference` defines what each operation computes; this file says what it takes. A device's fast forms are chosen
once at start (`kernels.select`), never per call. Must not know sequences or the engine.

Letters of shapes: T tokens of the step, S sequences, H query heads, Hkv key/value heads, D head size.
"""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of a ragged batch lie, in the batch and in the cache. int32 where nothing else is said.

    slot_mapping: [T] int64, where each token's K/V is written: block * block_size + offset; -1 is padding.
    query_start_loc: [S + 1], prefix sum of the query lengths; each sequence has at least one token.
    seq_lens: [S], length of K/V of each sequence including this step's tokens.
    block_table: [S, max_blocks]; entries past a sequence's last block are 0, the null block.
    max_query_len, max_seq_len: the largest of each, for grids and buffers.
    """

    slot_mapping: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    max_query_len: int
    max_seq_len: int


@dataclasses.dataclass(frozen=True, slots=True)
class AllowedTokens:
    """Rows that may choose among some tokens only. rows: int64 [A], ascending; mask: bool [A, vocab]."""

    rows: Tensor
    mask: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class TokenBias:
    """What is added to single logits: rows int64 [B], ascending; token_ids int64 [B]; values float32 [B], -inf bans.

    No (row, token) occurs twice, so that the entries may be applied in any order and all at once.
    """

    rows: Tensor
    token_ids: Tensor
    values: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class Penalties:
    """The tokens that sequences hold already, each (row, token) once, and what that costs them.

    rows: int64 [E], ascending; token_ids: int64 [E]; counts: int32 [E], how often the output holds the token: 0 where
    only the prompt does.
    repetition, frequency, presence: float32 [rows of logits]; 1, 0 and 0 are none.
    """

    rows: Tensor
    token_ids: Tensor
    counts: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class SamplingTensors:
    """How each row of logits is sampled; every tensor is [rows].

    temperature: float32; 0 is greedy, and then the next five fields of the row mean nothing.
    top_k: int32; 0 keeps all tokens. top_p: float32 in (0, 1]; 1 keeps all tokens.
    min_p: float32 in [0, 1]; 0 keeps all tokens.
    seeds: int64, the 64 bits of the row's key. positions: int64, index of the new token in its sequence.
    all_greedy: every temperature is 0, known on the host.
    allowed, bias, penalties: what changes the logits of some rows first, greedy ones too; None where no row asks.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor
    all_greedy: bool
    allowed: AllowedTokens | None = None
    bias: TokenBias | None = None
    penalties: Penalties | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Logprobs:
    """Log-probabilities of rows of logits.

    chosen: float32 [rows], of the row's own token. ranks: int64 [rows], 1 + how many tokens are more likely than it.
    top_ids: int64, top: float32, both [rows, k]: the k most likely tokens, best first, ties by the lower id.
    """

    chosen: Tensor
    ranks: Tensor
    top_ids: Tensor
    top: Tensor


class PackedLinear(Protocol):
    """Weights of one linear layer in the form that the device's kernel wants, and that kernel."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in_features] to [T, out_features], of the same dtype."""
        ...


class Kernels(Protocol):
    """What the engine computes with. `kernels.reference` holds the definition of each operation."""

    def preferred_dtype(self, model_dtype: torch.dtype) -> torch.dtype:
        """`model_dtype` where the device computes in it well, else the type to convert the weights to."""
        ...

    def pack_linear(self, weight: Tensor, bias: Tensor | None) -> PackedLinear:
        """Pack weight [out_features, in_features], once, at load; `weight` is not kept if that can be helped."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm over the last dimension; `weight` is broadcast against `x`."""
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual). `residual` may be overwritten."""
        ...

    def rope_tables(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """The step's tables for `apply_rope`, computed once and used by every layer."""
        ...

    def apply_rope(self, heads: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
        """Rotate heads [T, heads, D]."""
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up for gate_up [T, 2 * width], the gate in the first half."""
        ...

    def store_kv(
        self, key: Tensor, value: Tensor, key_cache: Tensor, value_cache: Tensor, slot_mapping: Tensor
    ) -> None:
        """Write key and value [T, Hkv, D] into the caches [blocks, block_size, Hkv, D] at slot_mapping [T] int64."""
        ...

    def plan_attention(self, metadata: AttentionMetadata, block_size: int) -> object:
        """What `paged_attention` needs of a step, computed once and used by every layer of that step only."""
        ...

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, scale: float
    ) -> Tensor:
        """Causal attention of query [T, H, D] over the caches; returns [T, H * D]."""
        ...

    def sample(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """One token id per row of logits [rows, vocab]; int64 [rows]. Leaves `logits` as they are."""
        ...

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
        """Log-probabilities of token_ids int64 [rows] and of the `num_top` most likely tokens of each row."""
        ...
