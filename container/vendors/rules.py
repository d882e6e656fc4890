"""What a foreign name means here: a setting of ours, nothing, or a refusal; and how values are written elsewhere.

Knows the kinds of rule and the ways of writing values. Must not know any vendor's names: each has a module of its own.

The line between "no effect" and "refused": a name is refused where leaving it out would change what is generated, who
may ask, or how many GPUs work as ordered; where only speed or logging differ, it is named in a warning.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Literal

Convert = Callable[[str], "str | None"]
# How every image writes "as if I had not said it". Compared in lower case.
NEUTRAL = frozenset({"", "false", "none", "null", "0", "{}", "[]"})
_MULTIPLES = MappingProxyType({"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12})
_BINARY_MULTIPLES = MappingProxyType({"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40})
_DTYPES = MappingProxyType(
    {"half": "float16", "fp16": "float16", "bf16": "bfloat16", "float": "float32", "fp32": "float32"}
)
# Ways to read safetensors; what is read is the same.
_SAFETENSORS_LOADERS = ("safetensors", "hf", "runai_streamer", "fastsafetensors", "instanttensor")
_LOG_LEVELS = MappingProxyType({"trace": "debug", "warn": "warning", "critical": "error", "fatal": "error"})


class NotUsedError(Exception):
    """This value of a name that has a meaning here has none. The message is the reason."""


class RefusedError(Exception):
    """This value of a name that has a meaning here cannot be served. The message is the reason."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one foreign name means.

    `setting` takes the value, made ours by `convert`, whose None means "as if not given"; `none` is warned about with
    `why`, `refused` stops the start with it, both unless the value is in `neutral`; `accepted` needs no word at all.
    """

    effect: Literal["setting", "none", "refused", "accepted"]
    setting: str = ""
    convert: Convert | None = None
    why: str = ""
    neutral: frozenset[str] = NEUTRAL


Rules = Mapping[str, Rule]


def table(*parts: Mapping[str, Rule]) -> Rules:
    """One table of several. Raises ValueError when a name stands in it twice."""
    merged: dict[str, Rule] = {}
    for part in parts:
        twice = merged.keys() & part.keys()
        if twice:
            raise ValueError(f"more than one rule for {sorted(twice)}")
        merged.update(part)
    return MappingProxyType(merged)


def same(names: str) -> Rules:
    """Names, parted by spaces, that are settings of ours."""
    return {name: Rule("setting", name) for name in names.split()}


def to(setting: str, names: str, convert: Convert | None = None, why: str = "") -> Rules:
    """Names for one setting of ours; `why` is a remark on the value, for the page."""
    return {name: Rule("setting", setting, convert, why) for name in names.split()}


def no_effect(why: str, names: str, neutral: str = "", *, is_on: bool = False) -> Rules:
    """Names that are warned about, unless neutral. A name may end in `*`.

    is_on: of something that is always done, so that "false" and "0" are what asks for a change.
    """
    values = (NEUTRAL - {"false", "0"} if is_on else NEUTRAL) | set(neutral.split())
    return {name: Rule("none", why=why, neutral=values) for name in names.split()}


def refused(why: str, names: str, neutral: str = "") -> Rules:
    """Names that stop the start, unless neutral. A name may end in `*`."""
    return {name: Rule("refused", why=why, neutral=NEUTRAL | set(neutral.split())) for name in names.split()}


def accepted(why: str, names: str) -> Rules:
    """Names whose every value means what is done anyway, or speaks of the other image's insides."""
    return {name: Rule("accepted", why=why) for name in names.split()}


def find(rules: Rules, key: str) -> Rule | None:
    """The rule for `key`: its own, or that of a family (`speculative_*`) that it belongs to."""
    if key in rules:
        return rules[key]
    return next((rule for name, rule in rules.items() if name.endswith("*") and key.startswith(name[:-1])), None)


def inverted(text: str) -> str:
    """`disable_x` → `x`."""
    return "false" if boolean(text) == "true" else "true"


def boolean(text: str) -> str:
    """True and false as environment variables write them. Raises ValueError for anything else."""
    word = text.strip().lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return "true"
    if word in ("false", "0", "no", "off", "f", "n", ""):
        return "false"
    raise ValueError(f"must be true or false, not {text!r}")


def integer(text: str) -> str | None:
    """`8192`, `8k` (8,000), `8K` (8,192), `1.5M`; None for what means "you decide": auto, -1.

    vLLM's and SGLang's notation for lengths and sizes: a small letter is decimal, a capital binary.
    """
    text = text.strip()
    if text.lower() in ("auto", "-1", "none"):
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmgtKMGT])", text)
    if not match:
        return text
    letter = match[2]
    return str(round(float(match[1]) * {**_MULTIPLES, **_BINARY_MULTIPLES}[letter]))


def bytes_to(unit_bytes: int) -> Convert:
    """Bytes, as `integer` reads them, to a unit: a decimal fraction, so that GiB keep their parts."""

    def convert(text: str) -> str | None:
        num_bytes = integer(text)
        if num_bytes is None or not num_bytes.isdigit():
            return num_bytes
        return repr(int(num_bytes) / unit_bytes)

    return convert


def bytes_to_mib(text: str) -> str | None:
    """Bytes to whole MiB, rounded up, and at most the 1024 that ours may be: the SDK's examples ask for 2 GB."""
    return str(min(-(-int(text) // 2**20), 1024)) if text.strip().isdigit() else text


def dtype(text: str) -> str:
    """`half`, `fp16`, `bf16`, … in our words."""
    word = text.strip().lower().removeprefix("torch.")
    return _DTYPES.get(word, word)


def load_format(text: str) -> str:
    """Every loader of safetensors is `auto`. Raises RefusedError for other formats of weights."""
    word = text.strip().lower()
    if word in ("auto", "dummy"):
        return word
    if word in _SAFETENSORS_LOADERS:
        return "auto"
    raise RefusedError("only safetensors are read")


def block_size(text: str) -> str | None:
    """Raises NotUsedError for a size that the KV cache cannot have: it changes nothing that is generated."""
    if text.strip() in ("16", "32", "48", "64", "80", "96", "112", "128"):
        return text.strip()
    raise NotUsedError("a block holds a multiple of 16 tokens, at most 128; the default stays")


def log_level(text: str) -> str:
    """Words of other loggers, and Python's numbers: SageMaker's SDK sends 20 for info."""
    word = text.strip().lower()
    if word.isdigit():
        return ("debug", "info", "warning", "error")[min(max(int(word) // 10, 1), 4) - 1]
    return _LOG_LEVELS.get(word, word)


def first_of_list(text: str) -> str:
    """The first of a JSON list of names; other text as it is. Raises RefusedError when there are several."""
    if not text.strip().startswith("["):
        return text
    try:
        names = json.loads(text)
    except ValueError:
        return text
    if not isinstance(names, list) or not names:
        raise ValueError(f"must be a name or a list of names, not {text!r}")
    if len(names) > 1:
        raise RefusedError("one name is served")
    return str(names[0])


def properties(text: str) -> Iterator[tuple[str, str]]:
    r"""Keys and values of a Java properties file: `=`, `:` or a blank between them, `#` and `!` comments, `\` at ends.

    https://docs.oracle.com/javase/8/docs/api/java/util/Properties.html#load-java.io.Reader-
    """
    lines = iter(text.splitlines())
    for line in lines:
        logical = line.lstrip()
        if not logical or logical[0] in "#!":
            continue
        while (len(logical) - len(logical.rstrip("\\"))) % 2:
            logical = logical[:-1] + next(lines, "").lstrip()
        match = re.match(r"((?:\\.|[^\\=:\s])*)\s*[=:]?\s*(.*)", logical, re.DOTALL)
        if match:
            yield _unescaped(match[1]), _unescaped(match[2]).rstrip()


def _unescaped(text: str) -> str:
    def replace(match: re.Match[str]) -> str:
        found = match[1]
        if len(found) == 5:
            return chr(int(found[1:], 16))
        return {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}.get(found, found)

    return re.sub(r"\\(u[0-9a-fA-F]{4}|.)", replace, text, flags=re.DOTALL)
