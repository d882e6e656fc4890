"""The paged KV cache's book-keeping: which block belongs to which sequences, and which block holds which tokens.

A block's K/V depends on its tokens and on all tokens before it. So a full block has a name, its hash: a chain over
(hash of the block before, tokens), which begins with what else decides the K/V or who may see it. A sequence that needs
a block of that name takes the block itself, by reference, and does not compute it.

Nobody writes into a block that has a name or a second reader: only full blocks get a name, and only named blocks are
shared. Knows block ids, counts and hashes. Must not know tensors (the runner owns them), queues or time.
"""

import hashlib
import struct
from collections import OrderedDict, deque

from engine.sequence import Sequence

NULL_BLOCK_ID = 0
# Sessions whose turns begin alike share blocks; the names of all turns take no more memory than so many per block.
_NAMES_PER_BLOCK = 4


class BlockPool:
    """All physical blocks but block 0, the null block, which padding points at and which is never handed out.

        free        referenced by nobody, no hash: handed out most recently freed first
        cached      referenced by nobody, has a hash: handed out least recently used first, once no free one is left
        kept        the same of blocks that were freed to be kept: handed out once no cached one is left either
        in use      referenced by one sequence or, if it has a hash, by several

    Most recently freed first, for that memory is warm, and blocks that no load has ever needed stay pages that the
    system never had to provide. At most half of all blocks are kept, so that everybody else's prefixes have their
    place; the least recently kept one becomes a cached one for a new one.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 2:
            raise ValueError("the KV cache needs at least one block besides the null block")
        self.num_usable_blocks = num_blocks - 1
        self._free = list(range(num_blocks - 1, 0, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._max_num_kept = self.num_usable_blocks // 2
        self._ref_counts = [0] * num_blocks
        self._hashes: list[bytes | None] = [None] * num_blocks
        self._by_hash: dict[bytes, int] = {}

    @property
    def num_free_blocks(self) -> int:
        """Blocks that can be allocated now, the cached and the kept ones among them."""
        return len(self._free) + len(self._cached) + len(self._kept)

    @property
    def num_cached_blocks(self) -> int:
        """Blocks that nobody references and that can still be found by their hash."""
        return len(self._cached) + len(self._kept)

    @property
    def num_kept_blocks(self) -> int:
        """Those of the cached blocks that are handed out last."""
        return len(self._kept)

    def ref_count(self, block_id: int) -> int:
        """How many sequences hold the block."""
        return self._ref_counts[block_id]

    def hash_of(self, block_id: int) -> bytes | None:
        """The block's name, if it has one."""
        return self._hashes[block_id]

    def allocate(self, num_blocks: int) -> list[int]:
        """That many block ids without hash, one reference each.

        The caller has checked `num_free_blocks`; KeyError otherwise.
        """
        block_ids = []
        for _ in range(num_blocks):
            if self._free:
                block_id = self._free.pop()
            else:
                block_id, _ = (self._cached or self._kept).popitem(last=False)
                self._forget(block_id)
            self._ref_counts[block_id] = 1
            block_ids.append(block_id)
        return block_ids

    def free(self, block_ids: list[int], *, keep: bool = False) -> None:
        """Give one reference to each of them back; `keep` those that have a name and now no other holder.

        The last of the list is forgotten first: a prefix is worth more than what follows it, which is never found
        without it. Raises ValueError on a block that is not in use: a double free corrupts other sequences.
        """
        for block_id in reversed(block_ids):
            if self._ref_counts[block_id] <= 0:
                raise ValueError(f"block {block_id} is not in use")
            self._ref_counts[block_id] -= 1
            if self._ref_counts[block_id] > 0:
                continue
            if self._hashes[block_id] is None:
                self._free.append(block_id)
            elif keep:
                self._keep(block_id)
            else:
                self._cached[block_id] = None

    def _keep(self, block_id: int) -> None:
        self._kept[block_id] = None
        if len(self._kept) > self._max_num_kept:
            oldest, _ = self._kept.popitem(last=False)
            self._cached[oldest] = None

    def let_go(self, block_hash: bytes) -> None:
        """Keep the block of that name no longer, if there is one and it is kept: it is a cached one, just used."""
        block_id = self._by_hash.get(block_hash)
        if block_id is not None and block_id in self._kept:
            del self._kept[block_id]
            self._cached[block_id] = None

    def find(self, block_hash: bytes) -> int | None:
        """The block of that name."""
        return self._by_hash.get(block_hash)

    def share(self, block_ids: list[int]) -> None:
        """Take one more reference to each of these blocks, which `find` gave."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                del (self._kept if block_id in self._kept else self._cached)[block_id]
            self._ref_counts[block_id] += 1

    def name(self, block_id: int, block_hash: bytes) -> None:
        """Let a block in use be found by `block_hash`, unless another block has that name already."""
        if block_hash not in self._by_hash:
            self._hashes[block_id] = block_hash
            self._by_hash[block_hash] = block_id

    def forget(self, block_id: int) -> None:
        """Take the block's name away: what it holds is not what the name says."""
        self._forget(block_id)
        for idle in (self._cached, self._kept):
            if block_id in idle:
                del idle[block_id]
                self._free.append(block_id)

    def _forget(self, block_id: int) -> None:
        block_hash, self._hashes[block_id] = self._hashes[block_id], None
        if block_hash is not None:
            del self._by_hash[block_hash]


class KVCacheManager:
    """Gives sequences the blocks that their tokens need, shared where their content is there, and takes them back.

    Blocks get their names when the step that fills them is scheduled, so that the sequences of one step share too: in
    each layer a step writes all its K/V before it reads any. A block whose last token was sampled by a step still under
    way gets its name when that token is known. Names belong to the step that fills their blocks until `commit` says
    that it has been computed; those of a step that was not are taken back.

    Blocks that are given back are handed out again at once, though a step under way may still write to them: steps are
    computed in the order of their launches, so whatever the next owner writes comes later.
    """

    def __init__(self, num_blocks: int, block_size: int, *, enable_prefix_caching: bool = True) -> None:
        self.block_size = block_size
        self.pool = BlockPool(num_blocks)
        self.num_prefix_query_tokens = 0
        self.num_prefix_hit_tokens = 0
        self._pack = struct.Struct(f"{block_size}i").pack  # a block's tokens, each in the 4 bytes of a C int
        self._is_caching = enable_prefix_caching
        self._uncommitted: deque[list[int]] = deque()  # named blocks by step, the oldest first
        # Open sessions, and the names of the blocks of each one's last turn, the oldest turn first.
        self._sessions: set[str] = set()
        self._turns: OrderedDict[str, list[bytes]] = OrderedDict()
        self._num_turn_names = 0
        self._max_num_turn_names = _NAMES_PER_BLOCK * self.pool.num_usable_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def admit(self, sequence: Sequence, num_spare_blocks: int) -> bool:
        """Give a sequence without blocks those of all its tokens, and count what the cache has of them as computed.

        False, and nothing changed, if fewer than `num_spare_blocks` would be left.
        """
        found = self._find(sequence, 0)
        num_missing = self.num_blocks_for(sequence.num_tokens) - len(found)
        num_idle = sum(self.pool.ref_count(block_id) == 0 for block_id in found)
        if num_missing + num_idle + num_spare_blocks > self.pool.num_free_blocks:
            return False
        self.pool.share(found)
        sequence.block_ids = found + self.pool.allocate(num_missing)
        sequence.num_computed_tokens = len(found) * self.block_size
        self.num_prefix_query_tokens += sequence.num_tokens if self._is_caching else 0
        self.num_prefix_hit_tokens += sequence.num_computed_tokens
        return True

    def grow(self, sequence: Sequence) -> bool:
        """Add a block to a sequence; False, and nothing changed, if none is free."""
        if not self.pool.num_free_blocks:
            return False
        sequence.block_ids += self.pool.allocate(1)
        return True

    def catch_up(self, sequence: Sequence) -> None:
        """Before the next chunk of a prompt: skip what others have computed of it since the last one.

        So prompts that begin alike, and n samples of one prompt, do no work twice though all of them are under way.
        """
        first = sequence.num_computed_tokens // self.block_size
        found = self._find(sequence, first)
        if not found:
            return
        end = first + len(found)
        own = sequence.block_ids
        self.pool.share(found)
        self.pool.free(own[first:end])
        sequence.block_ids = [*own[:first], *found, *own[end:]]
        self.num_prefix_hit_tokens += end * self.block_size - sequence.num_computed_tokens
        sequence.num_computed_tokens = end * self.block_size

    def begin_step(self, num_in_flight: int) -> None:
        """A step is scheduled while the `num_in_flight` last ones launched are not committed; others are discarded."""
        self.discard_uncommitted(num_in_flight)
        self._uncommitted.append([])

    def register(self, sequence: Sequence, first: int, end: int) -> None:
        """Name the blocks that tokens `first` to `end` - 1 of the sequence fill, which the newest step computes."""
        first_block, end_block = first // self.block_size, end // self.block_size
        if first_block >= end_block or not self._is_caching:
            return
        hashes = self._hashes(sequence, end_block)
        for index in range(first_block, end_block):
            self._uncommitted[-1].append(sequence.block_ids[index])
            self.pool.name(sequence.block_ids[index], hashes[index])

    def commit(self) -> None:
        """The oldest step has been computed."""
        self._uncommitted.popleft()

    def discard_uncommitted(self, num_in_flight: int) -> None:
        """All steps but the oldest `num_in_flight` were not computed to their end: nobody may find their blocks."""
        while len(self._uncommitted) > num_in_flight:
            for block_id in self._uncommitted.pop():
                self.pool.forget(block_id)

    def release(self, sequence: Sequence) -> None:
        """Take all blocks of the sequence back; what nobody else has named or holds of its K/V is gone.

        Those of a turn of an open session are kept, in place of the turn before.
        """
        session_id = sequence.request.session_id
        is_kept = session_id in self._sessions
        if is_kept and sequence.block_ids:
            self._note_turn(session_id, sequence.block_hashes.copy())
        self.pool.free(sequence.block_ids, keep=is_kept)
        sequence.block_ids = []
        sequence.num_computed_tokens = 0

    def open_session(self, session_id: str) -> None:
        """Keep the blocks of this session's last turn while nobody else needs the memory."""
        self._sessions.add(session_id)

    def close_session(self, session_id: str) -> None:
        """Keep them no longer. A session that is not open is ignored."""
        self._sessions.discard(session_id)
        self._note_turn(session_id, [])

    def _note_turn(self, session_id: str, names: list[bytes]) -> None:
        before = self._turns.pop(session_id, [])
        self._num_turn_names += len(names) - len(before)
        released = set(before).difference(names)
        if names:
            self._turns[session_id] = names
        while self._num_turn_names > self._max_num_turn_names:
            _, oldest = self._turns.popitem(last=False)
            self._num_turn_names -= len(oldest)
            released.update(oldest)
        for name in released:
            self.pool.let_go(name)

    def _find(self, sequence: Sequence, first: int) -> list[int]:
        """The blocks that hold the sequence's tokens from logical block `first` on, as far as the cache has them.

        At least one token stays to be computed: the next one comes from its logits. A request that wants the prompt's
        log-probabilities needs the logits of all of them.
        """
        if not self._is_caching or sequence.request.params.prompt_logprobs is not None:
            return []
        found: list[int] = []
        end = (sequence.num_tokens - 1) // self.block_size
        hashes = self._hashes(sequence, end)
        for index in range(first, end):
            block_id = self.pool.find(hashes[index])
            if block_id is None:
                break
            found.append(block_id)
        return found

    def _hashes(self, sequence: Sequence, num_blocks: int) -> list[bytes]:
        """At least the first `num_blocks` hashes of the sequence's blocks; each is computed once."""
        hashes = sequence.block_hashes
        start = len(hashes)
        if start >= num_blocks:
            return hashes
        if start <= sequence.num_prompt_tokens // self.block_size < num_blocks:
            # The samples of a request share the list of the prompt's hashes; what follows is each one's own.
            hashes = sequence.block_hashes = hashes.copy()
        size, pack, token_ids = self.block_size, self._pack, sequence.token_ids
        parent = hashes[-1] if hashes else _root(sequence)
        for first in range(start * size, num_blocks * size, size):
            parent = hashlib.sha256(parent + pack(*token_ids[first : first + size])).digest()
            hashes.append(parent)
        return hashes


def _root(sequence: Sequence) -> bytes:
    """What the chain of a sequence begins with: all but the tokens that its K/V, or who may share it, depends on.

    A byte longer than a name, so that no salt, written as a name and tokens, makes a first block pass for a later one.
    """
    return b"\0" + hashlib.sha256(sequence.request.cache_salt.encode("utf-8", "surrogatepass")).digest()
