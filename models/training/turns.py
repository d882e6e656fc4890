"""What a skill produces: one question of the user with the answer and the thoughts that precede it on request."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Turn:
    """One exchange.

    question: the user's message. answer: the assistant's. thought: what it writes between <think> and </think> first
    when it is told to think.
    """

    question: str
    answer: str
    thought: str
