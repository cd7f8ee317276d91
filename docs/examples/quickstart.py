"""Routes the bodies of chat requests and prints who answers each: the library in one page.

usage: quickstart.py [FILE]      one JSON body a line; - reads standard input
"""

import json
import math
import sys
from pathlib import Path
from typing import Any, BinaryIO

from bonsai_routing import EndpointStatus, ModelEndpoint, ModelRegistry, ModelRouter, RoutingError

REQUESTS = Path(__file__).with_name("requests.jsonl")


def directory() -> ModelRegistry:
    """Return two base models, three adapters, of which one is still being loaded, and two aliases."""
    registry = ModelRegistry()
    small = ModelEndpoint("bonsai-8b", "qwen3-8b", max_context_length=32768, is_default=True)
    large = ModelEndpoint("bonsai-70b", "qwen3-70b", max_context_length=131072)
    registry.register(small)
    registry.register(large)
    for base, adapter in ((small, "code"), (small, "chat"), (large, "law")):
        endpoint = ModelEndpoint(f"{base.id}:{adapter}", base.base_model, max_context_length=base.max_context_length)
        registry.register(endpoint.with_adapter(adapter))
    registry.set_status("bonsai-70b:law", EndpointStatus.LOADING)
    registry.add_alias("gpt-4o-mini", "bonsai-8b:chat")
    registry.add_alias("programmer", "bonsai-8b:code")
    return registry


def context_needed(body: dict[str, Any]) -> int:
    """Return a rough number of tokens: a quarter of the prompt's characters, and the answer's limit."""
    texts: list[str] = []
    for message in body["messages"]:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        texts += [part["text"] for part in parts if part["type"] == "text"]
    answer = body.get("max_completion_tokens", body.get("max_tokens")) or 0
    return math.ceil(sum(map(len, texts)) / 4) + answer


def answer(router: ModelRouter, line: bytes) -> tuple[str, str, bool]:
    """Return what a body asks for, what answers it, and whether anything does; ``ValueError`` for a malformed body."""
    try:
        body = json.loads(line)
        requested = body.get("model")
        endpoint = router.route_for_context(requested, context_needed(body))
    except RoutingError as error:
        return asked(requested), f"{type(error).__name__}: {error}", False
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    adapter = endpoint.adapter or "-"
    return asked(requested), f"{endpoint.base_model:<10} {adapter:<5} {endpoint.max_context_length:>7}", True


def asked(requested: str | None) -> str:
    return "(nothing)" if requested is None else requested


def report(router: ModelRouter, lines: BinaryIO) -> int:
    """Print a row for each line and a last line with the counts; return 0 if all lines were readable, or else 1."""
    answered = refused = malformed = 0
    print(f"{'asked':<16} {'base model':<10} {'LoRA':<5} {'context':>7}")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            request, reply, served = answer(router, line)
        except ValueError as error:
            malformed += 1
            print(f"line {number} is malformed: {error}")
            continue
        answered += served
        refused += not served
        print(f"{request:<16} {reply}")
    print(f"{answered} answered, {refused} refused, {malformed} malformed")
    return 1 if malformed else 0


def main(arguments: list[str]) -> int:
    if len(arguments) > 1:
        sys.exit(__doc__)
    # A name may hold characters that the terminal cannot show.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    router = ModelRouter(directory())
    if arguments == ["-"]:
        return report(router, sys.stdin.buffer)
    try:
        with open(arguments[0] if arguments else REQUESTS, "rb") as lines:
            return report(router, lines)
    except OSError as error:
        sys.exit(f"quickstart.py: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
