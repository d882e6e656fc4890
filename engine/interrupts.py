"""Ctrl-C at a place where it does no harm.

Python raises KeyboardInterrupt between any two instructions: within a step it could leave a block that no sequence
knows of. Knows signals. Must not know what is protected.
"""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def interrupt_at_end() -> Iterator[None]:
    """A Ctrl-C within the block raises KeyboardInterrupt at its end; a second one, for who cannot wait, at once.

    Signals reach the main thread only, and a program that handles them itself goes on doing so: no effect then.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    was_pressed = False

    def on_interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal was_pressed
        if was_pressed:
            raise KeyboardInterrupt
        was_pressed = True

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if was_pressed:
        raise KeyboardInterrupt
