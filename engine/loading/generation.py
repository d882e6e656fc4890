"""generation_config.json: which ids end a text, and the model's own sampling defaults. Must not know requests."""

import dataclasses
from pathlib import Path
from typing import Any

from engine.loading.json_file import JsonFile


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDefaults:
    """What the model's authors advise; a request that names a value overrides it. top_k 0 keeps all tokens."""

    eos_token_ids: tuple[int, ...]
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


def read_generation_defaults(directory: Path) -> GenerationDefaults:
    """Read generation_config.json where there is one, with config.json's end-of-sequence ids as fallback.

    `do_sample: false` means greedy, temperature 0; where it is missing, the temperature decides. Raises ValueError on a
    value of the wrong type or range.
    """
    config = JsonFile.read(directory / "config.json")
    path = directory / "generation_config.json"
    file = JsonFile.read(path) if path.exists() else JsonFile(path.name, {})
    eos = _ids(file)
    if not eos:
        eos = _ids(config)
    temperature = file.number("temperature", 1.0)
    top_p = file.number("top_p", 1.0)
    if temperature < 0.0:
        raise ValueError(f"{file.name}: 'temperature' must not be negative, not {temperature!r}")
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"{file.name}: 'top_p' must be greater than 0 and at most 1, not {top_p!r}")
    return GenerationDefaults(
        eos_token_ids=eos,
        temperature=temperature if file.boolean("do_sample", True) else 0.0,
        top_k=max(0, file.integer("top_k", 0, minimum=-1)),
        top_p=top_p,
    )


def _ids(file: JsonFile) -> tuple[int, ...]:
    value: Any = file.fields.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
        raise ValueError(f"{file.name}: 'eos_token_id' must be a token id or a list of them, not {value!r}")
    return tuple(dict.fromkeys(ids))
