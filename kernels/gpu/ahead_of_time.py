"""`python -m kernels.gpu.ahead_of_time` compiles every kernel for four architectures, with no GPU, and shows its needs.

The launchers themselves run, on tensors of the meta device and under a driver that only names an architecture, so what
is compiled is what a real launch would compile: the same types, alignments and configurations. Registers, stack and
local memory are read from the machine code; shared memory is what the compiler asks for.
"""

import argparse
import dataclasses
import functools
import importlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import triton

from kernels.gpu.cases import MODULES, CompileCase
from kernels.gpu.hardware import KNOWN
from kernels.gpu.no_gpu import compiling

_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")


@dataclasses.dataclass(frozen=True, slots=True)
class Binary:
    """One kernel compiled for one architecture.

    case: what of ours was compiled. num_registers: per thread. shared_bytes: per thread block, static and dynamic.
    stack_bytes, local_bytes: per thread, both 0 unless registers spill or an array is indexed at run time.
    has_wgmma: whether it multiplies with Hopper's warp-group instructions.
    """

    kernel: str
    case: str
    capability: int
    num_warps: int
    num_stages: int
    num_registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int
    has_wgmma: bool
    digest: str


def compile_cases(capability: int, cases: Iterator[CompileCase]) -> list[Binary]:
    """Every kernel that the cases launch, compiled for sm_`capability`; in order, each (case, machine code) once."""
    compiled: list[tuple[str, Any]] = []
    current = ""
    with compiling(capability, lambda kernel: compiled.append((current, kernel))):
        for case in cases:
            current = case.name
            case.launch()
    binaries = {(name, kernel.hash): _describe(name, kernel, capability) for name, kernel in compiled}
    return list(binaries.values())


def compile_module(module: str, capability: int) -> list[Binary]:
    """Every case of one module of `kernels.gpu`, for sm_`capability`."""
    return compile_cases(capability, importlib.import_module(module).compile_cases(KNOWN[capability]))


def _describe(case: str, kernel: Any, capability: int) -> Binary:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(_TOOLS / "cuobjdump"), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.search(usage)
    if found is None:
        raise RuntimeError(f"cuobjdump said nothing of {kernel.metadata.name}: {usage!r}")
    registers, stack, static, local = (int(number) for number in found.groups())
    return Binary(
        kernel=kernel.metadata.name,
        case=case,
        capability=capability,
        num_warps=kernel.metadata.num_warps,
        num_stages=kernel.metadata.num_stages,
        num_registers=registers,
        # What the machine code names as static is there on top of what a launch asks for.
        shared_bytes=kernel.metadata.shared + static,
        stack_bytes=stack,
        local_bytes=local,
        has_wgmma="wgmma.mma_async" in kernel.asm["ptx"],
        digest=kernel.hash,
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kernels.gpu.ahead_of_time", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--capability", type=int, nargs="+", choices=sorted(KNOWN), default=sorted(KNOWN))
    parser.add_argument("--module", nargs="+", choices=MODULES, default=MODULES, help="default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes that compile side by side (default: 2)")
    parser.add_argument("--markdown", action="store_true", help="the table of docs/kernels.md instead of one JSON line")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs must be at least 1")
    if triton.knobs.runtime.interpret:
        parser.error("TRITON_INTERPRET is set: an interpreted kernel cannot be compiled")
    return options


def markdown(binaries: list[Binary]) -> str:
    """One row per kernel and case; registers and shared memory of each architecture."""
    capabilities = sorted({binary.capability for binary in binaries})
    rows: dict[tuple[str, str], dict[int, str]] = {}
    for binary in binaries:
        cell = f"{binary.num_registers} / {binary.shared_bytes / 1024:.1f}{' w' if binary.has_wgmma else ''}"
        cells = rows.setdefault((binary.kernel, binary.case), {})
        cells[binary.capability] = f"{cells[binary.capability]}, {cell}" if binary.capability in cells else cell
    lines = [
        "| kernel | case | " + " | ".join(f"sm_{capability}" for capability in capabilities) + " |",
        "|---|---|" + "---|" * len(capabilities),
    ]
    for (kernel, case), cells in rows.items():
        figures = " | ".join(cells.get(capability, "-") for capability in capabilities)
        lines.append(f"| `{kernel.lstrip('_')}` | {case} | {figures} |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; 1 if a kernel spills, uses a stack or asks for more shared memory than there is."""
    options = _parse(arguments)
    work = [(module, capability) for module in options.module for capability in options.capability]
    with ProcessPoolExecutor(options.jobs) as pool:
        results = pool.map(functools.partial(_compile_one), work)
        binaries = [binary for result in results for binary in result]
    broken = [
        binary
        for binary in binaries
        if binary.stack_bytes
        or binary.local_bytes
        or binary.shared_bytes > KNOWN[binary.capability].shared_memory_bytes
    ]
    for binary in broken:
        print(f"does not fit: {binary}", file=sys.stderr)
    print(markdown(binaries) if options.markdown else json.dumps([dataclasses.asdict(b) for b in binaries]))
    return 1 if broken else 0


def _compile_one(work: tuple[str, int]) -> list[Binary]:
    return compile_module(*work)


if __name__ == "__main__":
    sys.exit(main())
