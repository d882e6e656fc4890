"""The served model as a web worker sees it: what the engine says about it, its tokenizer and its chat template.

Knows engine.text. Must not know how outputs travel.
"""

import dataclasses
from pathlib import Path

from container.schema.limits import PromptLimits
from engine.api import ModelInfo
from engine.text import ChatTemplate, Tokenizer


@dataclasses.dataclass(frozen=True)
class ServedModel:
    """All that a route needs to turn a body into token ids and token ids into text."""

    info: ModelInfo
    tokenizer: Tokenizer
    chat_template: ChatTemplate

    @property
    def limits(self) -> PromptLimits:
        """What bounds a prompt of this model."""
        return PromptLimits(self.info.max_model_len, self.tokenizer.max_token_chars)

    def encode(self, text: str, param: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids of `text`. Raises ContextLengthExceeded at once for one that no tokenisation could make fit."""
        self.limits.check_text(text, param)
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


def load_served_model(info: ModelInfo) -> ServedModel:
    """Read tokenizer and chat template from the directory that the engine names. Takes a second or more."""
    directory = Path(info.model_dir)
    tokenizer = Tokenizer.from_dir(directory)
    return ServedModel(info, tokenizer, ChatTemplate.from_dir(directory, tokenizer))
