"""Routes the bodies of chat requests and prints who answers each: the library in one page.

usage: quickstart.py [FILE]      one JSON body a line; - reads standard input
"""

import io
import json
import math
import os
import reprlib
import sys
from pathlib import Path
from typing import Any

from bonsai_routing import EndpointStatus, ModelEndpoint, ModelRegistry, ModelRouter, RoutingError

REQUESTS = Path(__file__).with_name("requests.jsonl")

KINDS = {dict: "an object", list: "an array", str: "a string", int: "0 or more tokens", type(None): "null"}


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
    registry.add_alias("gpt-4o", "bonsai-70b")
    registry.add_alias("gpt-4o-mini", "bonsai-8b:chat")
    return registry


def expect(name: str, value: object, *kinds: type) -> Any:
    """Return *value* if it is of one of these kinds; otherwise ``ValueError`` says what *name* must be."""
    # The exact type, because JSON's true must not pass for the number 1.
    if type(value) not in kinds or (isinstance(value, int) and value < 0):
        raise ValueError(f"{name} must be {' or '.join(KINDS[kind] for kind in kinds)}, not {reprlib.repr(value)}")
    return value


def parse(line: bytes) -> dict[str, Any]:
    """Return the body on a line; ``ValueError`` for anything but a JSON object in UTF-8."""
    try:
        body = json.loads(line.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON, {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    checked: dict[str, Any] = expect("body", body, dict)
    return checked


def context_needed(body: dict[str, Any]) -> int:
    """Return a rough number of tokens: a quarter of the prompt's characters, rounded up, and the answer's limit."""
    texts: list[str] = []
    for message in expect("messages", body.get("messages"), list):
        content = expect("content", expect("message", message, dict).get("content"), str, list, type(None))
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content or []
        texts += [expect("text", p.get("text"), str) for p in parts if expect("part", p, dict).get("type") == "text"]
    # The first name is the newer one, and wins.
    limits = [expect(name, body.get(name), int, type(None)) for name in ("max_completion_tokens", "max_tokens")]
    answer = next((limit for limit in limits if limit is not None), 0)
    return math.ceil(sum(map(len, texts)) / 4) + answer


def answer(router: ModelRouter, body: dict[str, Any]) -> tuple[str, str, bool]:
    """Return what a body asks for, what answers it or why nothing does, and whether something does."""
    requested = expect("model", body.get("model"), str, type(None))
    asked = "(nothing)" if requested is None else printable(requested)
    try:
        endpoint = router.route_for_context(requested, context_needed(body))
    except RoutingError as error:
        return asked, printable(f"{type(error).__name__}: {error}"), False
    adapter = endpoint.adapter or "-"
    return asked, f"{endpoint.base_model:<10} {adapter:<5} {endpoint.max_context_length:>7}", True


def printable(text: str) -> str:
    """Return *text* with escapes for what would break the row: a name may hold line ends and lone surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def report(router: ModelRouter, lines: list[bytes]) -> tuple[list[str], int]:
    """Return the table, a row for each line and the counts last, and how many lines were malformed."""
    rows = [("asked", f"{'base model':<10} {'LoRA':<5} {'context':>7}")]
    answered = refused = malformed = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            asked, reply, served = answer(router, parse(line))
        except ValueError as error:
            malformed += 1
            rows.append((f"(line {number})", f"malformed: {error}"))
        else:
            answered += served
            refused += not served
            rows.append((asked, reply))
    width = max(len(asked) for asked, _ in rows)
    counts = f"{answered} answered, {refused} refused, {malformed} malformed"
    return [*(f"{asked:<{width}}  {reply}" for asked, reply in rows), counts], malformed


def main(argv: list[str]) -> int:
    """Print the table of a file, and return 0 if all its lines were readable, or else 1."""
    if len(argv) > 1:
        print(__doc__, file=sys.stderr)
        return 1
    source = argv[0] if argv else REQUESTS
    try:
        # Bytes, so that a line that is not UTF-8 spoils no other line.
        data = sys.stdin.buffer.read() if source == "-" else Path(source).read_bytes()
    except OSError as error:
        print(f"quickstart.py: {error}", file=sys.stderr)
        return 1
    table, malformed = report(ModelRouter(directory()), data.split(b"\n"))
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A character that the terminal cannot show becomes its escape.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        print(*table, sep="\n", flush=True)
    except BrokenPipeError:
        # The reader has seen enough. Python flushes once more when it exits, and must not fail then.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if malformed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
