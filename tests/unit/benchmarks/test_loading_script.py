"""The loading benchmark writes its files once and ends in one line of JSON."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> dict[str, Any]:
    command = [sys.executable, str(ROOT / "benchmarks/loading.py"), *arguments]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    result: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return result


def test_every_way_is_measured_and_files_are_written_once(tmp_path: Path) -> None:
    arguments = ["--directory", str(tmp_path), "--size-gb", "0.002", "--hidden-size", "64", "--num-files", "3"]
    result = run(*arguments, "--cold", "--repeats", "1")["results"]
    files = sorted(tmp_path.glob("*.safetensors"))
    assert result["num_files"] == len(files) == 3
    stored_bytes = sum(path.stat().st_size for path in files)
    assert 0 <= stored_bytes - result["gb"] * 1e9 < 0.2 * stored_bytes, "the files' size, but for the headers"
    for cache in ("warm", "cold"):
        rates = result[cache]["gb_per_s"]
        assert rates.keys() == {"read", "read_kept", "streamed", "staged", "load_file"}
        assert all(rate > 0 for rate in rates.values())
    before = [path.stat().st_mtime_ns for path in files]
    run(*arguments, "--repeats", "1")
    assert before == [path.stat().st_mtime_ns for path in files]
