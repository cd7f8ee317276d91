"""Replaces and retires LoRA adapters under load, and checks that no request runs on weights that were released."""

import argparse
import itertools
import random
import sys
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor

from bonsai_routing import AdapterRegistry, AdapterStack, LoraAdapter, ModelEndpoint, ModelRegistry, RoutingError

BASE = "bonsai-8b"
NAMES = ("chat", "code", "math")


class Engine:
    """A fake engine: the handle of weights is their source, and each version of an adapter has a source of its own."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def load(self, source: str) -> str:
        """Load weights and return their handle; ``OSError`` when they are damaged, as in every tenth version."""
        time.sleep(0.002)
        if source.endswith("7"):
            raise OSError(f"{source} is damaged")
        self.held.add(source)
        return source

    def release(self, handle: str | None) -> None:
        """Release weights. The handle is ``None`` for an endpoint without weights, such as one that failed to load."""
        self.held.discard(handle)


class Simulation:
    """Serves requests in worker threads, replaces and retires adapters meanwhile, and counts what happens."""

    def __init__(self, engine: Engine, workers: int, seed: int) -> None:
        self.engine = engine
        # This is quick enough for the thread of a request. A real engine gets what to release through a queue.
        self.models = ModelRegistry(on_idle=lambda publication: engine.release(publication.handle))
        self.models.register(ModelEndpoint(BASE, "qwen3-8b"))
        self.adapters = AdapterRegistry(self.models)
        self.chance = random.Random(seed)
        self.waits: list[Future[ModelEndpoint | None]] = []
        self.swaps = self.retirements = 0
        # One for each worker, so that no two threads write to the same.
        self.tallies = [Counter(requests=0, refused=0, faults=0) for _ in range(workers)]
        self.stopped = threading.Event()

    def run(self, seconds: float) -> bool:
        """Run that long or until Ctrl-C, leave no thread behind, and return whether all went well."""
        jobs: list[Future[None]] = []
        with ThreadPoolExecutor(len(self.tallies)) as pool:
            try:
                jobs += [pool.submit(self.serve, tally, self.chance.random()) for tally in self.tallies]
                self.operate(seconds)
            except KeyboardInterrupt:
                print("interrupted")
            finally:
                self.stopped.set()
        for job in jobs:
            job.result()
        total = sum(self.tallies, Counter[str]())
        waiting = sum(not idle.done() for idle in self.waits)
        print(f"{total['requests']} requests ran, and {total['refused']} came while their adapter was away")
        print(f"{self.swaps} swaps and {self.retirements} retirements happened, and {waiting} never became idle")
        print(f"{total['faults'] or 'nothing'} ran on weights that had been released")
        return not (waiting or total["faults"])

    def serve(self, tally: Counter[str], seed: float) -> None:
        """Serve one request after another until the simulation stops."""
        chance = random.Random(seed)
        while not self.stopped.is_set():
            # A stack of one adapter, because its lease holds the base too.
            stack = AdapterStack().add(chance.choice(NAMES), 1.0)
            try:
                with self.adapters.lease_stack(BASE, stack) as lease:
                    handle = lease.members[0].handle
                    held_at_start = handle in self.engine.held
                    time.sleep(chance.uniform(0.001, 0.005))
                    tally["faults"] += not (held_at_start and handle in self.engine.held)
                    tally["requests"] += 1
            except RoutingError:
                tally["refused"] += 1
                time.sleep(0.001)

    def operate(self, seconds: float) -> None:
        """Change one adapter after another until the time is up, and print the progress."""
        start, due = time.monotonic(), 0.0
        for version in itertools.count(1):
            try:
                name = self.chance.choice(NAMES)
                self.change(LoraAdapter(name, BASE, f"adapters/{name}-{version}"), retire=version % 4 == 0)
            except OSError as error:
                print(f"        load failed: {error}", flush=True)
            elapsed = time.monotonic() - start
            if elapsed >= due:
                due += 0.25
                requests, draining = sum(tally["requests"] for tally in self.tallies), len(self.models.draining())
                print(f"{elapsed:5.2f} s {requests:6} requests {self.swaps:4} swaps {draining} draining", flush=True)
            if elapsed >= seconds:
                return
            time.sleep(self.chance.uniform(0.005, 0.02))

    def change(self, newer: LoraAdapter, retire: bool) -> None:
        """Load the newer version, in place of the older one if there is one; or only retire that one."""
        replaces = self.adapters.get(newer.id) is not None
        if replaces and retire:
            self.waits.append(self.adapters.unload(newer.id))
            self.retirements += 1
            return
        # If there is an older version that is ready, it serves until the newer one is loaded.
        with self.adapters.loading(newer) as load:
            load.handle = self.engine.load(newer.source)
        self.waits.append(load.idle)
        self.swaps += replaces


def main(argv: list[str]) -> int:
    """Run the simulation, and return 0 if all went well, or else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=2.0, help="default: 2")
    parser.add_argument("--workers", type=int, default=4, choices=range(1, 65), metavar="1-64", help="default: 4")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    options = parser.parse_args(argv)
    return 0 if Simulation(Engine(), options.workers, options.seed).run(options.seconds) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
