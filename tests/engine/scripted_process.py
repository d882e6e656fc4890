"""`python -m tests.engine.scripted_process SOCKET DELAY_MS GRACE_S [overlap]`: the engine process over a script.

A prompt whose first token is FAIL_TOKEN makes its step raise; one with BREAK_TOKEN breaks the device for good.
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from engine.api import EngineConfig, ModelInfo
from engine.process import EngineProcess, die_with_parent
from engine.sequence import SchedulerOutput
from tests.engine.scripted import ScriptedRunner, ScriptedStep, model_info, runner_for

FAIL_TOKEN = 999
BREAK_TOKEN = 998


class FailingRunner(ScriptedRunner):
    def launch(self, output: SchedulerOutput) -> ScriptedStep:
        first_tokens = {sequence.token_ids[0] for sequence, _ in output.scheduled}
        self.is_broken = BREAK_TOKEN in first_tokens
        self.fail_next = self.is_broken or FAIL_TOKEN in first_tokens
        return super().launch(output)

    def recover(self) -> None:
        assert sys.exception() is None, "the traceback would keep the failed step's tensors alive"
        super().recover()


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    die_with_parent(os.getppid())
    socket_path, delay_ms, grace_s, *options = sys.argv[1:]
    config = EngineConfig(
        max_num_seqs=4,
        max_num_batched_tokens=64,
        max_num_waiting=3,
        block_size=16,
        async_scheduling="overlap" in options,
    )

    def load(config: EngineConfig, on_stage: Callable[[str], None]) -> tuple[ScriptedRunner, ModelInfo]:
        on_stage("loading a script")
        runner = runner_for(config, 200, FailingRunner)
        runner.delay_s = float(delay_ms) / 1000
        return runner, model_info()

    return EngineProcess(config, Path(socket_path), float(grace_s), load).run()


if __name__ == "__main__":
    sys.exit(main())
