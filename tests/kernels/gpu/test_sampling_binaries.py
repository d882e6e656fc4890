"""How many binaries the sampler needs: the number of rows, of entries and of asked-for tokens makes none."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import json, torch
from kernels.gpu.ahead_of_time import compile_cases
from kernels.gpu.cases import CompileCase
from kernels.gpu.hardware import KNOWN
from kernels.gpu.sampling import empty_inputs, logprobs, sample, count_tokens

VOCAB = 32000

def launch(num_rows):
    logits = torch.empty(num_rows, VOCAB, dtype=torch.bfloat16, device="meta")
    tokens = torch.empty(num_rows, dtype=torch.int64, device="meta")
    for with_edits in (False, True):
        sample(logits, empty_inputs(num_rows, VOCAB, "meta", with_edits=with_edits))
    counts = torch.empty(num_rows, VOCAB, dtype=torch.int32, device="meta")
    count_tokens(counts, torch.empty(num_rows, dtype=torch.int32, device="meta"), tokens)
    logprobs(logits, tokens, num_rows % 21)

# One name for all: a binary is then told apart by its machine code alone.
cases = (CompileCase("all", lambda n=n: launch(n)) for n in (1, 2, 3, 15, 16, 17, 20, 64, 256, 1000))
print(json.dumps(sorted(binary.kernel for binary in compile_cases(90, cases))))
"""


def test_one_binary_per_kernel_whatever_the_batch(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=False, timeout=250
    )
    assert result.returncode == 0, result.stderr
    # With edits and without are two forms of the first two.
    assert json.loads(result.stdout) == [
        "_count_tokens",
        "_finish_rows",
        "_reduce_chunks",
        "choose_tokens",
        "choose_tokens",
        "reduce_chunks",
        "reduce_chunks",
    ]
