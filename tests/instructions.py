"""Stops a thread at instructions of the package, where tests want something else to happen.

The environment variable BONSAI_THREAD_ROUNDS asks for a longer run of the tests that use threads.
"""

import dis
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

import bonsai_routing

# What tests of threads multiply their work by.
ROUNDS = int(os.environ.get("BONSAI_THREAD_ROUNDS", "1"))
FOLDER = str(Path(bonsai_routing.__file__).parent)

# Called with the code object and the offset of the instruction that comes next.
Visit = Callable[[CodeType, int], object]

if sys.version_info >= (3, 12):
    # Tracing sees no instructions on 3.13, and crashes 3.12 when two threads trace. Monitoring sees them all.
    _TOOL = 4
    _visits: dict[int, Visit] = {}
    _monitored: set[CodeType] = set()

    def _on_instruction(code: CodeType, offset: int) -> object:
        visit = _visits.get(threading.get_ident())
        if visit is not None:
            visit(code, offset)
        return None if _visits else sys.monitoring.DISABLE

    def _functions_of_the_package() -> Iterator[FunctionType]:
        # Free-threaded Python hides functions from the garbage collector once a thread has started.
        found: list[object] = [module for name, module in sys.modules.items() if name.startswith("bonsai_routing")]
        seen: set[int] = set()
        while found:
            each = found.pop()
            if id(each) in seen:
                continue
            seen.add(id(each))
            if isinstance(each, FunctionType):
                found.append(getattr(each, "__wrapped__", None))
                if each.__code__.co_filename.startswith(FOLDER):
                    yield each
            elif isinstance(each, (staticmethod, classmethod)):
                found.append(each.__func__)
            elif isinstance(each, property):
                found.append(each.fget)
            elif isinstance(each, ModuleType) or (
                isinstance(each, type) and each.__module__.startswith("bonsai_routing")
            ):
                found += vars(each).values()

    def _monitor_the_package() -> None:
        """Ask for the instructions of all functions of the package, the new ones among them."""
        events = sys.monitoring.events
        if sys.monitoring.get_tool(_TOOL) is None:
            sys.monitoring.use_tool_id(_TOOL, "bonsai_routing tests")
            sys.monitoring.register_callback(_TOOL, events.INSTRUCTION, _on_instruction)
            found = [function.__code__ for function in _functions_of_the_package()]
            while found:
                code = found.pop()
                found += [each for each in code.co_consts if isinstance(each, CodeType)]
                sys.monitoring.set_local_events(_TOOL, code, events.INSTRUCTION)
        # Instructions that nobody wanted to see were disabled.
        sys.monitoring.restart_events()

    @contextmanager
    def visited(visit: Visit) -> Iterator[None]:
        """Call *visit* before each instruction of the package that this thread executes in the block."""
        thread = threading.get_ident()
        assert thread not in _visits
        _visits[thread] = visit
        _monitor_the_package()
        try:
            yield
        finally:
            del _visits[thread]

else:

    @contextmanager
    def visited(visit: Visit) -> Iterator[None]:
        """Call *visit* before each instruction of the package that this thread executes in the block."""

        def local(frame: FrameType, event: str, arg: object) -> Any:
            if event == "opcode":
                visit(frame.f_code, frame.f_lasti)
            return local

        def each_call(frame: FrameType, event: str, arg: object) -> Any:
            if not frame.f_code.co_filename.startswith(FOLDER):
                return None
            frame.f_trace_opcodes = True
            return local

        before = sys.gettrace()
        sys.settrace(each_call)
        try:
            yield
        finally:
            sys.settrace(before)


@contextmanager
def stopped_at_each_instruction(visit: Callable[[], object]) -> Iterator[None]:
    """Call *visit* before each instruction of the package that this thread executes in the block.

    A block that executes none would prove nothing, and fails.
    """
    seen = False

    def see(code: CodeType, offset: int) -> None:
        nonlocal seen
        seen = True
        visit()

    with visited(see):
        yield
    assert seen, "no instruction of the package was seen"


class CutShort(BaseException):
    """What a signal handler raises in the middle of a call."""


@contextmanager
def cut_short_at(place: int) -> Iterator[list[str]]:
    """Raise ``CutShort`` before the instruction number *place* that this thread executes in the block.

    The block gets a list, which names the function that was cut short once that has happened.
    Only instructions before which CPython may run a signal handler count. It runs none between the end of a ``with``
    block and the call of ``__exit__``, which is why a lock that a ``with`` statement took cannot stay locked.
    """
    left = place
    cut: list[str] = []

    def visit(code: CodeType, offset: int) -> None:
        nonlocal left
        if offset not in _exits(code):
            left -= 1
            if left == -1:
                cut.append(code.co_qualname)
                raise CutShort

    with visited(visit):
        yield cut


@cache
def _exits(code: CodeType) -> frozenset[int]:
    """Return the offsets of the instructions that end ``with`` blocks, up to the call of ``__exit__``."""
    offsets: set[int] = set()
    listed = [each for each in dis.get_instructions(code) if each.opname not in ("PRECALL", "CACHE")]
    for place, each in enumerate(listed):
        nones = [item for item in listed[place : place + 3] if item.opname == "LOAD_CONST" and item.argval is None]
        if len(nones) == 3:
            # A result that the block returns is put aside first.
            first = listed[place - 1] if listed[place - 1].opname == "SWAP" else each
            offsets |= set(range(first.offset, listed[place + 3].offset + 1))
        if each.opname in ("PUSH_EXC_INFO", "WITH_EXCEPT_START"):
            offsets.add(each.offset)
    return frozenset(offsets)


@contextmanager
def short_turns() -> Iterator[None]:
    """Let threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def interrupted_now_and_then(seed: int) -> Iterator[None]:
    """Give other threads a turn at random instructions that the package executes in this thread.

    An interpreter with a global lock switches threads at few instructions, and some thousand times a second at the
    most, which would leave tests of threads blind. Nothing waits for this sleep; it only makes a switch.
    """
    chance = random.Random(seed)
    left = 1

    def visit(code: CodeType, offset: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            left = chance.randrange(1, 150)
            time.sleep(1e-9)

    with visited(visit):
        yield
