"""Damaged safetensors files: one line of ValueError that names the file, whatever lies in it."""

import json
import os
import re
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from engine.loading.mapped import MappedWeights
from engine.loading.safetensors_header import MAX_HEADER_BYTES, parse_header
from engine.loading.streamed import StreamedWeights
from engine.loading.weight_files import WeightFile

GOOD = {"a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}}
NAME = "model.safetensors"


def write(path, header, data=b"\0" * 16):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def entry(**changes):
    return {"a": {key: value for key, value in {**GOOD["a"], **changes}.items() if value is not ...}}


def refusals(directory):
    """What both readers of files say, which must be of one line and name the file."""
    told = []
    for open_weights in (
        lambda: MappedWeights(directory, torch.float32),
        lambda: StreamedWeights(directory, torch.float32, torch.device("cpu")),
    ):
        with pytest.raises(ValueError) as caught:
            open_weights()
        told.append(str(caught.value))
    assert told[0] == told[1]
    assert told[0].startswith(f"{directory / NAME} cannot be read as safetensors: ")
    assert "\n" not in told[0]
    return told[0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"", "Expecting value"),
        (b"[]", "its header is not a JSON object"),
        (b'"a"', "its header is not a JSON object"),
        (b"{", "Expecting property name"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,' + b"9" * 5000 + b"]}}", "Exceeds the limit"),
        (b'{"a": 1, "a": 2}', "has a name twice"),
        ({"__metadata__": [], **GOOD}, "'__metadata__' is not an object of strings"),
        ({"__metadata__": {"format": 1}, **GOOD}, "'__metadata__' is not an object of strings"),
        ({"a": None}, "the entry 'a' has not just"),
        (entry(shape=...), "the entry 'a' has not just"),
        (entry(more=1), "the entry 'a' has not just"),
        (entry(dtype="F33"), "'a' is of the unknown type 'F33'"),
        (entry(dtype=["F32"]), "'a' is of the unknown type"),
        (entry(shape=[2, -2]), "are not lists of sizes"),
        (entry(shape=[2, 2.0]), "are not lists of sizes"),
        (entry(shape=[True, 4]), "are not lists of sizes"),
        (entry(shape="22"), "are not lists of sizes"),
        (entry(shape=[2**63, 0]), "are not lists of sizes"),
        (entry(shape=[1] * 65), "are not lists of sizes"),
        (entry(data_offsets=[0]), "are not lists of sizes"),
        (entry(data_offsets=[0, 16, 16]), "are not lists of sizes"),
        (entry(data_offsets={"0": 16}), "are not lists of sizes"),
        (entry(data_offsets=[16, 0]), "the shape of 'a' does not fit"),
        (entry(shape=[2, 3]), "the shape of 'a' does not fit"),
        (entry(dtype="BF16"), "the shape of 'a' does not fit"),
        (entry(data_offsets=[4, 20]), "the bytes of 'a' do not begin where"),
        (
            {**GOOD, "b": {"dtype": "U8", "shape": [8], "data_offsets": [8, 16]}},
            "the bytes of 'b' do not begin where the tensor before it ends",
        ),
        (entry(shape=[2], data_offsets=[0, 8]), r"its tensors end at byte \d+, but the file has"),
        (entry(shape=[8], data_offsets=[0, 32]), r"its tensors end at byte \d+, but the file has"),
        ({}, r"its tensors end at byte \d+, but the file has"),
    ],
)
def test_damaged_headers(tmp_path, header, message):
    write(tmp_path / NAME, header)
    assert re.search(message, refusals(tmp_path))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is shorter than a header"),
        (b"1234567", "it is shorter than a header"),
        (struct.pack("<Q", 3) + b"{}", "its header of 3 bytes ends after the file's 10 bytes"),
        (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "is longer than the format allows"),
        (struct.pack("<Q", 2**64 - 1) + b"{}", "is longer than the format allows"),
    ],
)
def test_damaged_lengths(tmp_path, content, message):
    (tmp_path / NAME).write_bytes(content)
    assert message in refusals(tmp_path)


def test_a_length_over_the_limit_in_a_file_that_is_long_enough(tmp_path):
    with (tmp_path / NAME).open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1))
        file.truncate(MAX_HEADER_BYTES + 100)
    assert "longer than the format allows" in refusals(tmp_path)


def test_what_is_no_file(tmp_path):
    (tmp_path / NAME).mkdir()
    assert "Is a directory" in refusals(tmp_path)


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    save_file({"a": torch.ones(1)}, tmp_path / NAME)
    monkeypatch.setattr(os, "open", refuse)
    assert "Permission denied" in refusals(tmp_path)


def test_good_files_are_read_as_safetensors_reads_them(tmp_path):
    stored = {
        "f32": torch.randn(3, 5),
        "bf16": torch.randn(7).bfloat16(),
        "scalar": torch.tensor(2.0),
        "none": torch.empty(0, 4),
        "bytes": torch.arange(3, dtype=torch.uint8),
        "f8": torch.ones(3).to(torch.float8_e4m3fn),
    }
    save_file(stored, tmp_path / NAME, metadata={"format": "pt"})
    file = WeightFile(tmp_path / NAME)
    handle = safe_open(tmp_path / NAME, framework="pt")
    assert set(file.tensors) == set(handle.keys())
    for name, tensor in file.tensors.items():
        content = bytearray(tensor.num_bytes)
        file.read(memoryview(content), tensor.begin)
        expected = load_file(tmp_path / NAME)[name]
        assert tensor.shape == tuple(expected.shape)
        assert bytes(content) == expected.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    file.close()
    file.close()


SIZES = st.integers(-1, 40) | st.sampled_from([2**31, 2**62, 2**63, 2**64, 0.5, True, None, "1"])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "BF16", "U8", "F4", "F6_E2M3", "F99", 1, None]),
        "shape": st.lists(SIZES, max_size=3) | st.none(),
        "data_offsets": st.lists(SIZES, max_size=3) | st.none(),
    },
)
HEADERS = st.dictionaries(st.text(max_size=3), ENTRIES | st.none() | st.integers(), max_size=3)
FUZZ = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def open_all(directory, names):
    """Open and read by both ways; only ValueError may come, of one line. Returns what was read."""
    found = []
    for open_weights in (
        lambda: MappedWeights(directory, torch.float32),
        lambda: StreamedWeights(directory, torch.float32, torch.device("cpu")),
    ):
        try:
            with open_weights() as weights:
                kept = [weights.keep(name, shape) for name, shape in names]
                weights.finish()
                found.append(kept)
        except ValueError as error:
            assert "\n" not in str(error)
            found.append(None)
    return found


@given(header=HEADERS, data=st.binary(max_size=40))
@FUZZ
def test_any_header_is_read_or_refused(tmp_path, header, data):
    write(tmp_path / NAME, header, data)
    try:
        file = WeightFile(tmp_path / NAME)
    except ValueError:
        refusals(tmp_path)
        return
    file.close()
    assert sum(tensor.num_bytes for tensor in file.tensors.values()) == len(data)


@given(st.data())
@FUZZ
def test_any_damage_of_a_file_is_refused_or_read_alike(tmp_path, data):
    """Bytes changed, cut, put in or doubled somewhere: both ways refuse, or both read the same."""
    names = [("left", (3, 2)), ("right", (5,))]
    content = bytearray(save({"left": torch.ones(3, 2), "right": torch.ones(5).bfloat16()}))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        end = at + data.draw(st.integers(0, 8))
        content[at:end] = data.draw(st.binary(max_size=8))
    (tmp_path / NAME).write_bytes(content)
    mapped, streamed = open_all(tmp_path, names)
    assert (mapped is None) == (streamed is None)
    for left, right in zip(mapped or (), streamed or (), strict=True):
        assert torch.equal(left.nan_to_num(), right.nan_to_num())


@given(text=st.binary(max_size=200), file_bytes=st.integers(0, 300))
@FUZZ
def test_any_text_is_a_header_or_is_refused(text, file_bytes):
    try:
        tensors = parse_header(text, file_bytes)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert 8 + len(text) + sum(tensor.num_bytes for tensor in tensors.values()) == file_bytes
