"""Weights on their way to a GPU: the same bits as in the files, whatever else the device is doing."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("safetensors")
from safetensors.torch import save_file

from engine.loading.chunks import ReadOptions
from engine.loading.dummy import DummyWeights
from engine.loading.streamed import StreamedWeights, StreamOptions

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("stored", DTYPES, ids=str)
@pytest.mark.parametrize(("num_buffers", "chunk_bytes"), [(1, 4096), (3, 100_001), (16, 2**24)])
def test_streamed_weights(
    tmp_path: Path, device: torch.device, dtype: torch.dtype, stored: torch.dtype, num_buffers: int, chunk_bytes: int
) -> None:
    sizes = (1, 700, 64, 1500, 3)
    expected = {f"w{index}": torch.randn(size, 96).to(stored) for index, size in enumerate(sizes)}
    save_file(expected, tmp_path / "model.safetensors")
    options = StreamOptions(ReadOptions(num_buffers=num_buffers, chunk_bytes=chunk_bytes))
    with StreamedWeights(tmp_path, dtype, device, options) as weights:
        (fused,) = weights.parts([(f"w{index}", size) for index, size in enumerate(sizes[:4])], 96)
        alone = weights.keep("w4", (3, 96))
        weights.finish()
    assert torch.equal(fused.cpu(), torch.cat([expected[f"w{index}"].to(dtype) for index in range(4)]))
    assert torch.equal(alone.cpu(), expected["w4"].to(dtype))


def test_memory_that_queued_work_still_writes(tmp_path: Path, device: torch.device) -> None:
    """What is freed on a stream is allocated anew at once, though kernels queued there have yet to write it."""
    size = 2**22
    save_file({"w": torch.ones(size)}, tmp_path / "model.safetensors")
    with StreamedWeights(tmp_path, torch.float32, device) as weights:
        earlier = torch.empty(size, device=device)
        torch.cuda._sleep(500_000_000)  # cycles: some tenths of a second
        earlier.fill_(7.0)
        address = earlier.data_ptr()
        del earlier
        kept = weights.keep("w", (size,))
        assert kept.data_ptr() == address
        weights.finish()
    assert bool(kept.eq(1).all())


def test_a_load_that_fails_leaves_the_device_well(tmp_path: Path, device: torch.device) -> None:
    save_file({f"w{index}": torch.ones(2**20) for index in range(8)}, tmp_path / "model.safetensors")
    with StreamedWeights(tmp_path, torch.float32, device) as weights:
        kept = [weights.keep(f"w{index}", (2**20,)) for index in range(8)]
        with (tmp_path / "model.safetensors").open("r+b") as file:
            file.truncate(20 * 2**20)
        with pytest.raises(ValueError, match="it was cut"):
            weights.finish()
    del kept
    assert int(torch.zeros(2**25, device=device).sum()) == 0


def test_dummy_weights(device: torch.device) -> None:
    made = []
    for _ in range(2):
        with DummyWeights(torch.bfloat16, device) as weights:
            made += [weights.parts([("q", 4096), ("k", 1024)], 4096)[0], weights.keep("norm.weight", (4096,))]
            assert weights.finish().num_bytes == 2 * (5120 * 4096 + 4096)
    assert torch.equal(made[0], made[2])
    assert torch.equal(made[1], made[3])
    assert float(made[0].float().std()) == pytest.approx(0.02, rel=0.01)
    assert float(made[1].float().mean()) == pytest.approx(1.0, abs=0.01)
