"""Trains Galley Tiny from nothing and writes a checkpoint; export.py makes a model directory of it.

`OMP_WAIT_POLICY=passive GOMP_SPINCOUNT=0 python -m models.training.train --tokenizer TOKENIZER.json --out CHECKPOINT.pt`
(without these two settings a busy neighbour makes a step five times slower). Progress is one JSON line per interval on stdout.
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
from models.training.corpus import conversation, copying_conversation
from models.training.draws import Draw
from models.training.heldout import SKILLS, make_rows
from models.training.network import Network, Shape
from models.training.optimizer import Optimizer, schedule
from models.training.tokenizer import copyable_pieces
from models.training.wordings import check_templates

NUM_STEPS = 4000
DECAY_SHARE = 0.6
CHUNK = 4000  # conversations made at a time
COPYING_SHARE_OF_FIRST_CHUNK = 0.3


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=NUM_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--init", type=Path, help="checkpoint to go on from (a second stage)")
    parser.add_argument("--rate", type=float, default=1.0, help="factor on the learning rates")
    parser.add_argument("--eval-every-steps", type=int, default=400)
    parser.add_argument("--dev-prompts", type=int, default=40, help="dev prompts per skill")
    return parser.parse_args()


def training_batches(tokenizer: Tokenizer, seed: int, fresh: bool) -> Iterator[Batch]:
    """Endless batches of the corpus; the same seed gives the same ones."""
    draw, first = Draw(random.Random(seed), pieces=copyable_pieces(tokenizer)), fresh
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
    """Dev prompts per skill with the answer appended as the only scored message; thinking skills are left to evaluate.py."""
    made = {}
    for skill in SKILLS:
        if not skill.endswith("_thinking"):
            rows = make_rows(skill, "dev", num_prompts, seed)
            made[skill] = [_answered(row) for row in rows]
    return made


def _answered(row: dict[str, Any]) -> Conversation:
    messages = [*row["messages"], {"role": "assistant", "content": row["expected"]}]
    return Conversation(messages, row.get("tools", []), row.get("enable_thinking", False), set(range(len(messages) - 1)))


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


def save(network: Network, path: Path) -> None:
    torch.save({"shape": network.shape.as_dict(), "weights": network.state_dict()}, path)


def main() -> None:
    options = parse_arguments()
    check_templates()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    tokenizer = Tokenizer.from_file(str(options.tokenizer))
    network = Network(Shape(tokenizer.get_vocab_size()))
    if options.init:
        network.load_state_dict(torch.load(options.init)["weights"])
    optimizer = Optimizer(network)
    dev = dev_conversations(options.dev_prompts, options.seed)
    batches = training_batches(tokenizer, options.seed + 99, fresh=options.init is None)
    num_parameters = sum(p.numel() for p in network.parameters())
    print(json.dumps({"num_parameters": num_parameters, "steps": options.steps, "seed": options.seed}), flush=True)
    start_s, paused_s, num_tokens, average = time.monotonic(), 0.0, 0, 0.0
    for step in range(options.steps):
        batch = next(batches)
        loss = batch_loss(network, batch)
        loss.backward()
        optimizer.step(options.rate * schedule(step, options.steps, DECAY_SHARE))
        num_tokens += batch.num_tokens
        average = loss.item() if step == 0 else 0.97 * average + 0.03 * loss.item()
        done = step + 1
        if done % 50 and done != options.steps:
            continue
        report = {"step": done, "loss": round(average, 4), "num_tokens": num_tokens}
        elapsed_s = time.monotonic() - start_s - paused_s
        report |= {"minutes": round(elapsed_s / 60, 2), "tokens_per_s": round(num_tokens / elapsed_s)}
        if done % options.eval_every_steps == 0 or done == options.steps:
            eval_start_s = time.monotonic()
            report["dev"] = dev_accuracy(network, tokenizer, dev)
            save(network, options.out)
            paused_s += time.monotonic() - eval_start_s
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
