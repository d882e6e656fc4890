"""The paged KV cache's book-keeping: which block belongs to which sequence.

Knows block ids and counts. Must not know tensors (the runner owns them), requests or time.

    block ids   0          null block: padding rows of a batch point at it; never handed out
                1..n-1     free, or referenced by exactly one sequence
"""

from engine.sequence import Sequence

NULL_BLOCK_ID = 0


class BlockPool:
    """All physical blocks but the null block, handed out most recently freed first.

    Their memory is warm, and blocks that no load has ever needed stay pages that the system never had to provide.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError("the KV cache needs at least one block besides the null block")
        self.num_usable_blocks = num_blocks - 1
        self._free = list(range(num_blocks - 1, 0, -1))
        self._is_free = [False, *[True] * (num_blocks - 1)]

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated now."""
        return len(self._free)

    def allocate(self, num_blocks: int) -> list[int]:
        """That many block ids. The caller has checked `num_free_blocks`; IndexError otherwise."""
        block_ids = [self._free.pop() for _ in range(num_blocks)]
        for block_id in block_ids:
            self._is_free[block_id] = False
        return block_ids

    def free(self, block_ids: list[int]) -> None:
        """Give blocks back. Raises ValueError on a block that is not in use: a double free corrupts other sequences."""
        for block_id in block_ids:
            if block_id == NULL_BLOCK_ID or self._is_free[block_id]:
                raise ValueError(f"block {block_id} is not in use")
            self._is_free[block_id] = True
            self._free.append(block_id)


class KVCacheManager:
    """Gives sequences the blocks that their tokens need, and takes them back."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def grow(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make the block table reach `num_tokens` tokens; False, and nothing changed, if too few blocks are free."""
        num_missing = self.num_blocks_for(num_tokens) - len(sequence.block_ids)
        if num_missing > self.pool.num_free_blocks:
            return False
        if num_missing > 0:
            sequence.block_ids.extend(self.pool.allocate(num_missing))
        return True

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of the sequence back; its K/V is gone."""
        self.pool.free(sequence.block_ids)
        sequence.block_ids.clear()
        sequence.num_computed_tokens = 0
