"""No launcher waits for the GPU, and each can be captured: over the benchmark's own list of what there is."""

import dataclasses

import pytest
import torch

from benchmarks.gpu_kernels import MAX_ERROR, Measurement, Sizes, measurements
from benchmarks.gpu_timing import GraphClock, ceilings
from benchmarks.gpu_work import Heads, Place
from kernels.gpu.hardware import Hardware
from tests.gpu.support import captured, without_waiting

# Real layers, but fewer and shorter sequences than are timed.
SIZES = dataclasses.replace(
    Sizes(), heads=Heads(32, 8, 128), num_tokens=513, decode=((3, 1999, None), (70, 300, None)), prefill=((2, 700),)
)
LAUNCHERS = list(measurements(SIZES))


def place_on(device: torch.device, hardware: Hardware) -> Place:
    return Place(device, hardware, 0, 16)


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.name)
def test_does_not_wait(device: torch.device, hardware: Hardware, launcher: Measurement) -> None:
    work = launcher.make(place_on(device, hardware))
    call = work.ours[0]
    call()  # compiles and loads
    with without_waiting():
        call()


@pytest.mark.parametrize("launcher", LAUNCHERS, ids=lambda launcher: launcher.name)
def test_is_right_and_can_be_captured(device: torch.device, hardware: Hardware, launcher: Measurement) -> None:
    work = launcher.make(place_on(device, hardware))
    assert work.error() <= MAX_ERROR
    graph, _ = captured(work.ours[0])
    graph.replay()
    torch.cuda.synchronize()


def test_guard_against_waiting_works(device: torch.device) -> None:
    x = torch.ones(3, device=device)
    with pytest.raises(RuntimeError, match="synchroniz"), without_waiting():
        x.sum().item()
    x.sum().item()


def test_ceilings_are_of_a_gpu(device: torch.device) -> None:
    """An order of magnitude under or over what any GPU of the list has is a broken clock."""
    top = ceilings(device, GraphClock(0.02), 2**28, 4096)
    assert 1e11 < top.copy_bytes_s < 2e13
    assert 1e13 < top.matrix_flops_s < 5e15
