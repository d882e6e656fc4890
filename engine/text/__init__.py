"""Text and token ids: the tokenizer, chat templates, incremental detokenizing and stop strings.

Serves the web workers and the offline `LLM` alike. Knows a model directory's tokenizer files and the types of
`engine.api`; must not know torch, transformers, HTTP or the engine.
"""

from engine.text.bad_words import bad_words_ids
from engine.text.chat_template import ChatTemplate
from engine.text.detokenizer import Detokenizer
from engine.text.stop_strings import StopStrings
from engine.text.text_stream import TextDelta, TextStream
from engine.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopStrings", "TextDelta", "TextStream", "Tokenizer", "bad_words_ids"]
