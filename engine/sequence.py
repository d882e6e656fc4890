"""One token stream being generated, and what a step is made of.

Knows token ids, counts and block ids. Must not know tensors, the scheduler's queues or the sockets.
"""

import dataclasses
import sys
from collections.abc import Sequence as SequenceABC

from engine.api import FinishReason, GenerateRequest, TokenLogprobs

NO_ROW = -1
_GOLDEN_64 = 0x9E3779B97F4A7C15


@dataclasses.dataclass(eq=False, slots=True)
class Sequence:
    """One of the n token streams of a request; mutable, owned by the engine thread alone.

    client_id: the connection that asked for it; results go back there.
    index: which of the request's n samples.
    seed: 64-bit key of its random numbers, fixed at creation.
    token_ids: prompt and output, as far as the host knows them.
    num_pending_tokens: sampled by steps that the host has not collected yet; they follow `token_ids`, and until then
        only the device knows them.
    num_computed_tokens: how many tokens have their K/V in the cache, or get it from a step that has been launched.
    max_num_tokens: it ends with the token that makes it so long, if not before.
    stop_token_ids: it ends with one of these, once it has its min_tokens.
    waits_for_tokens: how its next token is sampled depends on the last one in a way that only the host can work out, so
        that no step of it is launched while a token is pending.
    block_ids: block table; logical block i holds tokens [i * block_size, (i + 1) * block_size). The list only ever
        grows; any other change is a new list, so that identity and length tell whether a copy of it is current.
    block_hashes: names of its full blocks, as far as they were needed; the samples of a request share those of the
        prompt.
    num_cached_tokens: how many prompt tokens it found in the prefix cache when it was first admitted.
    num_preemptions: how often its blocks were taken back.
    row: its fixed row in the runner's per-sequence state while it is running, else NO_ROW.
    order: its place among all sequences, lowest first; the scheduler gives it once, for good.
    prompt_logprobs: those of prompt tokens 1, 2, ... so far, until its first output takes them along.
    """

    request: GenerateRequest
    client_id: int
    index: int
    seed: int
    token_ids: list[int]
    num_prompt_tokens: int
    num_pending_tokens: int = 0
    num_computed_tokens: int = 0
    max_num_tokens: int = sys.maxsize
    stop_token_ids: frozenset[int] = frozenset()
    waits_for_tokens: bool = False
    block_ids: list[int] = dataclasses.field(default_factory=list)
    block_hashes: list[bytes] = dataclasses.field(default_factory=list)
    num_cached_tokens: int = 0
    num_preemptions: int = 0
    row: int = NO_ROW
    order: tuple[int, int, int] = (0, 0, 0)
    finish_reason: FinishReason | None = None
    prompt_logprobs: list[TokenLogprobs] = dataclasses.field(default_factory=list)

    @classmethod
    def from_request(cls, request: GenerateRequest, client_id: int, index: int, base_seed: int) -> "Sequence":
        """Sample `index` of `request`. `base_seed` is the request's seed, or a random one where it names none.

        Sample 0 uses the seed as it is and the others a key derived from it, so that n samples differ and sample 0
        equals the request with n = 1.
        """
        return cls(
            request=request,
            client_id=client_id,
            index=index,
            seed=(base_seed + index * _GOLDEN_64) % 2**64,
            token_ids=list(request.prompt_token_ids),
            num_prompt_tokens=len(request.prompt_token_ids),
        )

    @classmethod
    def samples_of(cls, request: GenerateRequest, client_id: int, base_seed: int) -> "list[Sequence]":
        """The n samples of a request, which hash their prompt together."""
        samples = [cls.from_request(request, client_id, index, base_seed) for index in range(request.params.n)]
        for sample in samples[1:]:
            sample.block_hashes = samples[0].block_hashes
        return samples

    @property
    def num_tokens(self) -> int:
        """Prompt and output so far, with the pending tokens."""
        return len(self.token_ids) + self.num_pending_tokens

    @property
    def num_output_tokens(self) -> int:
        """Output so far, with the pending tokens."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_prompt_tokens

    @property
    def num_uncomputed_tokens(self) -> int:
        """Tokens whose K/V is not in the cache yet: 1 while decoding, more while prefilling."""
        return len(self.token_ids) + self.num_pending_tokens - self.num_computed_tokens


@dataclasses.dataclass(frozen=True, slots=True)
class SchedulerOutput:
    """One step: how many tokens of which sequences.

    scheduled: (sequence, num_tokens) pairs; the tokens are
    `token_ids[num_computed_tokens : num_computed_tokens + num_tokens]`, and their blocks are already in `block_ids`.
    num_decodes: at least so many pairs at the beginning are the one token that their sequence lacks.
    """

    scheduled: tuple[tuple[Sequence, int], ...]
    num_decodes: int = 0

    @property
    def num_batched_tokens(self) -> int:
        """Tokens of the whole step."""
        return sum(num_tokens for _, num_tokens in self.scheduled)


@dataclasses.dataclass(frozen=True, slots=True)
class SampledTokens:
    """What a step sampled: one entry per scheduled pair, in order.

    A sequence whose scheduled tokens reach its last token has one new token; one still inside its prompt has none. The
    lists are handed on as they are, so a runner does not keep them.
    logprobs: per pair one entry for each of its new tokens; empty where its request asks for none.
    prompt_logprobs: per pair the entries of the prompt tokens that this step's tokens predict (all its scheduled tokens
        but those at or after the prompt's last one); empty where its request asks for none, or where the sequence has
        output and therefore had them.
    Both are empty as a whole when nobody in the step asks.
    """

    token_ids: SequenceABC[list[int]]
    logprobs: SequenceABC[SequenceABC[TokenLogprobs]] = ()
    prompt_logprobs: SequenceABC[SequenceABC[TokenLogprobs]] = ()
