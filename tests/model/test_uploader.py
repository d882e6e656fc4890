"""The order of what the uploader asks of CUDA, on a stand-in for it; tests/gpu/test_loading.py has the real one."""

import contextlib

import pytest
import torch

from engine.loading.uploader import CudaUploader, PlainUploader, uploader_for

DEVICE = torch.device("cuda", 0)


class FakeCuda:
    """Notes each call. The main stream is "main", the one that is made "side"."""

    def __init__(self, monkeypatch):
        self.calls = []
        self.current = "main"
        fake, empty = self, torch.empty

        class Stream:
            def __init__(self, device):
                assert device == DEVICE
                self.name = "side"

            def wait_stream(self, other):
                fake.calls.append(f"{self.name} waits for {other}")

            def synchronize(self):
                fake.calls.append(f"host waits for {self.name}")

        class Event:
            def __init__(self, *, blocking):
                assert blocking

            def record(self, stream):
                assert fake.current == stream.name
                fake.calls.append("record")

            def synchronize(self):
                fake.calls.append("host waits for event")

        @contextlib.contextmanager
        def stream(side):
            before, self.current = self.current, side.name
            yield
            self.current = before

        def pinned(*args, pin_memory=False, **kwargs):
            self.calls.append("pin" if pin_memory else "allocate")
            return empty(*args, **kwargs)

        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", stream)
        monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device: "main")
        monkeypatch.setattr(torch, "empty", pinned)


def test_the_order_of_copies_and_waits(monkeypatch):
    cuda = FakeCuda(monkeypatch)
    uploader = uploader_for(DEVICE)
    assert isinstance(uploader, CudaUploader)
    buffer = uploader.new_buffer(64)
    assert cuda.calls == [], "memory is pinned by the thread that reads into it"
    memory = buffer.memory()
    assert (memory.dtype, memory.shape) == (torch.uint8, (64,))
    for _ in range(2):
        uploader.upload(buffer, lambda: cuda.calls.append(f"copy on {cuda.current}"))
        assert buffer.memory() is memory
    uploader.wait()
    copied = ["side waits for main", "copy on side", "record", "host waits for event"]
    assert cuda.calls == ["pin", *copied, *copied, "host waits for side"]


def test_a_buffer_of_another_uploader_is_refused(monkeypatch):
    FakeCuda(monkeypatch)
    with pytest.raises(TypeError, match="another uploader's"):
        CudaUploader(DEVICE).upload(PlainUploader().new_buffer(8), lambda: None)


def test_a_cpu_needs_no_streams():
    assert isinstance(uploader_for(torch.device("cpu")), PlainUploader)
