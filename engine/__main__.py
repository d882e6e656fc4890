"""`python -m engine`: the engine process, as the supervisor starts it.

Knows its command line. Must not read the environment: every setting comes as JSON.
"""

import argparse
import logging
import sys
from pathlib import Path

import msgspec

from engine.api import EngineConfig
from engine.process import EXIT_BAD_MODEL, EngineProcess, die_with_parent


def main() -> int:
    """Parse the command line and serve until told to stop; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m engine", description="The engine process behind `serve`.")
    parser.add_argument("--socket", type=Path, required=True, help="Unix socket to listen on, in a private directory")
    parser.add_argument("--config", required=True, help="EngineConfig as a JSON object")
    parser.add_argument("--grace-s", type=float, default=25.0, help="seconds that running requests get after SIGTERM")
    parser.add_argument("--log-level", default="INFO")
    parser.add_argument("--parent-pid", type=int, help="process to die with; nobody if not given")
    args = parser.parse_args()
    logging.basicConfig(
        level=args.log_level, format="%(asctime)s %(levelname)s %(process)d %(name)s: %(message)s", stream=sys.stderr
    )
    if args.parent_pid is not None:
        die_with_parent(args.parent_pid)
    try:
        config = msgspec.json.decode(args.config, type=EngineConfig, strict=True)
    except (msgspec.ValidationError, msgspec.DecodeError, ValueError) as error:
        logging.getLogger("engine").error("bad --config: %s", error)
        return EXIT_BAD_MODEL
    return EngineProcess(config, args.socket, args.grace_s).run()


if __name__ == "__main__":
    sys.exit(main())
