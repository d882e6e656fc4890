"""Holds a call against AWS's own model of its API, stricter than boto3 does before it sends.

botocore checks names, types, required members and minima; it leaves enumerations, maxima and patterns to the service.
"""

import re
from functools import cache
from typing import Any

import botocore.session
import botocore.validate

from sagemaker.calls import Call


@cache
def service_model(service: str) -> Any:
    return botocore.session.Session().get_service_model(service)


def complaints(call: Call) -> list[str]:
    shape = service_model(call.service).operation_model(call.operation).input_shape
    report = botocore.validate.ParamValidator().validate(call.parameters, shape)
    return [report.generate_report()] * report.has_errors() + _beyond(call.parameters, shape, call.operation)


def _beyond(value: Any, shape: Any, where: str) -> list[str]:
    if shape.type_name == "structure":
        return [
            line
            for name, item in value.items()
            if name in shape.members
            for line in _beyond(item, shape.members[name], f"{where}.{name}")
        ]
    limits = shape.metadata
    size = value if isinstance(value, int | float) else len(value)
    found = []
    if "enum" in limits and value not in limits["enum"]:
        found.append(f"{where}: {value!r} is none of the known values")
    if "max" in limits and size > limits["max"]:
        found.append(f"{where}: {size} is over {limits['max']}")
    if "pattern" in limits and not _pattern(limits["pattern"]).fullmatch(value):
        found.append(f"{where}: {value!r} does not match {limits['pattern']}")
    if shape.type_name == "list":
        found += [line for item in value for line in _beyond(item, shape.member, where)]
    if shape.type_name == "map":
        found += [
            line
            for name, item in value.items()
            for line in (*_beyond(name, shape.key, where), *_beyond(item, shape.value, where))
        ]
    return found


@cache
def _pattern(text: str) -> re.Pattern[str]:
    for java, python in _JAVA:
        text = text.replace(java, python)
    return re.compile(text, re.DOTALL)


# What Java's regular expressions say otherwise, of what these calls meet; characters beyond U+FFFF come in two halves.
_JAVA = (
    (r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff"),
    (r"[\p{Print}]", r"[ -~]"),
    (r"\p{Print}", r"[ -~]"),
    (r"\p{ASCII}", r"[\x00-\x7f]"),
    (r"\p{L}\p{Z}\p{N}", r"\w\s"),
    (r"\z", r"\Z"),
)
