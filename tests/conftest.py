"""Hypothesis profiles, and where the engine's tests run.

`--hypothesis-profile=nightly` looks for what a few hundred examples do not find. `--device=cuda` runs what builds an
engine on a GPU; tests marked `cpu_only` are skipped there.
"""

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

# No test asserts a duration that a busy machine could miss.
settings.register_profile("test", deadline=None)
settings.register_profile(
    "nightly", max_examples=10_000, deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("test")


def pytest_addoption(parser: pytest.Parser) -> None:
    """--device: what the engine's own "auto" finds, here and in child processes."""
    parser.addoption(
        "--device", choices=["auto", "cpu", "cuda"], default="auto", help="auto: a GPU where there is one (default)"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Before any test module is imported: what has once seen a GPU goes on seeing it."""
    config.addinivalue_line("markers", "cpu_only(reason): about the CPU's kernels, or about bitwise equality on a CPU")
    device = config.getoption("--device")
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif device == "cuda":
        import torch

        if not torch.cuda.is_available():
            raise pytest.UsageError("--device=cuda: torch.cuda.is_available() is false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what is about the CPU where the engine runs on a GPU."""
    marked = [(item, mark) for item in items if (mark := item.get_closest_marker("cpu_only")) is not None]
    if not marked:
        return
    import torch

    if torch.cuda.is_available():
        for item, mark in marked:
            item.add_marker(pytest.mark.skip(reason=f"on a CPU only: {mark.args[0]}"))


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> Iterator[None]:
    """Whoever runs the tests in the background or under nohup has Ctrl-C and hang-up ignored, here and in children."""
    earlier = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    if earlier[signal.SIGINT] is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if earlier[signal.SIGHUP] is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)
