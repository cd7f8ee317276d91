"""What a child process that was forked has of its parent's registry."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork()")

# From Python 3.12 on, forking a process that has threads is warned of; that is what is tested here.
COMMAND = [sys.executable, "-W", "ignore::DeprecationWarning", "-c"]

PRELUDE = """
import os, signal, threading
from bonsai_routing import ModelEndpoint, ModelRegistry, ModelRouter

registry = ModelRegistry()
router = ModelRouter(registry)
for id in ("a", "b"):
    registry.register(ModelEndpoint(id, "weights"))
registry.add_alias("x", "a")

def in_child(work):
    '''Run work in a forked child, which is killed when it hangs, and return whether it succeeded.'''
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            work()
        except BaseException as error:
            print("child:", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""


def run(program: str) -> None:
    """Run a program in a fresh interpreter, which must end well."""
    done = subprocess.run(
        [*COMMAND, PRELUDE + textwrap.dedent(program)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_child_of_a_busy_parent_works() -> None:
    run("""
    stop = threading.Event()

    def serve():
        while not stop.is_set():
            with router.lease("x"):
                registry.swap(ModelEndpoint("a", "weights"))
            registry.set_status("b", "loading")
            registry.add_alias("y", "b")
            registry.set_status("b", "ready")

    threads = [threading.Thread(target=serve) for _ in range(3)]
    for thread in threads:
        thread.start()

    def work():
        with router.lease("a") as lease:
            assert registry.in_flight("a") == 1
            gone = registry.swap(ModelEndpoint("a", "other weights"))
            assert not gone.done()
        assert gone.result(timeout=0) is lease.endpoint
        assert registry.draining() == []
        assert router.route("x").base_model == "other weights"
        assert registry.set_status("b", "error")
        assert [str(endpoint.id) for endpoint in registry] == ["a", "b"]
        assert registry.retire("b").done()

    try:
        results = [in_child(work) for _ in range(200)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert all(results), results.count(False)
    """)


def test_a_child_counts_the_leases_of_its_own_thread_alone() -> None:
    run("""
    leased, end = threading.Event(), threading.Event()

    def serve():
        with router.lease("a"), router.lease("b"):
            leased.set()
            end.wait()

    thread = threading.Thread(target=serve)
    thread.start()
    leased.wait()
    own = router.lease("a")
    retired = registry.retire("b")
    called = []
    retired.add_done_callback(called.append)

    def work():
        assert registry.in_flight("a") == 1
        # The parent's thread still uses it, so it is not idle, and nothing is freed twice.
        assert registry.draining() == []
        assert not called
        gone = registry.retire("a")
        assert not gone.done()
        own.release()
        assert gone.result(timeout=0) is own.endpoint

    try:
        assert in_child(work)
        assert registry.in_flight("a") == 2
        assert len(registry.draining()) == 1
    finally:
        end.set()
        thread.join()
    assert called == [retired]
    own.release()
    assert registry.in_flight("a") == 0
    """)


def test_a_fork_in_the_middle_of_a_write_leaves_parent_and_child_whole() -> None:
    run("""
    # The handler forks in the middle of whatever the main thread is doing.
    children = []

    def fork(number, frame):
        child = os.fork()
        if child == 0:
            signal.alarm(20)
        children.append(child)

    signal.signal(signal.SIGALRM, fork)
    parent = os.getpid()
    for turn in range(150):
        signal.setitimer(signal.ITIMER_REAL, 5e-6 * (1 + turn % 12))
        for _ in range(40):
            registry.register(ModelEndpoint("a", "weights"))
            registry.set_status("a", "ready")
            with router.lease("x"):
                pass
        if os.getpid() != parent:
            assert router.route("a") is router.route("x") is registry.resolve("a")
            assert registry.in_flight("a") == 0
            assert registry.retire("a").done()
            os._exit(0)
    signal.setitimer(signal.ITIMER_REAL, 0)
    assert len(children) > 50
    for child in children:
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    """)
