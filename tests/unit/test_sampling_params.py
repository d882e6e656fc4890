"""SamplingParams, EngineConfig: a bad value is refused by name, from Python as from the wire."""

from typing import Any

import pytest

from engine.api import EngineConfig, InvalidRequest, SamplingParams


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-0.1, 1e9, float("nan"), float("inf"), "hot", None, True)],
        *[("top_p", value) for value in (0, 0.0, 1.01, -1, float("nan"), "x", None)],
        *[("top_k", value) for value in (-2, 1.5, True, 2**31, None)],
        *[("n", value) for value in (0, -1, 129, 10**9, 1.5, None)],
        *[("seed", value) for value in (1.5, "7", 2**63, -(2**63) - 1)],
        *[("max_tokens", value) for value in (0, -5, 1.5, "5")],
        *[("stop", value) for value in (5, [""], ["x"] * 17, [5], ["x" * 1025])],
        *[("stop_token_ids", value) for value in (5, ["x"], [1.5], list(range(257)))],
        *[("ignore_eos", value) for value in ("no", 1, None)],
        ("skip_special_tokens", "yes"),
    ],
)
def test_a_bad_value_names_its_field(name: str, value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        SamplingParams(**{name: value})
    assert refused.value.param == name


def test_neutral_and_friendly_values() -> None:
    params = SamplingParams(top_k=-1, stop="x", stop_token_ids=[3], temperature=0, max_tokens=None)  # type: ignore[arg-type]
    assert (params.top_k, params.stop, params.stop_token_ids, params.max_tokens) == (0, ("x",), (3,), None)
    assert SamplingParams(stop=None, stop_token_ids=None) == SamplingParams()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("max_num_seqs", value) for value in (0, -1, 10**9, 1.5)],
        *[("kv_cache_memory_gib", value) for value in (0, -1, float("inf"), float("nan"), 1e300, "1", True)],
        *[("gpu_memory_utilization", value) for value in (0, 1.01, float("nan"), "0.9", None, True)],
        ("block_size", None),
        ("max_num_waiting", None),
        *[("num_threads", value) for value in (0, 100_000)],
        *[("block_size", value) for value in (0, 8, 24, 256)],
        *[("max_model_len", value) for value in (0, 1, 2.5)],
        ("max_num_batched_tokens", 0),
        ("max_num_waiting", 0),
        ("dtype", "int8"),
    ],
)
def test_a_bad_setting_is_named(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        EngineConfig(**{name: value})
