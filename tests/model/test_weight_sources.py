"""Mapped, streamed and made-up weights: the same promise kept, whatever the sizes of reads and the speed of copies."""

import dataclasses
import errno
import json
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine import models
from engine.loading import open_weights, read_model_config
from engine.loading.chunks import ReadOptions
from engine.loading.dummy import DummyWeights
from engine.loading.mapped import MappedWeights
from engine.loading.source import Progress
from engine.loading.streamed import StreamedWeights, StreamOptions
from kernels import AttentionMetadata
from kernels.reference import ReferenceKernels
from tests.model.tiny_models import make_llama, make_qwen3

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
MODELS = {
    "llama": (make_llama, {}),
    "llama-biased": (make_llama, {"attention_bias": True, "mlp_bias": True}),
    "llama-sharded": (make_llama, {"max_shard_size": "40KB"}),
    "qwen3-tied": (make_qwen3, {"tie_word_embeddings": True}),
}


class LateUploader:
    """Copies as late as the promise of `Uploader` allows: when a buffer's memory is asked for again, or at the end."""

    def __init__(self):
        self.left = []
        self.lock = threading.Lock()
        self.buffers = []
        self.waited = False

    def new_buffer(self, num_bytes):
        self.buffers.append(LateBuffer(self, num_bytes))
        return self.buffers[-1]

    def upload(self, buffer, copy):
        with self.lock:
            self.left.append((buffer, copy))

    def wait(self):
        self.waited = True
        self.catch_up(None)

    def catch_up(self, buffer):
        """All copies up to the last one from `buffer`; None is all."""
        with self.lock:
            while buffer is None or any(owner is buffer for owner, _ in self.left):
                if not self.left:
                    return
                self.left.pop(0)[1]()


class LateBuffer:
    def __init__(self, uploader, num_bytes):
        self.uploader = uploader
        self.bytes = torch.empty(num_bytes, dtype=torch.uint8)

    def memory(self):
        self.uploader.catch_up(self)
        self.bytes.fill_(255)  # what was not copied yet would be lost
        return self.bytes


def stream(directory, dtype=torch.float32, read=None, uploader=None):
    read = ReadOptions() if read is None else read
    return StreamedWeights(directory, dtype, CPU, StreamOptions(read=read, uploader=uploader))


def build(source, directory):
    """(model, statistics) with kernels that keep the weights as they are handed out."""
    config = read_model_config(directory)
    with source as weights:
        model = models.build(config, weights, ReferenceKernels())
        return model, weights.finish(("lm_head.weight",) if config.tie_word_embeddings else ())


def tensors_of(model):
    """Every tensor that a model holds, by where it is."""
    found, left, seen = {}, [("model", model)], set()
    while left:
        path, value = left.pop()
        if isinstance(value, torch.Tensor):
            found[path] = value
        elif isinstance(value, list | tuple):
            left += [(f"{path}.{index}", item) for index, item in enumerate(value)]
        elif (hasattr(value, "__dict__") or dataclasses.is_dataclass(value)) and id(value) not in seen:
            seen.add(id(value))
            fields = (
                vars(value)
                if hasattr(value, "__dict__")
                else {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
            )
            left += [(f"{path}.{name}", item) for name, item in fields.items()]
        elif hasattr(value, "func") and hasattr(value, "args"):
            left.append((path, value.args))
    return found


def logits_of(model, directory):
    config = read_model_config(directory)
    kernels, num_tokens = ReferenceKernels(), 5
    shapes = kernels.kv_cache_shapes(2, 16, config.num_kv_heads, config.head_dim)
    cache = [(torch.zeros(shapes[0]), torch.zeros(shapes[1])) for _ in range(config.num_layers)]
    metadata = AttentionMetadata(
        slot_mapping=torch.arange(16, 16 + num_tokens),
        query_start_loc=torch.tensor([0, num_tokens], dtype=torch.int32),
        seq_lens=torch.tensor([num_tokens], dtype=torch.int32),
        block_table=torch.ones(1, 1, dtype=torch.int32),
        max_query_len=num_tokens,
        max_seq_len=num_tokens,
    )
    with torch.inference_mode():
        return model.compute_logits(model.forward(torch.arange(3, 8), torch.arange(num_tokens), cache, metadata))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("case", MODELS)
def test_streamed_weights_are_the_mapped_ones(tmp_path, case, stored, dtype):
    make, overrides = MODELS[case]
    make(tmp_path, dtype=stored, **overrides)
    expected, _ = build(MappedWeights(tmp_path, dtype), tmp_path)
    found, statistics = build(stream(tmp_path, dtype), tmp_path)
    expected_tensors, found_tensors = tensors_of(expected), tensors_of(found)
    assert len(expected_tensors) > 10
    assert expected_tensors.keys() == found_tensors.keys()
    for path, tensor in expected_tensors.items():
        assert torch.equal(tensor, found_tensors[path]), path
        assert tensor.dtype == found_tensors[path].dtype
    files = list(tmp_path.glob("*.safetensors"))
    assert statistics.num_files == len(files) == (1 if case != "llama-sharded" else len(files))
    assert statistics.num_bytes == sum(tensor.nbytes for path in files for tensor in load_file(path).values())


# 7 bytes cut the elements of every type; 64 cut tensors; 4096 hold several; a file is less than the last.
@pytest.mark.parametrize("chunk_bytes", [7, 64, 4096, 2**20])
@pytest.mark.parametrize(("num_threads", "num_buffers"), [(1, 1), (2, 1), (4, 3)])
@pytest.mark.parametrize("is_late", [False, True])
def test_no_size_of_chunks_or_ring_changes_a_bit(tmp_path, monkeypatch, chunk_bytes, num_threads, num_buffers, is_late):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(num_threads)))
    generator = torch.Generator().manual_seed(chunk_bytes)
    # An odd number of bytes first, so that the tensors after it begin anywhere.
    stored = {"flags": torch.zeros(5, dtype=torch.uint8)}
    for index, dtype in enumerate([*DTYPES, torch.bfloat16]):
        stored[f"w{index}"] = torch.randn(9, 5, generator=generator).to(dtype)
        stored[f"b{index}"] = torch.randn(9, generator=generator).to(dtype)
    stored["unused"] = torch.randn(40, generator=generator)
    stored["empty"] = torch.empty(0, 5)
    save_file(stored, tmp_path / "model.safetensors")
    uploader = LateUploader() if is_late else None
    read = ReadOptions(num_threads=num_threads, num_buffers=num_buffers, chunk_bytes=chunk_bytes)
    with stream(tmp_path, torch.bfloat16, read, uploader) as weights:
        (fused,) = weights.parts([(f"w{index}", 9) for index in range(3)], 5)
        bias = weights.keep_joined([(f"b{index}", 9) for index in range(3)])
        alone, alone_bias, empty = weights.keep("w3", (9, 5)), weights.keep("b3", (9,)), weights.keep("empty", (0, 5))
        weights.finish(("unused", "flags"))
    assert torch.equal(fused, torch.cat([stored[f"w{index}"].bfloat16() for index in range(3)]))
    assert torch.equal(bias, torch.cat([stored[f"b{index}"].bfloat16() for index in range(3)]))
    assert torch.equal(alone, stored["w3"])
    assert torch.equal(alone_bias, stored["b3"])
    assert empty.shape == (0, 5)
    if uploader is not None:
        assert 1 <= len(uploader.buffers) <= num_buffers


def test_what_is_not_wanted_is_not_read(tmp_path):
    save_file({"a": torch.ones(8), "b": torch.ones(4096), "c": torch.ones(8)}, tmp_path / "model.safetensors")
    with stream(tmp_path, read=ReadOptions(chunk_bytes=64)) as weights:
        kept = [weights.keep(name, (8,)) for name in ("a", "c")]
        assert weights.finish(("b",)).num_bytes == 64
    assert all(tensor.eq(1).all() for tensor in kept)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_streamed_product_is_one_tensor_and_a_tied_table_is_shared(tmp_path, dtype):
    make_qwen3(tmp_path, tie_word_embeddings=True)
    model, _ = build(stream(tmp_path, dtype), tmp_path)
    tensors = tensors_of(model)
    qkv = tensors["model._layers.0._attention._qkv._packed.weight"]
    assert qkv.shape == ((4 + 2 + 2) * 16, 48)
    assert qkv.untyped_storage().nbytes() == qkv.nbytes
    assert tensors["model._embedding.table"].data_ptr() == tensors["model._head._packed.weight"].data_ptr()


def test_mapped_weights_that_are_kept_are_copies(tmp_path):
    make_llama(tmp_path)
    before = load_file(tmp_path / "model.safetensors")
    with MappedWeights(tmp_path, torch.float32) as weights:
        kept = weights.keep("model.norm.weight", (48,))
        (part,) = weights.parts([("model.layers.0.mlp.down_proj.weight", 48)], 80)
        assert torch.equal(part, before["model.layers.0.mlp.down_proj.weight"])
    kept.zero_()
    assert torch.equal(load_file(tmp_path / "model.safetensors")["model.norm.weight"], before["model.norm.weight"])


@pytest.mark.parametrize("kind", [MappedWeights, stream], ids=["mapped", "streamed"])
def test_wrong_names_and_shapes_are_refused_by_name(tmp_path, kind):
    save_file(
        {"a": torch.ones(4), "m": torch.ones(2, 4), "steps": torch.ones(4, dtype=torch.int32)},
        tmp_path / "model.safetensors",
    )
    with kind(tmp_path, torch.float32) as weights:
        weights.keep("a", (4,))
        with pytest.raises(ValueError, match="the weight 'a' was asked for twice"):
            weights.keep_joined([("a", 4)])
        with pytest.raises(ValueError, match="the model has no weight 'b'"):
            weights.keep("b", (4,))
        with pytest.raises(ValueError, match=r"'m' has the shape \[2, 4\], but config.json means \[2, 5\]"):
            weights.parts([("m", 2)], 5)
        with pytest.raises(ValueError, match="'steps' is of type I32, which is not supported"):
            weights.keep("steps", (4,))
        with pytest.raises(ValueError, match="a weight 'm' that its architecture does not know"):
            weights.finish(("steps",))
        weights.finish(("steps", "m"))


def test_a_part_that_appears_twice_in_one_product_is_refused(tmp_path):
    with DummyWeights(torch.float32, CPU) as weights, pytest.raises(ValueError, match="'w' was asked for twice"):
        weights.parts([("w", 4), ("w", 4)], 3)


class BrokenUploader(LateUploader):
    def upload(self, buffer, copy):
        if len(self.left) == 2:
            raise RuntimeError("the device is gone")
        super().upload(buffer, copy)


def reading_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("read-weights")]


@pytest.mark.parametrize("num_buffers", [1, 4, 100])
def test_a_file_that_is_cut_while_it_is_read(tmp_path, num_buffers):
    make_llama(tmp_path)
    file = tmp_path / "model.safetensors"
    uploader = LateUploader()
    read = ReadOptions(num_buffers=num_buffers, chunk_bytes=512)
    with pytest.raises(ValueError, match=r"model\.safetensors ends at byte \d+: it was cut") as caught:  # noqa: SIM117
        with stream(tmp_path, read=read, uploader=uploader) as weights:
            models.build(read_model_config(tmp_path), weights, ReferenceKernels())
            os.truncate(file, file.stat().st_size - 3000)
            weights.finish()
    assert "\n" not in str(caught.value)
    assert uploader.waited
    assert not uploader.left
    assert reading_threads() == []


@pytest.mark.parametrize("failing", [0, 3, 30])
def test_errors_of_storage_and_short_reads(tmp_path, monkeypatch, failing):
    """Reads return what they like, and the `failing`th fails."""
    make_llama(tmp_path)
    real, calls, lock = os.preadv, [], threading.Lock()
    weights = stream(tmp_path, read=ReadOptions(num_threads=4, num_buffers=4, chunk_bytes=2048))

    def preadv(fd, buffers, offset):
        with lock:
            calls.append(offset)
            count = len(calls)
        if count == failing:
            raise OSError(errno.EIO, "Input/output error")
        return real(fd, [buffers[0][: max(1, len(buffers[0]) // 2)]], offset)

    monkeypatch.setattr(os, "preadv", preadv)
    if failing:
        with pytest.raises(ValueError, match=r"model\.safetensors cannot be read: \[Errno 5\] Input/output error$"):
            build(weights, tmp_path)
        assert len(calls) < 100
    else:
        found, _ = build(weights, tmp_path)
        expected = tensors_of(build(MappedWeights(tmp_path, torch.float32), tmp_path)[0])
        assert all(torch.equal(tensor, expected[path]) for path, tensor in tensors_of(found).items())
        assert len(calls) > 100
    assert reading_threads() == []


def test_an_error_of_the_device_ends_the_load(tmp_path):
    make_llama(tmp_path)
    uploader = BrokenUploader()
    read = ReadOptions(num_buffers=8, chunk_bytes=512)
    with pytest.raises(RuntimeError, match="the device is gone"):
        build(stream(tmp_path, read=read, uploader=uploader), tmp_path)
    assert uploader.waited
    assert reading_threads() == []


def test_files_are_closed(tmp_path):
    make_llama(tmp_path, max_shard_size="40KB")
    before = len(list(Path("/proc/self/fd").iterdir()))
    build(stream(tmp_path), tmp_path)
    with pytest.raises(ValueError, match="no weight"), stream(tmp_path) as weights:
        weights.keep("nothing", (1,))
    next(iter(sorted(tmp_path.glob("*.safetensors"), reverse=True))).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        stream(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_progress_comes_at_intervals_and_counts_bytes(monkeypatch):
    now, told = [100.0], []
    monkeypatch.setattr("engine.loading.source.time.monotonic", lambda: now[0])
    progress = Progress(1000, lambda done, total: told.append((done, total)))
    for elapsed_s in (0.1, 0.3, 0.2, 0.1, 0.6):
        now[0] += elapsed_s
        progress.add(10)
    assert told == [(30, 1000), (50, 1000)]


@pytest.mark.parametrize("kind", ["mapped", "streamed"])
def test_progress_reaches_the_caller(tmp_path, monkeypatch, kind):
    make_llama(tmp_path)
    monkeypatch.setattr("engine.loading.source.time.monotonic", iter(range(10**6)).__next__)
    told = []
    if kind == "mapped":
        source = open_weights("auto", tmp_path, torch.float32, CPU, lambda *bytes_: told.append(bytes_))
    else:
        options = StreamOptions(ReadOptions(chunk_bytes=4096), on_progress=lambda *bytes_: told.append(bytes_))
        source = StreamedWeights(tmp_path, torch.float32, CPU, options)
    _, statistics = build(source, tmp_path)
    assert len(told) > 5
    assert told == sorted(told)
    assert told[-1] == (statistics.num_bytes, statistics.num_bytes)


def test_the_sources_by_format_and_device(tmp_path):
    make_llama(tmp_path)
    assert isinstance(open_weights("auto", tmp_path, torch.float32, CPU), MappedWeights)
    with open_weights("auto", tmp_path, torch.float32, torch.device("meta")) as weights:
        assert isinstance(weights, StreamedWeights)
    assert isinstance(open_weights("dummy", tmp_path / "nowhere", torch.float32, CPU), DummyWeights)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", MODELS)
def test_dummy_weights_make_any_model_compute(tmp_path, case, dtype):
    make, overrides = MODELS[case]
    make(tmp_path, **overrides)
    for path in [*tmp_path.glob("*.safetensors"), *tmp_path.glob("*.index.json")]:
        path.unlink()
    first, statistics = build(open_weights("dummy", tmp_path, dtype, CPU), tmp_path)
    assert statistics.num_files == 0
    again, _ = build(open_weights("dummy", tmp_path, dtype, CPU), tmp_path)
    tensors = tensors_of(first)
    assert statistics.num_bytes >= sum(tensor.nbytes for path, tensor in tensors.items() if "_layers" in path)
    for path, tensor in tensors_of(again).items():
        assert torch.equal(tensor, tensors[path]), path
    assert tensors["model._norm._weight"].float().mean() == pytest.approx(1.0, abs=0.01)
    assert 0.015 < tensors["model._layers.0._attention._qkv._packed.weight"].float().std() < 0.025
    if case == "llama-biased":
        assert 0 < tensors["model._layers.0._attention._qkv._packed.bias"].float().abs().max() < 0.2
    if dtype == torch.float32:
        logits = logits_of(first, tmp_path)
        assert logits.isfinite().all()
        assert len(set(logits.argmax(1).tolist())) > 1
        assert logits.std(0).min() > 0


def test_dummy_weights_depend_on_the_name_and_not_on_the_product(tmp_path):
    with DummyWeights(torch.float32, CPU) as weights:
        (fused,) = weights.parts([("q", 4), ("k", 4)], 64)
    with DummyWeights(torch.float32, CPU) as weights:
        (k,), (q,) = weights.parts([("k", 4)], 64), weights.parts([("q", 4)], 64)
    assert torch.equal(fused, torch.cat([q, k]))
    assert not torch.equal(q, k)


def test_the_log_line(tmp_path):
    make_llama(tmp_path, max_shard_size="40KB")
    _, statistics = build(stream(tmp_path), tmp_path)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    num_files = len(set(index["weight_map"].values()))
    assert f"GB of weights from {num_files} files in " in str(statistics)
    _, statistics = build(open_weights("dummy", tmp_path, torch.float32, CPU), tmp_path)
    assert "GB of weights made up in " in str(statistics)
