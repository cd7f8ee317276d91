"""Serves docs/examples/fastapi_app.py with an engine that does what a prompt says, for test_fastapi_app.py."""

import re
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any

import uvicorn

from bonsai_routing import LoraAdapter, ModelEndpoint

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "docs" / "examples"))

from fastapi_app import create_app


class Weights:
    def __init__(self, name: str) -> None:
        self.name = name
        self.freed = False


class ObedientEngine:
    """Repeats the last message, and breaks, blocks or never ends if the message says so."""

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None, base: Weights | None) -> Weights:
        if endpoint.base_model == "damaged":
            raise OSError("cannot be read")
        time.sleep(2 if endpoint.base_model == "slow" else 0.01)
        if adapter is None:
            return Weights(endpoint.base_model)
        assert base is not None
        return Weights(f"{base.name} with {adapter.name}")

    def unload(self, handle: Weights) -> None:
        handle.freed = True
        print(f"{handle.name} was unloaded", file=sys.stderr, flush=True)

    def count_tokens(self, messages: list[dict[str, str]]) -> int:
        return sum(len(message["content"].split()) for message in messages)

    def generate(self, handle: Weights, messages: list[dict[str, str]], limit: int) -> Generator[str, None, None]:
        prompt = messages[-1]["content"]
        try:
            if "break at once" in prompt:
                raise RuntimeError("the engine's own words")
            for number, word in enumerate(re.findall(r"\s*\S+", f"{handle.name}: {prompt}")[:limit]):
                if number == 2 and "break later" in prompt:
                    raise RuntimeError("the engine's own words")
                yield word
            if "block" in prompt:
                time.sleep(1)
            while "flood" in prompt:
                yield "more" * 10000
            while "never end" in prompt:
                time.sleep(0.01)
                yield " more"
        finally:
            if handle.freed:
                print(f"{handle.name} was freed while it was in use", file=sys.stderr, flush=True)


if __name__ == "__main__":
    app: Any = create_app(Path(sys.argv[1]), ObedientEngine(), int(sys.argv[2]))
    uvicorn.run(app, port=0, timeout_graceful_shutdown=30)
