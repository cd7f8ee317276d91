"""An OpenAI-compatible gateway over the models in a TOML file: SIGHUP reads it again, SIGTERM and SIGINT stop."""

import argparse
import json
import logging
import re
import reprlib
import signal
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import NoneType
from typing import Any
from urllib.parse import unquote

from bonsai_routing import ModelEndpoint, ModelNotFoundError, ModelRouter, RoutingError
from bonsai_routing.config import ConfigError, RoutingConfig
from bonsai_routing.openai import error_response, model_response, models_response
from bonsai_routing.suggestions import suggestions

BODY_LIMIT = 1 << 20  # bytes
LIMITS = ("max_completion_tokens", "max_tokens")


class Refused(Exception):
    """The status and the message for a request that the router is never asked about."""


def expect(rule: str, value: object, *kinds: type) -> Any:
    """Return *value* if it is of one of these kinds, and a number within bounds; otherwise refuse the request."""
    # The exact type, because JSON's true must not pass for the number 1.
    if type(value) not in kinds or (isinstance(value, int) and not 0 <= value < 1 << 31):
        raise Refused(400, f"{rule}, not {reprlib.repr(value)}")
    return value


def text_of(message: object) -> str:
    """Return the text of a message, whose content is text, parts of which some are text, or nothing."""
    content = expect("a message must be an object", message, dict).get("content")
    if not isinstance(expect("content must be a string or an array", content, str, list, NoneType), list):
        return content or ""
    parts = [expect("a part must be an object", part, dict) for part in content]
    return "".join(expect("text must be a string", p.get("text"), str) for p in parts if p.get("type") == "text")


def echo(endpoint: ModelEndpoint, prompt: str, limit: int | None) -> tuple[list[str], str]:
    """Stand in for your engine: return who answers, and the prompt again, in tokens, and why it ends where it ends."""
    who = endpoint.base_model if endpoint.adapter is None else f"{endpoint.base_model} with {endpoint.adapter}"
    tokens = re.findall(r"\S+\s*", f"{who}: {prompt}")
    return tokens[:limit], "stop" if limit is None or len(tokens) <= limit else "length"


def chunks(head: dict[str, Any], tokens: list[str], finish: str, usage: object) -> Iterator[str]:
    """Yield the events of a streamed answer: the role, the tokens, why it ends, the usage if it is wanted, the end."""
    head = {**head, "object": "chat.completion.chunk"}
    for delta in ({"role": "assistant", "content": ""}, *({"content": token} for token in tokens), {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else finish}
        yield json.dumps({**head, "choices": [choice]})
    if usage is not None:
        yield json.dumps({**head, "choices": [], "usage": usage})
    yield "[DONE]"


class Handler(BaseHTTPRequestHandler):  # One connection, in a thread of its own.
    server: "Gateway"
    rfile: Any  # A BufferedReader.
    protocol_version = default_request_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Each token goes out at once.
    timeout = 10  # Seconds that a client may keep the thread waiting.

    def respond(self) -> None:
        try:
            self.dispatch(self.body())
        except Refused as refused:
            self.send_error(*refused.args)
        except RoutingError as error:
            answer = error_response(error)
            # A hint for people; another model never answers instead.
            if isinstance(error, ModelNotFoundError) and (near := suggestions(self.server.models, error.model)):
                facts: Any = answer.body["error"]
                facts["message"] += f" Did you mean {' or '.join(near)}?"
            self.reply(answer.status, answer.body, **answer.headers)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = respond

    def dispatch(self, data: bytes) -> None:
        """Do what the method and the path ask for. All that follows /v1/models/ is the id, slashes included."""
        match self.command, unquote(self.path.partition("?")[0]).split("/", 3):
            case "GET" | "HEAD", ["", "v1", "models"]:
                self.reply(200, models_response(self.server.router, aliases=True))
            case "GET" | "HEAD", ["", "v1", "models", name]:
                self.reply(200, model_response(self.server.router, name))
            case "POST", ["", "v1", "chat", "completions"]:
                self.chat(data)
            case method, ["", "v1", "models", *_]:
                self.send_error(405, f"{method} is not allowed here", Allow="GET, HEAD")
            case method, ["", "v1", "chat", "completions"]:
                self.send_error(405, f"{method} is not allowed here", Allow="POST")
            case _:
                self.send_error(404, f"there is nothing at {self.path}")

    def chat(self, data: bytes) -> None:
        """Route a chat request, run the engine, and send what it says."""
        try:
            body = expect("the body must be an object", json.loads(data.decode("utf-8")), dict)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body must be JSON in UTF-8: {error}") from None
        model = expect("model must be a string", body.get("model"), str, NoneType)
        texts = [text_of(each) for each in expect("messages must be an array", body.get("messages"), list)]
        newer, older = (expect(f"{key} must be from 0 to 2147483647", body.get(key), int, NoneType) for key in LIMITS)
        limit = older if newer is None else newer
        stream = expect("stream must be true or false", body.get("stream"), bool, NoneType)
        options = expect("stream_options must be an object", body.get("stream_options"), dict, NoneType) or {}
        used = -(-sum(map(len, texts)) // 4)  # A rough number. Your tokenizer knows the right one.
        # Until the lease ends, a reload that removes or replaces the model lets it drain: it must not be unloaded yet.
        with self.server.router.lease(model, used + (limit or 0)) as lease:
            tokens, finish = echo(lease.endpoint, texts[-1] if texts else "", limit)
            usage = {"prompt_tokens": used, "completion_tokens": len(tokens), "total_tokens": used + len(tokens)}
            head = {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "created": int(time.time()),
                "model": str(lease.endpoint.id) if model is None else model,
                # No other endpoint ever has this number: an engine's caches of weights and prefixes should go by it.
                "system_fingerprint": f"generation-{lease.generation}",
            }
            if stream:
                self.send_events(chunks(head, tokens, finish, usage if options.get("include_usage") else None))
            else:
                message = {"role": "assistant", "content": "".join(tokens)}
                choice = {"index": 0, "message": message, "finish_reason": finish}
                self.reply(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def body(self) -> bytes:
        """Return the whole body, because the next request begins where it ends."""
        length = ",".join(self.headers.get_all("Content-Length", [])).strip()
        if "Transfer-Encoding" in self.headers or (self.command == "POST" and not length):
            raise Refused(411, "a Content-Length is required")
        if not re.fullmatch("[0-9]{0,20}", length):
            raise Refused(400, f"Content-Length must be a number of bytes, not {reprlib.repr(length)}")
        if int(length or 0) > BODY_LIMIT:
            raise Refused(413, f"the body must not have more than {BODY_LIMIT} bytes, and has {length}")
        data: bytes = self.rfile.read(int(length or 0))
        self.unread = len(data) < int(length or 0)
        return data

    def reply(self, status: int, body: object, **headers: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        if self.unread or self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None, **headers: str) -> None:
        """Refuse a request, as http.server also does when it cannot read one."""
        facts = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
        self.reply(code, {"error": facts}, **headers)

    def send_events(self, events: Iterator[str]) -> None:
        """Send events one by one, in chunks if the client knows them: they let it tell an answer that was cut off."""
        chunked = self.request_version != "HTTP/1.0"
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header(*("Transfer-Encoding", "chunked") if chunked else ("Connection", "close"))
        self.end_headers()
        for event in events:
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        self.wfile.write(b"0\r\n\r\n" if chunked else b"")

    def handle(self) -> None:
        """Answer one request after another, until the client has no more or the gateway stops."""
        self.close_connection = self.unread = False
        with suppress(ConnectionError, TimeoutError):  # Clients may hang up whenever they like.
            while not self.close_connection:
                # The server stops by setting the one and then reading the other, so neither side misses the other.
                self.server.idle.add(self.connection)
                if self.server.stopping or not self.rfile.peek(1):
                    break
                self.server.idle.discard(self.connection)
                self.unread = True  # Until body() has read the request to its end.
                self.handle_one_request()
        with suppress(OSError):
            # Closing a connection that holds unread bytes resets it, and the client might not get to read its answer.
            self.connection.shutdown(socket.SHUT_WR)
            give_up = time.monotonic() + 2
            while self.unread and time.monotonic() < give_up and self.connection.recv(1 << 16):
                pass
        self.server.idle.discard(self.connection)

    def log_message(self, format: str, *args: object) -> None: ...  # The proxy in front keeps the log of requests.


class Gateway(ThreadingHTTPServer):  # The models, and the connections of those who ask for them.
    daemon_threads = False  # So that server_close() waits for the requests in flight.
    request_queue_size = 128

    def __init__(self, config: Path, host: str, port: int) -> None:
        self.config = config
        self.models = RoutingConfig.read(config).registry()
        self.router = ModelRouter(self.models)
        self.stopping = False
        self.idle: set[socket.socket] = set()  # The connections that wait for their next request.
        super().__init__((host, port), Handler)

    def follow(self, signals: "SimpleQueue[int]") -> None:
        """Read the file again when a signal says so; in the end, answer what is in flight and nothing else."""
        while signals.get() not in (signal.SIGINT, signal.SIGTERM):
            try:
                change = self.models.replace_with(RoutingConfig.read(self.config).registry())
                logging.info("reloaded: %s", change)
            except ConfigError as error:
                logging.error("not reloaded, and nothing has changed:\n%s", error)
        self.shutdown()
        self.stopping = True
        for connection in [*self.idle]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        self.server_close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("models.toml"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    logging.basicConfig(level=logging.INFO, format="gateway: %(message)s")
    # A handler may run in the middle of anything, even of a write to the registry, so it only passes the signal on.
    signals: SimpleQueue[int] = SimpleQueue()
    for name in {"SIGHUP", "SIGINT", "SIGTERM"} & vars(signal).keys():
        signal.signal(getattr(signal, name), lambda number, frame: signals.put(number))
    try:
        gateway = Gateway(**vars(parser.parse_args()))
    except (ConfigError, OSError, OverflowError) as error:
        parser.error(str(error))
    Thread(target=gateway.follow, args=[signals]).start()
    print("listening on http://{}:{}".format(*gateway.server_address), flush=True)
    gateway.serve_forever(0.1)


if __name__ == "__main__":
    main()
