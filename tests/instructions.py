"""Stops the running thread at instructions of the package, where tests want something else to happen.

The environment variable BONSAI_THREAD_ROUNDS asks for a longer run of the tests that use threads.
"""

import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import bonsai_routing

# What tests of threads multiply their work by.
ROUNDS = int(os.environ.get("BONSAI_THREAD_ROUNDS", "1"))
FOLDER = str(Path(bonsai_routing.__file__).parent)


@contextmanager
def stopped_at_each_instruction(visit: Callable[[], object]) -> Iterator[None]:
    """Call *visit* before each instruction of the package that this thread executes in the block."""

    def local(frame: FrameType, event: str, arg: object) -> Any:
        if event == "opcode":
            visit()
        return local

    def each_call(frame: FrameType, event: str, arg: object) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        frame.f_trace_opcodes = True
        return local

    before = sys.gettrace()
    # Python 3.12 heeds the wish for single instructions only if a frame has it by now.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(each_call)
    try:
        yield
    finally:
        sys.settrace(before)


@contextmanager
def interrupted_now_and_then(seed: int) -> Iterator[None]:
    """Give other threads a turn at random instructions that the package executes in this thread.

    An interpreter with a global lock switches threads at few instructions, and some thousand times a second at the
    most, which would leave tests of threads blind. Nothing waits for this sleep; it only makes a switch.
    """
    chance = random.Random(seed)
    left = 1

    def visit() -> None:
        nonlocal left
        left -= 1
        if not left:
            left = chance.randrange(1, 150)
            time.sleep(1e-9)

    # Python 3.12 crashes when several threads trace their instructions; the switch interval has to do there.
    with nullcontext() if sys.version_info[:2] == (3, 12) else stopped_at_each_instruction(visit):
        yield
