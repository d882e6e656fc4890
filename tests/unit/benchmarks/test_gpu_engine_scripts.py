"""The GPU's benchmarks of the engine run without a GPU, at tiny sizes on the CPU, and their arithmetic is right."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_rows, gpu_wheels
from benchmarks.gpu_check import PARTS, Check
from benchmarks.gpu_jobs import Job, mixed_job
from benchmarks.gpu_models import LLAMA_8B, QWEN3_06B, QWEN3_14B, SHAPES, GpuShape, config_of, weight_shapes
from benchmarks.gpu_rows import Rows, run_child
from benchmarks.gpu_serving import flags_of
from benchmarks.gpu_start import read_seconds, weights_s
from benchmarks.gpu_trace import idle_shares, kernel_times
from tests.unit.benchmarks.test_gpu_scripts import ENGINE_SCRIPTS, run


@pytest.fixture(scope="module")
def smoked() -> dict[str, tuple[int, dict[str, Any]]]:
    """The last line of every script."""
    return {script: run(script, "--smoke") for script in ENGINE_SCRIPTS}


@pytest.mark.parametrize("script", ENGINE_SCRIPTS)
def test_nothing_fails_and_every_row_has_a_name(smoked: dict[str, tuple[int, dict[str, Any]]], script: str) -> None:
    code, result = smoked[script]
    rows = result["results"]
    assert [row for row in rows if "failed" in row or "not_measured" in row or "cut_short" in row] == []
    assert all("name" in row for row in rows)
    assert code == 0
    assert {"date", "gpu", "versions"} <= result["machine"].keys()


def test_each_script_measures_what_it_is_for(smoked: dict[str, tuple[int, dict[str, Any]]]) -> None:
    rows = {row["name"]: row for _, result in smoked.values() for row in result["results"]}
    for variant in ("default", "eager", "no overlap"):
        for batch_size in (1, 4):
            row = rows[f"decode smoke, batch {batch_size}, {variant}"]
            assert row["num_steps"] == 12 and 0 < row["host_ms"] <= row["p99_ms"]
    assert rows["decode smoke, batch 1, default"]["met"] is True
    assert rows["prefill smoke, 64 tokens, alone"]["matrix_share"] > 0
    ours, theirs = rows["galley smoke"]["output_tok_s"], rows["transformers smoke"]["output_tok_s"]
    assert rows["ratio smoke"]["ratio"] == pytest.approx(ours / theirs)
    for streams in (1, 4):
        http = rows[f"http smoke, {streams} streams"]["output_tok_s"]
        offline = rows[f"offline smoke, {streams} streams"]["output_tok_s"]
        assert rows[f"cost of http, smoke, {streams} streams"]["cost"] == pytest.approx(1 - http / offline)
    start = rows["start, filled Triton cache, cached files"]
    assert 0 < start["imported_s"] < start["loaded_s"] < start["first_token_s"]
    assert any("weights" in text for _, text in start["stages"])
    assert rows["all but weights, filled Triton cache, cold files"]["bar"] == "<= 8"


@pytest.mark.parametrize(
    ("shape", "weights_gb", "kv_kib", "limits_ms", "prefill_tok_s"),
    [
        (QWEN3_06B, 1.19, 112, (0.305, 3.85), 708_085),
        (LLAMA_8B, 15.01, 128, (3.52, 7.70), 54_500),
        (QWEN3_14B, 27.98, 160, (6.55, 11.82), 28_977),
    ],
    ids=lambda value: value.name if isinstance(value, GpuShape) else None,
)
def test_limits_are_those_worked_out_before(
    shape: GpuShape, weights_gb: float, kv_kib: int, limits_ms: tuple[float, float], prefill_tok_s: int
) -> None:
    """Against the table that the issue's bars were taken from; its steps also count some activations."""
    assert shape.decode_bytes(0, 0) / 1e9 == pytest.approx(weights_gb, abs=0.005)
    assert shape.kv_bytes_per_token == kv_kib * 1024
    for batch_size, limit_ms in zip((1, 128), limits_ms, strict=True):
        assert shape.decode_limit_ms(batch_size, 1024) == pytest.approx(limit_ms, rel=0.03)
    assert 2048 * 790e12 / shape.prefill_flops(2048) == pytest.approx(prefill_tok_s, rel=0.001)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_checkpoint_has_the_bytes_that_are_told(shape: GpuShape) -> None:
    found = sum(2 * size[0] * size[1] for _, size in weight_shapes(shape) if len(size) == 2)
    assert found == shape.checkpoint_bytes


def test_transformers_counts_the_same_parameters() -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    for shape in (LLAMA_8B, QWEN3_06B):
        fields = config_of(shape)
        config = AutoConfig.for_model(fields["model_type"], **{k: v for k, v in fields.items() if k != "model_type"})
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        theirs = {name: tuple(tensor.shape) for name, tensor in model.named_parameters()}
        assert theirs == dict(weight_shapes(shape))


def test_the_job_is_the_published_one(tmp_path: Path) -> None:
    job = mixed_job("qwen3-0.6b", smoke=False)
    assert (len(job.prompts), job.num_output_tokens) == (256, 133_966)  # nano-vllm's README
    assert all(100 <= len(prompt) <= 1024 for prompt in job.prompts)
    assert Job.read(job.write(tmp_path / "job.json")) == job


def kernel(start: float, duration: float, name: str = "k", cat: str = "kernel") -> dict[str, Any]:
    return {"cat": cat, "name": name, "ts": start, "dur": duration}


def test_idle_time_is_that_between_kernels() -> None:
    # 10 of work, 2 of gap, 8 of work beside 5 more, 20 of gap, 10 of work: 50 in all.
    events = [kernel(0, 10), kernel(12, 8), kernel(13, 5), kernel(40, 10, "b"), kernel(0, 90, cat="cpu_op")]
    assert idle_shares(events) == (pytest.approx(22 / 50), pytest.approx(20 / 50))
    assert idle_shares(events[:1]) is None
    assert kernel_times(events, 2) == {"k": [11.5, 1.5], "b": [5.0, 0.5]}


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([(1.0, "loading weights"), (4.0, "15.01 GB of weights from files in 2.90 s, 5.17 GB/s")], 2.9),
        ([(1.0, "loading weights"), (4.0, "loading weights took 2.95 s"), (9.0, "warming up took 5 s")], 2.95),
        ([(1.0, "loading weights"), (4.5, "warming up")], 3.5),
        ([(1.0, "warming up")], None),
    ],
)  # fmt: skip
def test_the_weights_time_is_read_from_the_log(lines: list[tuple[float, str]], expected: float | None) -> None:
    assert weights_s(lines) == expected


def test_a_parallel_read_reads_everything(tmp_path: Path) -> None:
    paths = [tmp_path / str(size) for size in (1, 2**24, 2**24 + 5)]
    for path in paths:
        path.write_bytes(bytes(int(path.name)))
    assert read_seconds(paths, num_threads=2) > 0


def test_settings_as_flags() -> None:
    flags = flags_of(Path("m"), {"device": "cuda", "enforce_eager": False, "async_scheduling": True}, 3)
    assert flags[:4] == ["--model", "m", "--num-workers", "3"]
    assert flags[-4:] == ["--device", "cuda", "--no-enforce-eager", "--async-scheduling"]


def test_rows_of_a_child_that_is_cut_short_are_kept(tmp_path: Path) -> None:
    script = tmp_path / "child.py"
    script.write_text(
        "import time\nprint('{\"name\": \"a\"}', flush=True)\nprint('no json', flush=True)\ntime.sleep(60)"
    )
    started = time.monotonic()
    seen: list[Any] = []
    rows, error = run_child([str(script)], 2.0, on_row=seen.append)
    assert rows == seen == [{"name": "a"}]
    assert error == "not done after 2 s"
    assert time.monotonic() - started < 30
    assert run_child(["-c", "import sys; sys.exit(3)"], 60.0) == ([], "ended with 3")


def test_one_failure_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    rows = Rows("test", argparse.Namespace(limit_s=100.0))

    def fails() -> list[dict[str, Any]]:
        raise ValueError("first line\nsecond")

    rows.attempt("one", 1.0, fails)
    rows.attempt("two", 1000.0, lambda: [{"name": "two"}])
    rows.attempt("three", 1.0, lambda: [{"name": "three", **gpu_rows.bar(2.0, 1.5, at_least=True)}])
    rows.run("four", 1.0, ["-c", "import sys; sys.exit(3)"], 60.0)
    assert rows.finish() == 1
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed[-1]["results"] == printed[:-1] == rows.rows
    assert [row.get("failed") for row in rows.rows] == ["ValueError: first line", None, None, "ended with 3"]
    assert rows.rows[1]["not_measured"].endswith("1000 needed")
    assert rows.rows[2] == {"name": "three", "bar": ">= 1.5", "met": True}


def check_of(monkeypatch: pytest.MonkeyPatch, parts: list[str], limit_s: float) -> tuple[Check, dict[str, float]]:
    """A check whose scripts are a stand-in, and the seconds that each was given."""
    given: dict[str, float] = {}

    def stand_in(command: list[str], limit_s: float, **_: Any) -> tuple[list[dict[str, Any]], str | None]:
        part = command[0].removeprefix("benchmarks/gpu_").removesuffix(".py")
        given[part] = limit_s
        rows = [{"name": part}]
        return {
            "steps": (rows, "not done after 9 s"),
            "offline": ([*rows, {"benchmark": "x", "results": rows}], None),
        }.get(part, ([], "ended with 1"))

    monkeypatch.setattr("benchmarks.gpu_check.run_child", stand_in)
    args = argparse.Namespace(parts=parts, limit_s=limit_s, output=None, smoke=True, tests="", only=[])
    return Check(args), given


def test_parts_share_the_time_and_fail_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    check, given = check_of(monkeypatch, ["start", "steps", "offline"], 740.0)
    check.run()
    assert list(given) == ["steps", "offline", "start"]  # in the order of the whole, whatever was asked for first
    # No part took any time: the first gets its share, and the last all that is left.
    total = PARTS["steps"] + PARTS["offline"] + PARTS["start"]
    assert given["steps"] == pytest.approx(740 * PARTS["steps"] / total, abs=5)
    assert given["start"] == pytest.approx(740, abs=5)
    assert check.result["errors"] == {"steps": "not done after 9 s", "start": "ended with 1"}
    assert check.result["steps"] == [{"name": "steps"}]
    assert check.result["offline"] == [{"name": "offline"}]
    assert set(check.failures) == {"steps", "start"}


def test_missing_packages_are_said_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gpu_wheels, "SERVING_MODULES", ("no_such_module_here",))
    monkeypatch.setattr(gpu_wheels, "FOLDER", tmp_path)
    check, given = check_of(monkeypatch, ["offline", "serving"], 300.0)
    check.run()
    assert list(given) == ["offline"]
    [(part, why)] = check.result["errors"].items()
    assert part == "serving"
    assert "no_such_module_here" in why and "make gpu-wheels" in why and "\n" not in why


def test_wheels_are_pinned_and_leave_the_machines_own_alone() -> None:
    names = {line.split("==")[0].lower() for line in gpu_wheels.requirements()}
    assert {"msgspec", "flask", "gevent", "gunicorn", "aiohttp"} <= names
    assert not names & {"torch", "triton", "numpy", "transformers", "tokenizers", "safetensors"}


def test_every_package_brings_what_it_needs() -> None:
    """The wheels are unpacked without looking for anything else."""
    import importlib.metadata

    from packaging.requirements import Requirement

    names = {line.split("==")[0].lower().replace("_", "-") for line in gpu_wheels.requirements()} | {"pytest"}
    environment = {"python_version": "3.12", "extra": ""}
    for name in names - {"pytest"}:
        for text in importlib.metadata.requires(name) or []:
            needed = Requirement(text)
            if needed.marker is None or needed.marker.evaluate(environment):
                assert needed.name.lower().replace("_", "-") in names, f"{name} needs {text}"


def test_wheels_are_unpacked_beside_what_is_there(tmp_path: Path) -> None:
    import zipfile

    folder, site = tmp_path / "wheels", tmp_path / "site"
    folder.mkdir()
    assert gpu_wheels.install(folder, site) == f"no wheels in {folder}"
    with zipfile.ZipFile(folder / "galley_wheel_test-1.0-py3-none-any.whl", "w") as wheel:
        info = "galley_wheel_test-1.0.dist-info"
        wheel.writestr("galley_wheel_test.py", "")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: galley-wheel-test\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    assert gpu_wheels.missing(("galley_wheel_test", "json"), site) == ["galley_wheel_test"]
    assert gpu_wheels.install(folder, site) is None
    assert gpu_wheels.missing(("galley_wheel_test", "json"), site) == []
    assert "galley_wheel_test" not in sys.modules
