"""The skinny product equals `reference.linear`, whatever the cut, and `Linear` chooses by its table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import reference
from kernels.gpu import linear as module
from kernels.gpu.hardware import KNOWN, Hardware
from kernels.gpu.linear import Linear, skinny_matmul
from kernels.gpu.linear_table import LinearTable, SkinnyConfig, bucket_of, default_config, slug
from tests.kernels.oracle import relative_error

# Both round the sum once, to the type's 8 or 11 bits: uniform errors of a half unit are 1.1e-3 and 1.4e-4 in norm.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-3, torch.float16: 5e-4}
CUTS = [SkinnyConfig(16, 16, 1, 2, 4), SkinnyConfig(16, 32, 3, 2, 4), SkinnyConfig(32, 16, 8, 2, 4)]


def tensors(
    m: int, n: int, k: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m * n + k)
    x, weight = torch.randn(m, k, generator=generator), torch.randn(n, k, generator=generator)
    bias = torch.randn(n, generator=generator)
    return x.to(dtype).to(device), weight.to(dtype).to(device), bias.to(dtype).to(device)


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """New tensors are NaN, so that what a kernel leaves unwritten shows."""
    empty = torch.empty

    def filled(*sizes: int, **options: object) -> torch.Tensor:
        return empty(*sizes, **options).fill_(float("nan"))  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(torch, "empty", filled)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("config", CUTS, ids=lambda config: f"{config.block_n}x{config.block_k}/{config.split_k}")
@pytest.mark.parametrize("shape", [(1, 40, 96), (5, 33, 77), (17, 16, 130)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.usefixtures("poisoned")
def test_product(
    device: torch.device,
    hardware: Hardware,
    dtype: torch.dtype,
    config: SkinnyConfig,
    shape: tuple[int, int, int],
    has_bias: bool,
) -> None:
    x, weight, bias = tensors(*shape, dtype, device)
    added = bias if has_bias else None
    found = skinny_matmul(x, weight, added, hardware, config)
    expected = reference.linear(x.double(), weight, added)
    assert found.dtype == dtype
    assert relative_error(found, expected) < TOLERANCE[dtype]


@pytest.mark.parametrize("num_rows", [1, 16, 32, 33, 64])
def test_every_bucket_of_rows_by_default(device: torch.device, hardware: Hardware, num_rows: int) -> None:
    x, weight, bias = tensors(num_rows, 70, 1100, torch.bfloat16, device)
    config = default_config(num_rows, 70, 1100, hardware)
    assert config.split_k > 1
    found = skinny_matmul(x, weight, bias, hardware)
    assert relative_error(found, reference.linear(x.double(), weight, bias)) < TOLERANCE[torch.bfloat16]


@pytest.mark.usefixtures("poisoned")
def test_more_parts_than_tiles_leave_none_unwritten(device: torch.device, hardware: Hardware) -> None:
    x, weight, _ = tensors(3, 20, 40, torch.float32, device)
    found = skinny_matmul(x, weight, None, hardware, SkinnyConfig(16, 16, 16, 2, 4))
    assert relative_error(found, reference.linear(x, weight, None)) < 1e-5


@pytest.mark.parametrize("split_k", [1, 4])
def test_rows_of_x_may_be_strided_and_what_lies_beside_them_is_not_read(
    device: torch.device, hardware: Hardware, split_k: int
) -> None:
    x, weight, bias = tensors(5, 24, 70, torch.float32, device)
    wide = torch.full((6, 200), float("nan"), device=device)
    wide[:5, 30:100] = x
    config = SkinnyConfig(16, 32, split_k, 2, 4)
    found = skinny_matmul(wide[:5, 30:100], weight, bias, hardware, config)
    assert torch.equal(found, skinny_matmul(x, weight, bias, hardware, config))


def test_same_bits_every_time_and_alone_as_in_a_batch(device: torch.device, hardware: Hardware) -> None:
    x, weight, bias = tensors(16, 48, 300, torch.bfloat16, device)
    config = SkinnyConfig(16, 32, 4, 2, 4)
    first = skinny_matmul(x, weight, bias, hardware, config)
    assert torch.equal(first, skinny_matmul(x, weight, bias, hardware, config))
    assert torch.equal(first[3:4], skinny_matmul(x[3:4], weight, bias, hardware, config))


def test_no_rows_and_too_many(device: torch.device, hardware: Hardware) -> None:
    x, weight, _ = tensors(65, 16, 32, torch.float32, device)
    assert skinny_matmul(x[:0], weight, None, hardware).shape == (0, 16)
    with pytest.raises(ValueError, match="at most 64 rows"):
        skinny_matmul(x, weight, None, hardware)


@pytest.mark.parametrize("capability", [*KNOWN, 75, 100, 120])
def test_default_cuts_fill_the_gpu_and_keep_their_pipelines_busy(capability: int) -> None:
    known = KNOWN.get(capability, KNOWN[89])
    hardware = Hardware("GPU", capability, known.num_multiprocessors, known.shared_memory_bytes)
    for num_rows in (1, 16, 17, 64):
        for n, k in ((4096, 4096), (6144, 4096), (128256, 4096), (1024, 3072), (16, 16)):
            config = default_config(num_rows, n, k, hardware)
            programs = -(-n // config.block_n) * config.split_k
            assert config.split_k == 1 or k // config.split_k >= 4 * config.block_k
            is_cut_enough = programs >= 2 * hardware.num_multiprocessors
            assert is_cut_enough or config.split_k == 16 or k < 8 * config.split_k * config.block_k
    assert default_config(1, 128256, 4096, hardware).split_k == 1


def table_file(folder: Path, content: object) -> Path:
    path = folder / "nvidia-h200.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


ENTRY = {
    "n": 48,
    "k": 64,
    "m_bucket": 4,
    "config": {"block_n": 16, "block_k": 32, "split_k": 2, "num_stages": 2, "num_warps": 4},
    "speedup": 1.2,
}


def test_a_table_names_the_buckets_that_are_ours(
    device: torch.device, hardware: Hardware, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table_file(tmp_path, {"versions": {}, "date": "2026-11-24", "entries": [ENTRY]})
    table = LinearTable.for_hardware(KNOWN[90], tmp_path)
    calls = []

    def counted(*arguments: object) -> torch.Tensor:
        calls.append(arguments[-1])
        return skinny_matmul(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "skinny_matmul", counted)
    for dtype, ours in ((torch.bfloat16, [3, 4]), (torch.float16, [3, 4]), (torch.float32, [])):
        _, weight, bias = tensors(1, 48, 64, dtype, device)
        layer = Linear([weight[:20], weight[20:]], bias, hardware, table)
        for num_rows in (0, 1, 2, 3, 4, 5, 64, 65, 100):
            x = tensors(num_rows, 48, 64, dtype, device)[0]
            calls.clear()
            found = layer(x)
            assert found.shape == (num_rows, 48)
            assert (len(calls) == 1) == (num_rows in ours)
            if num_rows:
                assert relative_error(found, reference.linear(x.double(), weight, bias)) < TOLERANCE[dtype]
    other = Linear([weight[:20]], None, hardware, table)
    calls.clear()
    other(tensors(4, 20, 64, torch.float32, device)[0])
    assert calls == []


def test_no_table_is_cublas_alone(tmp_path: Path) -> None:
    assert LinearTable.for_hardware(KNOWN[80], tmp_path).entries == {}
    for hardware in KNOWN.values():
        LinearTable.for_hardware(hardware)  # what ships can be read


@pytest.mark.parametrize(
    "content",
    [
        "{",
        [],
        {},
        {"entries": [{**ENTRY, "m_bucket": 3}]},
        {"entries": [{**ENTRY, "n": "48"}]},
        {"entries": [{**ENTRY, "config": {"block_n": 16}}]},
        {"entries": [{**ENTRY, "config": {**ENTRY["config"], "block_n": 48}}]},  # type: ignore[dict-item]
        {"entries": [{**ENTRY, "config": {**ENTRY["config"], "split_k": 0}}]},  # type: ignore[dict-item]
    ],
    ids=str,
)
def test_a_broken_table_is_one_clear_error(tmp_path: Path, content: object) -> None:
    path = table_file(tmp_path, content)
    with pytest.raises(ValueError, match=f"{path.name} is not a table of linear layers"):
        LinearTable.for_hardware(KNOWN[90], tmp_path)


def test_names_and_buckets() -> None:
    assert slug("NVIDIA A100-SXM4-80GB") == "nvidia-a100-sxm4-80gb"
    assert [bucket_of(m) for m in (1, 2, 3, 4, 5, 16, 17, 33, 64)] == [1, 2, 4, 4, 8, 16, 32, 64, 64]


COUNT = """
import torch
from kernels.gpu.ahead_of_time import compile_cases
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import KNOWN
from kernels.gpu.linear import skinny_matmul
from kernels.gpu.linear_table import SkinnyConfig

weight = torch.empty(64, 1024, dtype=torch.bfloat16, device="meta")

def case(m, split_k):
    x = torch.empty(m, 1024, dtype=torch.bfloat16, device="meta")
    config = SkinnyConfig(64, 64, split_k, 2, 4)
    return CompileCase("", lambda: skinny_matmul(x, weight, None, KNOWN[90], config))

print(len({b.digest for b in compile_cases(90, (case(m, s) for m in (1, 2, 3, 8, 15, 16) for s in (2, 3, 4)))}))
"""


def test_rows_and_parts_compile_nothing_new() -> None:
    """In a process of its own: here kernels may be interpreted."""
    root = Path(__file__).parents[3]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(root)
    ran = subprocess.run(
        [sys.executable, "-c", COUNT], env=environment, cwd=root, capture_output=True, text=True, timeout=250
    )
    assert ran.stdout.strip() == "2", ran.stderr  # the product and the sum of its parts
