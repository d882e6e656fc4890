"""`python -m sagemaker COMMAND`: the entry point of the SageMaker tools.

Knows that a command either works or says in one line why not. Must not know what the commands do.
"""

import os
import sys

from sagemaker.arguments import parser
from sagemaker.calls import ToolError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the process's exit status: 0, 1 for a failure, 2 for bad arguments, 130 for Ctrl-C."""
    settings = parser().parse_args(arguments)
    try:
        settings.run(settings)
    except ToolError as error:
        print(f"python -m sagemaker {settings.command}: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `… | head` has seen enough; what is flushed at exit must not fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
