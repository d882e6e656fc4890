"""The set of operations that the engine calls, as a Protocol, and the tensors that describe a batch to them.

`kernels.reference` defines what each operation computes; this file says what it takes. A device's fast forms are chosen
once at start (`kernels.select`), never per call. Must not know sequences or the engine.

Letters of shapes: T tokens of the step, S sequences, H query heads, Hkv key/value heads, D head size.
"""

import dataclasses
import enum
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionMetadata:
    """Where the tokens of a ragged batch lie, in the batch and in the cache. int32 where nothing else is said.

    slot_mapping: [T] int64, where each token's K/V is written: block * block_size + offset; -1 is padding.
    query_start_loc: [S + 1], prefix sum of the query lengths; each sequence has at least one token.
    seq_lens: [S], length of K/V of each sequence including this step's tokens; 0 is a padding sequence of one token.
    block_table: [S, max_blocks], rows possibly strided; entries past a sequence's last block mean nothing.
    max_query_len, max_seq_len: the largest of each, for grids and buffers.
    num_decodes: so many sequences, the first ones, have one query token each; those after them may have any number.
    """

    slot_mapping: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    max_query_len: int
    max_seq_len: int
    num_decodes: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionForm:
    """What a layer's attention computes besides the softmax of its scores, which are scale * q k^T.

    scale: positive.
    window: a query sees the keys of its own position and of the window - 1 before it; 0 is all of them.
    soft_cap: scores become soft_cap * tanh(score / soft_cap) (Gemma 2); 0 leaves them.
    sinks: float32 [H]; each head's softmax has one more score, this, of no value (gpt-oss); None has none.
    key_scale, value_scale: what an e4m3 cache holds, times this, is K and V; 1 for caches of other types.
    """

    scale: float
    window: int = 0
    soft_cap: float = 0.0
    sinks: Tensor | None = None
    key_scale: float = 1.0
    value_scale: float = 1.0

    @property
    def is_plain(self) -> bool:
        """Whether it is softmax(scale * q k^T) v and nothing else."""
        return not self.window and not self.soft_cap and self.sinks is None and self.key_scale == self.value_scale == 1


@dataclasses.dataclass(frozen=True, slots=True)
class StepTables:
    """What the host says of a step: S sequences of T tokens, all int32, on the device.

    rows: [S], each sequence's row in `RowState`; padding has the last row, which no sequence owns.
    query_start_loc: [S + 1], prefix sum of the query lengths. seq_lens: [S], K/V including this step's tokens; 0 is
    padding, which still has one token.
    sample_places: [S], which of the step's sampled rows the sequence's last token makes; -1 for none.
    token_ids: [T]; -1 is the token that the sequence's row sampled last.
    """

    rows: Tensor
    query_start_loc: Tensor
    seq_lens: Tensor
    sample_places: Tensor
    token_ids: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class RowState:
    """What stays on the device from step to step, one row per running sequence and a last one for padding; int32.

    block_table: [R, max_blocks], contiguous rows. last_tokens: [R], the token that the row sampled last.
    sampling: [R, 10], see `SamplingColumn`. masks: [R, ceil(vocab / 32)], see `LogitEdits.bitmask`.
    counts: [R, vocab], see `LogitEdits.counts`.
    """

    block_table: Tensor
    last_tokens: Tensor
    sampling: Tensor
    masks: Tensor
    counts: Tensor


class SamplingColumn(enum.IntEnum):
    """Columns of `RowState.sampling`: bits of float32, integers, the two halves of the seed (low first), flags."""

    TEMPERATURE = 0
    TOP_P = 1
    MIN_P = 2
    TOP_K = 3
    SEED = 4
    REPETITION = 6
    FREQUENCY = 7
    PRESENCE = 8
    FLAGS = 9


NUM_SAMPLING_COLUMNS = 10
HAS_COUNTS = 1  # flags: the row's penalties read its counts
HAS_MASK = 2  # flags: the row may choose among the tokens of its mask only


@dataclasses.dataclass(frozen=True, slots=True)
class StepInputs:
    """What `expand_step` writes, for a step of any size up to the largest: buffers that stay where they are.

    input_ids, positions, slot_mapping: int64 [max tokens]. block_table: int32 [max sequences, max_blocks].
    The rest has one entry per sampled row, [max sequences]: logits_indices int64, the token whose logits it needs;
    sample_rows int32, the sequence's row; and the fields of `SamplingTensors` and `LogitEdits` of the same names.
    """

    input_ids: Tensor
    positions: Tensor
    slot_mapping: Tensor
    block_table: Tensor
    logits_indices: Tensor
    sample_rows: Tensor
    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    sample_positions: Tensor
    mask_row: Tensor
    count_slot: Tensor
    repetition: Tensor
    frequency: Tensor
    presence: Tensor


@dataclasses.dataclass(frozen=True, slots=True)
class LogitEdits:
    """What changes logits before the choice, in a form of fixed shapes, all contiguous; rows: of the logits.

    bitmask: int32 [masks, ceil(vocab / 32)], bit t % 32 of word t // 32 set where token t is allowed; mask_row: int32
    [rows], the row of `bitmask`, -1 for none.
    bias_start: int32 [rows + 1]; entries [bias_start[r], bias_start[r + 1]) of bias_ids int32 [capacity] and
    bias_values float32 [capacity] are row r's, no token twice; -inf bans.
    counts: int32 [slots, vocab], 2 * how often the output holds the token + 1 if the prompt does; count_slot: int32
    [rows], the row of `counts`, -1 for none. repetition, frequency, presence: float32 [rows]; 1, 0 and 0 are none.
    """

    bitmask: Tensor
    mask_row: Tensor
    bias_start: Tensor
    bias_ids: Tensor
    bias_values: Tensor
    counts: Tensor
    count_slot: Tensor
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
    edits: what changes the logits of some rows first, greedy ones too; None where no row asks.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    seeds: Tensor
    positions: Tensor
    all_greedy: bool
    edits: LogitEdits | None = None


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


@dataclasses.dataclass(frozen=True, slots=True)
class AttentionHeads:
    """How a layer's fused projection is cut into heads: [T, (H + 2 * Hkv) * D], queries, keys, then values.

    query_norm, key_norm: weights [D] of the RMS norm that each query and key head gets before the rotation, or None.
    key_scale, value_scale: K and V are divided by these before an e4m3 cache takes them.
    """

    num_heads: int
    num_kv_heads: int
    head_dim: int
    query_norm: Tensor | None
    key_norm: Tensor | None
    eps: float
    key_scale: float = 1.0
    value_scale: float = 1.0


class PackedLinear(Protocol):
    """Weights of one linear layer in the form that the device's kernel wants, and that kernel."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [T, in_features] to [T, out_features], of the same dtype."""
        ...


class RotateAndStore(Protocol):
    """What stands between the fused projection and attention, for one layer's heads."""

    def __call__(
        self, qkv: Tensor, tables: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], slot_mapping: Tensor
    ) -> Tensor:
        """Norm and rotate queries and keys, write keys and values to the cache; returns the queries [T, H, D].

        The tables are [T, R / 2]: the first R dimensions of each head are rotated, the others stay (partial RoPE).
        `qkv` may be overwritten, and the queries may be a view of it.
        """
        ...


class Kernels(Protocol):
    """What the engine computes with. `kernels.reference` holds the definition of each operation."""

    def pack_linear(self, weights: Sequence[Tensor], bias: Tensor | None, *, is_head: bool = False) -> PackedLinear:
        """Pack weights [part, in_features], joined along their outputs, once, at load; they are not kept if possible.

        bias: [sum of the parts]. is_head: the language-model head, which is the most sensitive to quantization.
        """
        ...

    def pack_heads(self, heads: AttentionHeads) -> RotateAndStore:
        """Prepare the step between a layer's projection and its attention."""
        ...

    def kv_cache_shapes(
        self, num_blocks: int, block_size: int, num_kv_heads: int, head_dim: int
    ) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of a layer's K and V cache, blocks first. What lies in a block is the kernels' own business."""
        ...

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """Root-mean-square norm of x [T, size] over the last dimension, times weight [size].

        Gemma's form, times 1 + w, is a weight of 1 + w in float32, computed at load.
        """
        ...

    def add_rms_norm(self, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(norm of x + residual, x + residual). `residual` may be overwritten."""
        ...

    def rope_tables(self, positions: Tensor, inv_freq: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """(cos, sin), float32 [T, D / 2] each, computed once per step and used by every layer."""
        ...

    def silu_and_mul(self, gate_up: Tensor) -> Tensor:
        """silu(gate) * up for gate_up [T, 2 * width], the gate in the first half."""
        ...

    def gelu_and_mul(self, gate_up: Tensor) -> Tensor:
        """gelu(gate) * up in GELU's tanh form, for gate_up as in `silu_and_mul`."""
        ...

    def plan_attention(self, metadata: AttentionMetadata) -> object:
        """What `paged_attention` needs of a step, computed once and used by every layer of that step only."""
        ...

    def paged_attention(
        self, query: Tensor, key_cache: Tensor, value_cache: Tensor, plan: object, form: AttentionForm
    ) -> Tensor:
        """Causal attention of query [T, H, D] over the caches; returns [T, H * D]."""
        ...

    def sample(self, logits: Tensor, sampling: SamplingTensors) -> Tensor:
        """One token id per row of logits [rows, vocab]; int64 [rows]. Leaves `logits` as they are."""
        ...

    def logprobs(self, logits: Tensor, token_ids: Tensor, num_top: int) -> Logprobs:
        """Log-probabilities of token_ids int64 [rows] and of the `num_top` most likely tokens of each row."""
        ...

    def expand_step(
        self, tables: StepTables, state: RowState, block_size: int, max_blocks: int, out: StepInputs
    ) -> None:
        """From what the host says of a step to what the other operations read; `out` keeps its other entries.

        max_blocks: at most so many blocks has any sequence of the step. Padding gets token 0, position 0 and slot -1.
        """
        ...

    def write_words(self, words: Tensor, places: Tensor, values: Tensor) -> None:
        """words[places[i]] = values[i], for int32 words [n] and places [m]; values of any integer type [m].

        No place comes twice, but with the same value.
        """
        ...

    def count_tokens(self, counts: Tensor, slots: Tensor, token_ids: Tensor) -> None:
        """Count one more token of the output in `counts` (see `LogitEdits`): one launch.

        slots: int32 [rows], none twice, -1 for rows that count nothing; token_ids: int64 [rows].
        """
        ...
