"""The GPU's benchmarks run without a GPU, at tiny sizes in Triton's interpreter, and end in one line of JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu_kernels import Bar, Sizes, measurements
from benchmarks.gpu_linear import merged
from benchmarks.gpu_tests import TestRun, engine_jobs, kernel_jobs, pytest_command
from benchmarks.gpu_timing import num_sets

ROOT = Path(__file__).parents[3]


def run(script: str, *arguments: str) -> tuple[int, dict[str, Any]]:
    """(exit code, last line on stdout), with no GPU to be seen."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(ROOT / "benchmarks" / script), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    lines = ran.stdout.splitlines()
    assert lines or ran.returncode == 2, ran.stderr
    return ran.returncode, json.loads(lines[-1]) if lines else {}


def test_kernels_are_measured() -> None:
    code, result = run("gpu_kernels.py", "--smoke")
    rows = result["results"]["kernels"]
    assert [row for row in rows if "failed" in row or "torch_failed" in row] == []
    assert [row["name"] for row in rows if not row["right"]] == []
    assert {row["name"].split()[0] for row in rows} == {
        "decode", "prefill", "add_rms_norm", "rotate", "silu_and_mul", "sample", "logprobs", "skinny",
    }  # fmt: skip
    assert all(row["bytes"] > 0 and row["us"] > 0 for row in rows)
    assert code == 0


def test_check_runs_tests_and_kernels_and_keeps_its_line(tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    arguments = ["--smoke", "--parts", "kernels-tests", "kernels", "--limit-s", "240", "--output", str(output)]
    arguments += ["--tests", "rms_norm", "--only", "add_rms_norm"]
    code, result = run("gpu_check.py", *arguments)
    assert code == 0
    assert result == json.loads(output.read_text())
    assert result["tests"]["passed"] > 10
    assert (result["tests"]["failed"], result["tests"]["errors"]) == (0, [])
    assert len(result["kernels"]) == 1
    assert {"date", "gpu", "versions"} <= result.keys()


def test_a_table_of_linear_layers_is_written(tmp_path: Path) -> None:
    output = tmp_path / "table.json"
    code, _ = run("gpu_linear.py", "--smoke", "--rows", "4", "--output", str(output))
    assert code == 0
    assert {"versions", "date", "entries"} == json.loads(output.read_text()).keys()


ENGINE_SCRIPTS = ["gpu_steps.py", "gpu_offline.py", "gpu_serving.py", "gpu_start.py"]


@pytest.mark.parametrize("script", ["gpu_kernels.py", "gpu_check.py", "gpu_linear.py", *ENGINE_SCRIPTS])
def test_no_gpu_is_said(script: str) -> None:
    assert run(script) == (2, {})


def test_no_two_lines_have_one_name() -> None:
    names = [measurement.name for measurement in measurements(Sizes())]
    assert len(set(names)) == len(names)


def test_bars() -> None:
    assert Bar("copy", 0.8).is_met({"copy_share": 0.8}) and not Bar("copy", 0.8).is_met({"copy_share": 0.79})
    assert Bar("us", 25).is_met({"us": 25.0}) and not Bar("us", 25).is_met({"us": 25.1})


def test_rotation_is_larger_than_the_cache() -> None:
    assert [num_sets(size, 50) for size in (1, 10, 100, 150, 1000)] == [64, 20, 2, 2, 1]
    assert num_sets(10, 0) == 1


def test_entries_that_were_not_measured_again_stay(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    old = [{"n": n, "k": 8, "m_bucket": 1, "speedup": 1.1} for n in (1, 2, 3)]
    path.write_text(json.dumps({"entries": old}))
    new = {"n": 2, "k": 8, "m_bucket": 1, "speedup": 1.5}
    assert merged(path, {(2, 8, 1), (3, 8, 1)}, [new]) == [old[0], new]


def test_what_needs_hypothesis_is_not_loaded(tmp_path: Path) -> None:
    """The tests' own root is left out, as a plain `pytest tests/gpu` would not."""
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not here')")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}", "CUDA_VISIBLE_DEVICES": ""}
    (tmp_path / "msgspec.py").write_text("raise ImportError('not here')")
    jobs = kernel_jobs(smoke=False)
    assert {"tests/gpu/test_attention.py", "tests/kernels/gpu/test_norm.py"} <= set(jobs)
    command = pytest_command(tmp_path / "report.xml", jobs[0], TestRun([]))
    command += [*jobs[1:], "--collect-only", "-p", "no:hypothesispytest"]
    ran = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_every_test_of_the_engine_is_a_job() -> None:
    jobs = engine_jobs(smoke=False)
    assert jobs[0] == "tests/gpu/test_engine.py"
    for folder in ("tests/model", "tests/engine", "tests/property"):
        assert {path.relative_to(ROOT).as_posix() for path in (ROOT / folder).glob("test_*.py")} <= set(jobs)
    assert not set(jobs) & set(kernel_jobs(smoke=False))
