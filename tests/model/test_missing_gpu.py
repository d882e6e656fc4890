"""A host whose GPU cannot be used: one line says why, and what to change."""

from pathlib import Path

import pytest

import engine.runner.start
from engine.api import EngineConfig
from engine.runner.cuda import MissingGpu, missing_gpu
from engine.runner.start import open_device

VERSION = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {driver}  Release Build\nGCC version:  gcc 12\n"


@pytest.fixture
def host(tmp_path: Path) -> Path:
    return tmp_path / "version"


def test_a_host_without_a_driver_has_nothing_to_say(host: Path) -> None:
    assert missing_gpu(host, "13.0") is None


def test_an_old_driver_is_named_with_the_ami_that_has_a_newer_one(host: Path) -> None:
    host.write_text(VERSION.format(driver="535.183.01"))
    told = missing_gpu(host, "13.0")
    assert told is not None and told.is_driver_old
    assert "driver 535 is too old for CUDA 13.0, which needs 580" in told.reason
    assert "al2023-ami-sagemaker-inference-gpu-4-1" in told.reason and "\n" not in told.reason


@pytest.mark.parametrize(("cuda", "words"), [("13.0", "--gpus all"), ("12.6", "--gpus all"), (None, "without CUDA")])
def test_a_new_driver_alone_is_no_gpu(host: Path, cuda: str | None, words: str) -> None:
    host.write_text(VERSION.format(driver="580.65.06"))
    told = missing_gpu(host, cuda)
    assert told is not None and words in told.reason and not told.is_driver_old


def test_a_gpu_host_is_not_served_on_its_cpu_in_silence(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(engine.runner.start.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(engine.runner.start, "missing_gpu", lambda: MissingGpu("the driver is old", True))
    with pytest.raises(ValueError, match="the driver is old; `--device cpu`"):
        open_device(EngineConfig(model="x"))
    assert open_device(EngineConfig(model="x", device="cpu")).torch_device.type == "cpu"
    monkeypatch.setattr(engine.runner.start, "missing_gpu", lambda: MissingGpu("no GPU is seen"))
    assert open_device(EngineConfig(model="x")).torch_device.type == "cpu"
    assert "serving on the CPU: no GPU is seen" in caplog.text
    with pytest.raises(ValueError, match="no GPU is seen"):
        open_device(EngineConfig(model="x", device="cuda"))
