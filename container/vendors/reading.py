"""Reads the variables of other images, and LMI's `serving.properties`, into texts for our settings.

Knows how each image finds its names and writes its values, and which image's word counts first. Must not know the
settings themselves: `container.config` parses the texts, and says under which name a bad one was given.
"""

import dataclasses
import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

from container.vendors import lmi, sagemaker, sglang, tgi, vllm
from container.vendors.rules import NotUsedError, RefusedError, Rule, Rules, boolean, find, properties

# Files that say how to serve a model, and are none: with nothing else there /opt/ml/model holds no model.
_NOT_A_MODEL = frozenset({"serving.properties", "code", "model.py", "requirements.txt", "requirements"})
_PREFIXES = ("SM_VLLM_", "VLLM_", "SM_SGLANG_", "SGLANG_", "OPTION_", "SERVING_", "HF_MODEL_", "SUPERVISOR_")
_MAX_PROPERTIES_BYTES = 1 << 20
# What nobody here looks at: a library finds it in its process's environment.
READ_BY_LIBRARIES = tuple(tgi.READ_BY_LIBRARIES.split())


class ForeignSettingError(Exception):
    """Foreign variables ask for what cannot be. The message is one line that names each of them."""


@dataclasses.dataclass
class Foreign:
    """What other images' variables say: texts by our setting's name, each with its origin, and lines for the log."""

    texts: dict[str, tuple[str, str]] = dataclasses.field(default_factory=dict)
    warnings: list[str] = dataclasses.field(default_factory=list)
    refusals: list[str] = dataclasses.field(default_factory=list)

    def take(self, setting: str, text: str, origin: str) -> None:
        """The first word on a setting counts; another one that differs is named."""
        if setting not in self.texts:
            self.texts[setting] = (text, origin)
        elif self.texts[setting][0] != text:
            self.warnings.append(f"{origin} is not used: {self.texts[setting][1]} says otherwise")


@dataclasses.dataclass(frozen=True)
class _Word:
    """A foreign name with its value; in images that make flags of variables it may be a bare flag, or none at all."""

    key: str
    text: str
    origin: str
    kind: Literal["value", "bare", "omitted"] = "value"


def holds_model(directory: Path) -> bool:
    """Whether there is more in `directory` than files that say how to serve."""
    return directory.is_dir() and any(path.name not in _NOT_A_MODEL for path in directory.iterdir())


def is_foreign(name: str) -> bool:
    """Whether a variable of this name would be looked at, known or not."""
    exact = (*lmi.BARE, *tgi.HUB, *sagemaker.RULES, *(key.upper() for key in tgi.RULES))
    return name in exact or name.startswith(_PREFIXES)


def read(environ: Mapping[str, str], model_dir: Path, booleans: Mapping[str, bool]) -> Foreign:
    """Everything that other images' names say here.

    model_dir: where serving.properties may lie and a mounted model does. booleans: our settings that are true or false,
    with their defaults, since a bare flag means true for these only. Raises ForeignSettingError, naming all that is
    refused.
    """
    found = Foreign()
    is_lmi = False
    for rules, words in (
        (vllm.RULES, _flags(environ, "SM_VLLM_")),
        (vllm.BARE, _prefixed(environ, "VLLM_")),
        (sglang.RULES, _flags(environ, "SM_SGLANG_")),
        (sglang.BARE, _prefixed(environ, "SGLANG_")),
        *_lmi(environ, model_dir),
        (tgi.RULES, _tgi(environ)),
        (tgi.HUB, _hub(environ, model_dir, found)),
        (sagemaker.RULES, (*_exact(environ, sagemaker.RULES), *_prefixed(environ, "SUPERVISOR_"))),
    ):
        for word in words:
            _apply(found, rules, word, booleans)
            is_lmi = is_lmi or rules in (lmi.OPTIONS, lmi.SERVING) or word.key in lmi.ONLY_LMIS
    if is_lmi:
        # Its clients read its answers; `tgi_compat`, which asks for the other form, is among its options.
        found.texts.setdefault("inputs_form", ("lmi", "LMI's options"))
    if found.refusals:
        raise ForeignSettingError("; ".join(found.refusals))
    return found


def _flags(environ: Mapping[str, str], prefix: str) -> Iterator[_Word]:
    """As the entry points of AWS's vLLM and SGLang images: true and nothing are a bare flag, false is no flag."""
    for name in sorted(environ):
        if name.startswith(prefix):
            key, text = name.removeprefix(prefix).lower(), environ[name]
            match text.strip().lower():
                case "true" | "":
                    yield _Word(key, "true", name, "bare")
                case "false":
                    yield _Word(key, "false", name, "omitted")
                case _:
                    yield _Word(key, text, name)


def _lmi(environ: Mapping[str, str], model_dir: Path) -> Iterator[tuple[Rules, Iterable[_Word]]]:
    """serving.properties first: in LMI too it wins over the environment. Empty values are none."""
    path = model_dir / "serving.properties"
    words = [
        (key, _Word(_lmi_key(key.removeprefix("option.")), text, f"{key} in {path}"))
        for key, text in _properties_of(path).items()
    ]
    yield lmi.OPTIONS, [word for key, word in words if key.startswith("option.")]
    yield lmi.SERVING, [word for key, word in words if not key.startswith("option.")]
    for rules, prefix in ((lmi.OPTIONS, "OPTION_"), (lmi.SERVING, "SERVING_")):
        names = [name for name in sorted(environ) if name.startswith(prefix) and environ[name]]
        yield rules, [_Word(_lmi_key(name.removeprefix(prefix)), environ[name], name) for name in names]
    yield lmi.BARE, _exact(environ, lmi.BARE)


def _lmi_key(key: str) -> str:
    return key.lower().replace("entry_point", "entrypoint")


def _properties_of(path: Path) -> dict[str, str]:
    try:
        if not path.is_file() or path.stat().st_size > _MAX_PROPERTIES_BYTES:
            return {}
        # Java reads these as Latin-1; people write UTF-8.
        content = dict(properties(path.read_text(encoding="utf-8", errors="replace")))
    except OSError as error:
        raise ForeignSettingError(f"cannot read {path}: {error.strerror}") from None
    return {key: text for key, text in content.items() if text}


def _tgi(environ: Mapping[str, str]) -> Iterator[_Word]:
    """Names as common as DTYPE count only where TGI's image would start (HF_MODEL_ID) and no other image is meant."""
    if not environ.get("HF_MODEL_ID") or any(name.startswith(("SM_VLLM_", "SM_SGLANG_")) for name in environ):
        return
    for key in tgi.RULES:
        name = key.upper()
        # TGI's entry point on SageMaker puts HF_MODEL_REVISION in its place.
        if environ.get(name) and not (name == "REVISION" and environ.get("HF_MODEL_REVISION")):
            yield _Word(key, environ[name], name)


def _hub(environ: Mapping[str, str], model_dir: Path, found: Foreign) -> Iterator[_Word]:
    """HF_MODEL_ID gives way to a mounted model, as in AWS's vLLM image; a path is meant whatever is mounted."""
    unknown = (word for word in _prefixed(environ, "HF_MODEL_") if word.key not in tgi.HUB)
    for word in (*_exact(environ, tgi.HUB), *unknown):
        if word.key == "HF_MODEL_ID" and not word.text.startswith("/") and holds_model(model_dir):
            if "model" not in found.texts:
                found.warnings.append(f"HF_MODEL_ID is not used: {model_dir} holds a model")
        else:
            yield word


def _exact(environ: Mapping[str, str], rules: Rules) -> Iterator[_Word]:
    for name in rules:
        if environ.get(name):
            yield _Word(name, environ[name], name)


def _prefixed(environ: Mapping[str, str], prefix: str) -> Iterator[_Word]:
    for name in sorted(environ):
        if name.startswith(prefix) and environ[name]:
            yield _Word(name, environ[name], name)


def _apply(found: Foreign, rules: Rules, word: _Word, booleans: Mapping[str, bool]) -> None:
    rule = find(rules, word.key)
    if rule is None and word.key.startswith("no_") and word.kind != "value":
        rule = find(rules, word.key[3:])
        if rule is not None and word.kind == "omitted":
            return
        word = dataclasses.replace(word, text="false", kind="value")
    if rule is None:
        known = [name for name in rules if not name.endswith("*")]
        close = difflib.get_close_matches(word.key, known, n=1)
        hint = f" (did you mean {_like(word, close[0])}?)" if close else ""
        found.warnings.append(f"{word.origin} is not known and has no effect{hint}")
    elif rule.effect == "setting":
        _apply_setting(found, rule, word, booleans)
    elif rule.effect != "accepted" and "".join(word.text.lower().split()) not in rule.neutral:
        if rule.effect == "none":
            found.warnings.append(f"{word.origin} has no effect: {rule.why}")
        else:
            found.refusals.append(f"{word.origin} cannot be served: {rule.why}")


def _like(word: _Word, name: str) -> str:
    """`name` as the giver would write it."""
    if " in " in word.origin:
        return ("option." if word.origin.startswith("option.") else "") + name
    if word.key == word.origin:
        return name
    return next(prefix for prefix in _PREFIXES if word.origin.startswith(prefix)) + name.upper()


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


def _apply_setting(found: Foreign, rule: Rule, word: _Word, booleans: Mapping[str, bool]) -> None:
    is_boolean = rule.setting in booleans
    if word.kind == "omitted":
        # Whoever sets this may mean what the other image does not do.
        if is_boolean and booleans[rule.setting] and rule.convert is None:
            found.warnings.append(f"{word.origin}=false leaves {rule.setting} on, as there; NO_ before the name is off")
        return
    if word.kind == "bare" and not is_boolean:
        found.refusals.append(f"{word.origin} needs a value")
        return
    try:
        text: str | None = boolean(word.text) if is_boolean and rule.convert is None else word.text
        if rule.convert is not None:
            text = rule.convert(word.text)
    except NotUsedError as reason:
        found.warnings.append(f"{word.origin}={_on_one_line(word.text)} has no effect: {reason}")
    except RefusedError as reason:
        found.refusals.append(f"{word.origin}={_on_one_line(word.text)} cannot be served: {reason}")
    except ValueError as error:
        found.refusals.append(f"{word.origin} {error}")
    else:
        if text is not None:
            found.take(rule.setting, text, word.origin)
