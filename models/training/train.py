"""Trains Galley Tiny from nothing and writes a checkpoint; export.py makes a model directory of it.

`OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 python -m models.training.train --tokenizer TOKENIZER.json --out CHECKPOINT`
(without these two settings a busy neighbour makes a step five times slower). Progress is JSON lines on stdout.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

from models.training.batches import Batch, encode, make_batches, shuffled_full_batches
from models.training.chat import Conversation
from models.training.corpus import MIXES, conversation, copying_conversation
from models.training.draws import Draw
from models.training.heldout import SKILLS, make_rows
from models.training.network import Network, Shape
from models.training.optimizer import Optimizer, schedule
from models.training.tokenizer import copyable_pieces
from models.training.wordings import check_templates

NUM_STEPS = 5000
DECAY_SHARE = 0.6
REPORT_EVERY_STEPS = 50
GUARD_SHARE = 0.15  # of --max-minutes
CHUNK = 4000  # conversations made at a time
COPYING_SHARE_OF_FIRST_CHUNK = 0.3


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--stop-after", type=int, help="end at this step of the schedule; a second stage goes on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path, help="checkpoint to go on from (a second stage)")
    parser.add_argument("--max-minutes", type=float, default=24 * 60, help="guard: fall to rate 0 by then at any step")
    parser.add_argument("--mix", default="base", choices=sorted(MIXES))
    parser.add_argument("--decay-share", type=float, default=DECAY_SHARE, help="share of the steps with a falling rate")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--eval-every-steps", type=int, default=400)
    parser.add_argument("--dev-prompts", type=int, default=40, help="dev prompts per skill")
    return parser.parse_args()


def training_batches(tokenizer: Tokenizer, seed: int, mix: str, fresh: bool) -> Iterator[Batch]:
    """Endless batches of the corpus; the same seed gives the same ones."""
    draw, first = Draw(random.Random(seed), mix=mix, pieces=copyable_pieces(tokenizer)), fresh
    while True:
        copying = COPYING_SHARE_OF_FIRST_CHUNK if first else 0.0
        made = [copying_conversation(draw) if draw.chance(copying) else conversation(draw) for _ in range(CHUNK)]
        yield from shuffled_full_batches(encode(tokenizer, made), draw.rng)
        first = False


def batch_loss(network: Network, batch: Batch) -> torch.Tensor:
    """Mean cross-entropy of the tokens that are learned."""
    places = (batch.labels >= 0).nonzero()[:, 0]
    return F.cross_entropy(network.logits(network(batch.tokens, batch.length)[places]), batch.labels[places])


def dev_conversations(num_prompts: int, seed: int) -> dict[str, list[Conversation]]:
    """Dev prompts per skill with the answer appended, which alone is scored; evaluate.py does those with thinking."""
    made = {}
    for skill in SKILLS:
        if not skill.endswith("_thinking"):
            rows = make_rows(skill, "dev", num_prompts, seed)
            made[skill] = [_answered(row) for row in rows]
    return made


def _answered(row: dict[str, Any]) -> Conversation:
    messages = [*row["messages"], {"role": "assistant", "content": row["expected"]}]
    return Conversation(
        messages, row.get("tools", []), row.get("enable_thinking", False), set(range(len(messages) - 1))
    )


@torch.no_grad()
def dev_accuracy(network: Network, tokenizer: Tokenizer, dev: dict[str, list[Conversation]]) -> dict[str, float]:
    """Share of dev answers whose every token is the most likely one, which is what greedy generation would write."""
    accuracy = {}
    for skill, conversations in dev.items():
        right = total = 0
        for batch in make_batches(encode(tokenizer, conversations)):
            places = (batch.labels >= 0).nonzero()[:, 0]
            wrong = network.logits(network(batch.tokens, batch.length)[places]).argmax(-1) != batch.labels[places]
            right += batch.num_rows - len(set((places[wrong] // batch.length).tolist()))
            total += batch.num_rows
        accuracy[skill] = round(right / total, 3)
    return accuracy


class Run:
    """One training run: what it reports and when, and the schedule with its guard."""

    def __init__(self, options: argparse.Namespace, tokenizer: Tokenizer, network: Network) -> None:
        self._options, self._tokenizer, self._network = options, tokenizer, network
        self._dev = dev_conversations(options.dev_prompts, options.seed)
        self._start_s, self._paused_s = time.monotonic(), 0.0
        self._num_tokens, self._average_loss = 0, 0.0

    def factor(self, step: int) -> float:
        """Factor on the learning rates; 0 or less ends the run.

        The guard cuts a run short that its machine is too slow for, and still lets the learning rate fall to 0.
        """
        limit: float = self._options.max_minutes
        guard = (limit - (time.monotonic() - self._start_s) / 60) / (GUARD_SHARE * limit)
        return min(guard, schedule(step, self._options.steps, self._options.decay_share))

    def note(self, step: int, loss: float, num_tokens: int) -> None:
        """Takes the figures of a step, and reports at intervals."""
        self._num_tokens += num_tokens
        self._average_loss = loss if step == 0 else 0.97 * self._average_loss + 0.03 * loss
        if (step + 1) % self._options.eval_every_steps == 0:
            self.report(step + 1, with_dev=True)
        elif (step + 1) % REPORT_EVERY_STEPS == 0:
            self.report(step + 1, with_dev=False)

    def report(self, num_steps: int, with_dev: bool) -> None:
        """Prints a line; with dev accuracy it saves a checkpoint too. The time for that is not counted as training."""
        pause_start_s = time.monotonic()
        elapsed_s = pause_start_s - self._start_s - self._paused_s
        line: dict[str, Any] = {"step": num_steps, "loss": round(self._average_loss, 4), "num_tokens": self._num_tokens}
        line |= {"minutes": round(elapsed_s / 60, 2), "tokens_per_s": round(self._num_tokens / elapsed_s)}
        if with_dev:
            line["dev"] = dev_accuracy(self._network, self._tokenizer, self._dev)
            torch.save(
                {"shape": self._network.shape.as_dict(), "weights": self._network.state_dict()}, self._options.out
            )
        self._paused_s += time.monotonic() - pause_start_s
        print(json.dumps(line), flush=True)


def main() -> None:
    """Runs the whole training."""
    options = parse_arguments()
    check_templates()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    network = Network(Shape(tokenizer.get_vocab_size()))
    if options.init:
        network.load_state_dict(torch.load(options.init)["weights"])
    optimizer = Optimizer(network)
    batches = training_batches(tokenizer, options.seed + 99, options.mix, fresh=options.init is None)
    num_parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"num_parameters": num_parameters, "steps": options.steps, "seed": options.seed}), flush=True)
    run, step = Run(options, tokenizer, network), 0
    last_step = min(options.steps, options.stop_after or options.steps)
    while step < last_step and (factor := run.factor(step)) > 0:
        batch = next(batches)
        loss = batch_loss(network, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(options.rate * factor)
        run.note(step, loss.item(), batch.num_tokens)
        step += 1
    run.report(step, with_dev=True)


if __name__ == "__main__":
    main()
