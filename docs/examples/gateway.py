"""An OpenAI-compatible gateway over the models in a TOML file: SIGHUP reads it again, SIGTERM and SIGINT stop."""

import argparse
import json
import logging
import os
import re
import reprlib
import signal
import socket
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from itertools import chain
from pathlib import Path
from queue import SimpleQueue
from threading import Thread, Timer
from types import NoneType
from typing import Any
from urllib.parse import unquote

from bonsai_routing import ModelEndpoint, ModelNotFoundError, ModelRouter, RoutingError
from bonsai_routing.config import ConfigError, RoutingConfig
from bonsai_routing.openai import error_response, model_response, models_response
from bonsai_routing.suggestions import suggestions

LIMITS = ("max_completion_tokens", "max_tokens")
STOP = (signal.SIGINT, signal.SIGTERM)
FAILED = {"message": "The server failed to answer.", "type": "server_error", "param": None, "code": None}

# http.client drops other lines, and those after them, in silence.
HEAD = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r?\n)*\r?\n")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")


class Refused(Exception):
    """What send_error() is to say of a request that the router is never asked about."""

    def __init__(self, status: int, message: str, **more: str) -> None:
        self.status, self.message, self.more = status, message, more


def expect(name: str, value: object, rule: str, *kinds: type) -> Any:
    """Return *value* if it is of one of these kinds, and a number within bounds; otherwise refuse the request."""
    if value is None and NoneType not in kinds:
        raise Refused(400, f"{name} is missing", param=name)
    # The exact type, because JSON's true must not pass for the number 1.
    if type(value) not in kinds or (isinstance(value, int) and not -1 <= value < 1 << 31):
        raise Refused(400, f"{name} must be {rule}, not {reprlib.repr(value)}", param=name)
    return value


def text_of(name: str, message: object) -> str:
    """Return the text of a message, whose content is text, parts of which some are text, or nothing."""
    content = expect(name, message, "an object", dict).get("content")
    if not isinstance(expect(f"{name}.content", content, "a string or an array", str, list, NoneType), list):
        return content or ""
    parts = [(f"{name}.content[{place}]", part) for place, part in enumerate(content)]
    texts = [(each, part) for each, part in parts if expect(each, part, "an object", dict).get("type") == "text"]
    return "".join(expect(f"{each}.text", part.get("text"), "a string", str) for each, part in texts)


def echo(endpoint: ModelEndpoint, prompt: str, limit: int | None) -> Generator[tuple[str, str | None], None, None]:
    """Stand in for your engine: yield who answers, and the prompt again, in tokens, and in the end why it ends."""
    who = endpoint.base_model if endpoint.adapter is None else f"{endpoint.base_model} with {endpoint.adapter}"
    tokens = re.findall(r"\S+\s*", f"{who}: {prompt}")
    yield from ((token, None) for token in tokens[:limit])
    yield "", "stop" if limit is None or len(tokens) <= limit else "length"


def chunks(head: dict[str, Any], engine: Iterator[tuple[str, str | None]], used: int | None) -> Iterator[str]:
    """Yield the events of a streamed answer: the role, the tokens, why it ends, the usage if it is wanted, the end."""
    head = {**head, "object": "chat.completion.chunk"}
    made, choice = 0, {"index": 0, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}
    yield json.dumps({**head, "choices": [choice]})
    try:
        for token, finish in engine:
            made += finish is None
            choice = {"index": 0, "delta": {"content": token} if finish is None else {}, "finish_reason": finish}
            yield json.dumps({**head, "choices": [choice]})
        if used is not None:
            usage = {"prompt_tokens": used, "completion_tokens": made, "total_tokens": used + made}
            yield json.dumps({**head, "choices": [], "usage": usage})
    except Exception:
        logging.exception("a stream failed")
        yield json.dumps({"error": FAILED})
    yield "[DONE]"


class Handler(BaseHTTPRequestHandler):  # One connection, in a thread of its own.
    server: "Gateway"
    rfile: Any  # A BufferedReader.
    unread = begun = False  # Whether the request has not been read to its end, and whether the answer has begun.
    prompt_tokens: int | None = None
    protocol_version = default_request_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Each token goes out at once.
    timeout = 10  # Seconds that a client may keep the thread waiting.

    def respond(self) -> None:
        try:
            try:
                self.dispatch(self.body())
            except Refused as refused:
                self.send_error(refused.status, refused.message, **refused.more)
            except RoutingError as error:
                answer = error_response(error, prompt_tokens=self.prompt_tokens)
                # A hint for people; another model never answers instead.
                if isinstance(error, ModelNotFoundError) and (near := suggestions(self.server.models, error.model)):
                    facts: Any = answer.body["error"]
                    facts["message"] += f" Did you mean {' or '.join(near)}?"
                self.reply(answer.status, answer.body, answer.headers)
        except Exception:
            if self.unread or self.begun:
                raise  # The client has gone or is too slow.
            logging.exception("a request failed")
            self.reply(500, {"error": FAILED}, {"x-should-retry": "false"})  # Or OpenAI's client asks twice more.

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = respond

    def dispatch(self, data: bytes) -> None:
        """Do what the method and the path ask for. All that follows /v1/models/ is the id, slashes included."""
        path = unquote(re.sub("(?i)^https?://[^/?]*", "", self.path).partition("?")[0])
        card = re.fullmatch("/+v1/+models/(.*[^/].*)", path, re.DOTALL)
        match self.command, "/v1/models/*" if card else re.sub("/+", "/", path).rstrip("/"):
            case "OPTIONS", _ if self.server.cors:
                wanted = self.headers.get("Access-Control-Request-Headers", "")
                self.reply(200, {}, {"Access-Control-Allow-Methods": "*", "Access-Control-Allow-Headers": wanted})
            case "GET" | "HEAD", "/v1/models/*" if card:
                self.reply(200, model_response(self.server.router, card[1]))
            case "GET" | "HEAD", "/v1/models":
                self.reply(200, models_response(self.server.router, aliases=True))
            case "GET" | "HEAD", "/health":
                self.reply(200, {"status": "ok"})
            case "POST", "/v1/chat/completions":
                self.chat(data)
            case method, "/v1/models/*" | "/v1/models" | "/health" | "/v1/chat/completions" as route:
                self.send_error(405, f"{method} is not allowed here", Allow="POST" if "chat" in route else "GET, HEAD")
            case _:
                self.send_error(404, f"there is nothing at {self.path}")

    def chat(self, data: bytes) -> None:
        """Route a chat request, run the engine, and send what it says."""
        try:
            body = expect("body", json.loads(data.decode("utf-8")), "an object", dict)
        except (ValueError, RecursionError) as error:
            raise Refused(400, f"the body must be JSON in UTF-8: {error}") from None
        model = expect("model", body.get("model"), "a string", str, NoneType)
        messages = expect("messages", body.get("messages"), "an array", list)
        texts = [text_of(f"messages[{place}]", message) for place, message in enumerate(messages)]
        limits = [expect(key, body.get(key), "from -1 to 2147483647", int, NoneType) for key in LIMITS]
        limit = next((each for each in limits if each is not None), -1)  # No limit is -1, as several clients send it.
        stream = expect("stream", body.get("stream"), "true or false", bool, NoneType)
        options = expect("stream_options", body.get("stream_options"), "an object", dict, NoneType) or {}
        self.prompt_tokens = used = -(-sum(map(len, texts)) // 4)  # Roughly: your tokenizer knows the right number.
        # Until the lease ends, a reload that removes or replaces the model lets it drain: it must not be unloaded yet.
        with (
            self.server.router.lease(model, used + max(limit, 0)) as lease,
            closing(echo(lease.endpoint, texts[-1] if texts else "", None if limit < 0 else limit)) as engine,
        ):
            answer = chain([next(engine)], engine)  # An engine that fails at once fails the request, not the stream.
            name = str(lease.endpoint.id) if model is None else model
            head = {"id": f"chatcmpl-{os.urandom(16).hex()}", "created": int(time.time()), "model": name}
            # No other endpoint ever has this number: an engine's caches of weights and prefixes should go by it.
            head["system_fingerprint"] = f"generation-{lease.generation}"
            if stream:
                self.send_events(chunks(head, answer, used if options.get("include_usage") else None))
            else:
                *tokens, (_, finish) = answer
                message = {"role": "assistant", "content": "".join(token for token, _ in tokens)}
                choice = {"index": 0, "message": message, "finish_reason": finish}
                usage = {"prompt_tokens": used, "completion_tokens": len(tokens), "total_tokens": used + len(tokens)}
                self.reply(200, {**head, "object": "chat.completion", "choices": [choice], "usage": usage})

    def parse_request(self) -> bool:
        """Parse a request, and refuse a head that another server might read differently, and find another body."""
        head = [self.rfile.readline(65537)]
        while head[-1].strip(b"\r\n") and len(head) < 102:
            head.append(self.rfile.readline(65537))
        connection, self.rfile = self.rfile, BytesIO(b"".join(head))
        try:
            if not super().parse_request():
                return False
        finally:
            self.rfile = connection
        hosts = len(self.headers.get_all("Host", []))
        fine = HEAD.fullmatch(b"".join(head)) and self.requestline.split() == self.requestline.split(" ")
        if fine and (hosts == 1 or (hosts == 0 and self.request_version == "HTTP/1.0")):
            return True
        self.send_error(400, "the head must be: method, path, version; lines of a name, a colon, a value; one Host")
        return False

    def body(self) -> bytes:
        """Return the whole body, because the next request begins where it ends."""
        names = ("Content-Length", "Transfer-Encoding")
        lengths, codings = ([each.strip().lower() for each in self.headers.get_all(name, [])] for name in names)
        if self.command == "POST" and not lengths and not codings:
            raise Refused(411, "a Content-Length is required")
        chunked = not lengths and codings == ["chunked"] and self.request_version != "HTTP/1.0"
        if not chunked and (codings or not re.fullmatch("[0-9]{1,20}", ",".join(lengths) if lengths else "0")):
            raise Refused(400, f"a body must have one Content-Length or be chunked, not {[*lengths, *codings]}")
        size, end, data = int(lengths[0]) if lengths else 0, b"\r\n" if chunked else b"", bytearray()
        while self.unread:
            if chunked:
                if (head := CHUNK.fullmatch(self.rfile.readline(4096))) is None:
                    raise Refused(400, "a chunk must begin with its size")
                size = int(head[1], 16)
            if len(data) + size > self.server.body_limit:
                raise Refused(413, f"the body must not have more than {self.server.body_limit} bytes")
            part = self.rfile.read(size + len(end))
            if len(part) < size + len(end) or not part.endswith(end):
                raise Refused(400, "the body, and each chunk, must end where its length says")
            data += part[:size]
            self.unread = chunked and size > 0
        return bytes(data)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """Send what is in front of the body."""
        self.begun = True
        self.send_response(status)
        for name, value in {**headers, **self.server.cors}.items():
            self.send_header(name, value)
        if self.unread or self.close_connection or self.server.stopping:
            self.send_header("Connection", "close")
        self.end_headers()

    def reply(self, status: int, body: object, headers: Mapping[str, str] | None = None) -> None:
        data = json.dumps(body).encode()
        self.begin(status, {"Content-Type": "application/json", "Content-Length": str(len(data)), **(headers or {})})
        self.wfile.write(b"" if self.command == "HEAD" else data)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None, **more: str) -> None:
        """Refuse a request, as http.server also does when it cannot read one. A param is sent, all else is headers."""
        facts = {"message": message or self.responses[code][0], "type": "invalid_request_error"}
        self.reply(code, {"error": {**facts, "param": more.pop("param", None), "code": None}}, more)

    def send_events(self, events: Iterator[str]) -> None:
        """Send events one by one, in chunks if the client knows them: they let it tell an answer that was cut off."""
        chunked = self.request_version != "HTTP/1.0"
        self.close_connection |= not chunked
        headers = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        self.begin(200, {**headers, "Transfer-Encoding": "chunked"} if chunked else headers)
        for event in events:
            data = f"data: {event}\n\n".encode()
            self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)
        self.wfile.write(b"0\r\n\r\n" if chunked else b"")

    def handle(self) -> None:
        """Answer one request after another, until the client has no more or the gateway stops."""
        self.close_connection = False
        with suppress(ConnectionError, TimeoutError):  # Clients may hang up whenever they like.
            while not self.close_connection:
                # The server stops by setting the one and then reading the other, so neither side misses the other.
                self.server.idle.add(self.connection)
                while not self.server.stopping and self.rfile.peek(1)[:1] in (b"\r", b"\n"):
                    self.rfile.read(1)  # Some clients send an empty line after a body.
                if self.server.stopping or not self.rfile.peek(1):
                    break
                self.server.idle.discard(self.connection)
                self.unread, self.begun = True, False
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
    request_queue_size = 4096  # A crowd of clients that connect at once waits here for its threads.

    def __init__(self, config: Path, host: str, port: int, cors: str | None, body_limit: int, grace: float) -> None:
        self.config, self.body_limit, self.grace = config, body_limit, grace
        expose = {"Access-Control-Expose-Headers": "Retry-After, x-should-retry"}
        self.cors = {} if cors is None else {"Access-Control-Allow-Origin": cors, **expose}
        self.models = RoutingConfig.read(config).registry()
        self.router = ModelRouter(self.models)
        self.stopping = False
        self.idle: set[socket.socket] = set()  # The connections that wait for their next request.
        super().__init__((host, port), Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        try:
            return super().get_request()
        except OSError:
            time.sleep(0.1)  # Probably all file descriptors are in use, and the client waits until one is free.
            raise

    def follow(self, signals: "SimpleQueue[int]") -> None:
        """Read the file again when a signal says so; in the end, answer what is in flight and nothing else."""
        while signals.get() not in STOP:
            if not signals.empty():
                continue  # The next signal reads the file, or makes that needless.
            try:
                change = self.models.replace_with(RoutingConfig.read(self.config).registry())
                logging.info("reloaded: %s", change)
            except ConfigError as error:
                logging.error("not reloaded, and nothing has changed:\n%s", error)
        timer = Timer(self.grace, os._exit, [1])  # Nothing else ends a thread that waits for a client or an engine.
        timer.start()  # Before the main thread ends, because no thread can be started after that.
        self.shutdown()
        self.stopping = True
        for connection in [*self.idle]:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        logging.info("stopping within %s seconds", self.grace)
        self.server_close()
        timer.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path(__file__).with_name("models.toml"))
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--cors", metavar="ORIGIN", help="let the pages of this origin, or of any (*), ask")
    parser.add_argument("--body-limit", type=int, default=1 << 24, metavar="BYTES")
    parser.add_argument("--grace", type=float, default=30, metavar="SECONDS", help="how long a stop may take")
    logging.basicConfig(level=logging.INFO, format="gateway: %(message)s")
    signals: SimpleQueue[int] = SimpleQueue()

    def note(number: int, frame: object) -> None:
        # A handler may run in the middle of anything, even of a write to the registry, so it only passes the signal on.
        signals.put(number)
        if number in STOP:
            for each in STOP:
                signal.signal(each, signal.SIG_DFL)  # A second one ends the process at once.

    for name in {"SIGHUP", "SIGINT", "SIGTERM"} & vars(signal).keys():
        signal.signal(getattr(signal, name), note)
    options = parser.parse_args()
    try:
        gateway = Gateway(**vars(options))
    except ConfigError as error:
        parser.error(str(error))
    except (OSError, OverflowError) as error:
        parser.error(f"cannot listen on {options.host}:{options.port}: {error}")
    Thread(target=gateway.follow, args=[signals]).start()
    print("listening on http://{}:{}".format(*gateway.server_address), f"(PID {os.getpid()})", flush=True)
    gateway.serve_forever(0.1)


if __name__ == "__main__":
    main()
