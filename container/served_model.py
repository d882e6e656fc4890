"""The served model as a web worker sees it: what the engine says about it, its tokenizer and its chat template.

Knows engine.text. Must not know how outputs travel.
"""

import dataclasses
from pathlib import Path

from engine.api import ModelInfo
from engine.text import ChatTemplate, Tokenizer


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """All that a route needs to turn a body into token ids and token ids into text."""

    info: ModelInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate


def load_served_model(info: ModelInfo) -> ServedModel:
    """Read tokenizer and chat template from the directory that the engine names. Takes a second or more."""
    directory = Path(info.model_dir)
    tokenizer = Tokenizer.from_dir(directory)
    return ServedModel(info, tokenizer, ChatTemplate.from_dir(directory, tokenizer))
