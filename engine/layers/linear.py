"""Linear layers, the embedding table and the language-model head.

The kernels choose the packed form of the weights at load. Must not know what the layers are used for.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from engine.layers.weights import Weights
from kernels import Kernels


class Linear:
    """One linear layer, or several over the same input joined into one product.

    outputs: (weight's name without ".weight", rows) of each part; the result is their concatenation, [T, sum of rows].
    """

    def __init__(
        self,
        weights: Weights,
        outputs: Sequence[tuple[str, int]],
        in_features: int,
        bias: bool,
        kernels: Kernels,
    ) -> None:
        parts = weights.parts([(f"{name}.weight", rows) for name, rows in outputs], in_features)
        joined_bias = weights.keep_joined([(f"{name}.bias", rows) for name, rows in outputs]) if bias else None
        self._packed = kernels.pack_linear(parts, joined_bias)

    def __call__(self, x: Tensor) -> Tensor:
        """X [T, in_features] to [T, sum of rows]."""
        return self._packed(x)


class Embedding:
    """The table of token embeddings, [vocab_size, hidden_size]."""

    def __init__(self, weights: Weights, name: str, vocab_size: int, hidden_size: int) -> None:
        self.table = weights.keep(name + ".weight", (vocab_size, hidden_size))

    def __call__(self, input_ids: Tensor) -> Tensor:
        """Ids [T] to rows [T, hidden_size]."""
        return F.embedding(input_ids, self.table)


class LMHead:
    """Hidden states to logits, with the embedding's table where the model ties them.

    Kernels with a packed form of their own (the CPU's) copy a tied table, which the embedding still needs row by row;
    those that take a weight as it lies (a GPU's) share it.
    """

    def __init__(self, table: Sequence[Tensor], kernels: Kernels) -> None:
        """table: [rows, hidden_size], joined along the rows as `Weights.parts` gives them."""
        self._packed = kernels.pack_linear(table, None, is_head=True)

    def __call__(self, hidden: Tensor) -> Tensor:
        """[rows, hidden_size] to [rows, vocab_size]."""
        return self._packed(hidden)
