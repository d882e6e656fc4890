"""`python -m tests.engine.scripted_process SOCKET [DELAY_MS] [GRACE_S]`: the engine process over a script.

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
from tests.engine.scripted import ScriptedRunner, model_info

FAIL_TOKEN = 999
BREAK_TOKEN = 998
CONFIG = EngineConfig(max_num_seqs=4, max_num_batched_tokens=64, max_num_waiting=3, block_size=16)


class FailingRunner(ScriptedRunner):
    def launch(self, output: SchedulerOutput) -> SchedulerOutput:
        first_tokens = {sequence.token_ids[0] for sequence, _ in output.scheduled}
        self.is_broken = BREAK_TOKEN in first_tokens
        self.fail_next = self.is_broken or FAIL_TOKEN in first_tokens
        return super().launch(output)


def main() -> int:
    logging.basicConfig(level=logging.INFO)
    die_with_parent(os.getppid())
    delay_s = float(sys.argv[2]) / 1000 if len(sys.argv) > 2 else 0.0
    grace_s = float(sys.argv[3]) if len(sys.argv) > 3 else 5.0

    def load(config: EngineConfig, on_stage: Callable[[str], None]) -> tuple[ScriptedRunner, ModelInfo]:
        on_stage("loading a script")
        runner = FailingRunner(200, 16, max_num_seqs=4, max_num_batched_tokens=64)
        runner.delay_s = delay_s
        return runner, model_info()

    return EngineProcess(CONFIG, Path(sys.argv[1]), grace_s, load).run()


if __name__ == "__main__":
    sys.exit(main())
