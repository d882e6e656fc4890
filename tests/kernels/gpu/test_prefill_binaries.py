"""However long and many the sequences of a step are, the kernels of a prefill are compiled once.

Counted by the driver that only compiles, in a process of its own: here the kernels may be interpreted ones.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

STEPS = ((1, 1, 1), (2, 1, 7), (16, 1, 16), (17, 5, 33), (64, 64, 5), (300, 16, 1), (1000, 3, 2000))


def launches() -> Iterator[tuple[str, object]]:
    """(kernel, launch) at each step: tokens, sequences, blocks of a table; with tensors cut out of larger ones."""
    from kernels.gpu.activation import silu_and_mul
    from kernels.gpu.hardware import KNOWN
    from kernels.gpu.prefill_attention import prefill_attention
    from kernels.gpu.rope import RotateAndStore, rope_tables
    from kernels.interface import AttentionForm, AttentionHeads

    cache = torch.empty(4, 2, 32, 64, dtype=torch.bfloat16)
    rotate = RotateAndStore(AttentionHeads(4, 2, 64, None, None, 1e-6))
    for n, (num_tokens, num_sequences, num_blocks) in enumerate(STEPS):
        ints = torch.empty(num_sequences + 4, dtype=torch.int32)
        longs = torch.empty(num_tokens + 4, dtype=torch.int64)[n % 2 :][:num_tokens]
        starts, lengths = ints[n % 4 :][: num_sequences + 1], ints[n % 3 :][:num_sequences]
        table = torch.empty(num_sequences + 1, num_blocks, dtype=torch.int32)[n % 2 :][:num_sequences]
        qkv = torch.empty(num_tokens, 8 * 64, dtype=torch.bfloat16)
        query = qkv[:, :256].unflatten(1, (4, 64))
        form = AttentionForm(0.1)
        yield "attention", lambda: prefill_attention(query, cache, cache, starts, lengths, table, form, KNOWN[90])  # noqa: B023
        tables = torch.empty(num_tokens, 32), torch.empty(num_tokens, 32)
        yield "rotation", lambda: rotate(qkv, tables, (cache, cache), longs)  # noqa: B023
        yield "tables", lambda: rope_tables(longs, torch.empty(32), 1.0 + n)  # noqa: B023
        yield "activation", lambda: silu_and_mul(qkv)  # noqa: B023


def main() -> None:
    """Print how many binaries there are of each kernel."""
    from kernels.gpu.ahead_of_time import compile_cases
    from kernels.gpu.cases import CompileCase

    binaries = compile_cases(90, (CompileCase(name, launch) for name, launch in launches()))
    print(sorted((binary.case, sum(b.case == binary.case for b in binaries)) for binary in binaries))


def test_each_kernel_is_compiled_once(tmp_path: Path) -> None:
    variables = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    variables |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.run(
        [sys.executable, __file__], env=variables, capture_output=True, text=True, timeout=280, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str([(name, 1) for name in ("activation", "attention", "rotation", "tables")])


if __name__ == "__main__":
    main()
