# /// script
# requires-python = ">=3.11"
# dependencies = ["fastapi", "uvicorn"]
# ///
"""Serves the models of a configuration file over OpenAI's API, with FastAPI, and loads them on demand.

It is the server to start from: put your engine in place of EchoEngine, and pass it to create_app().
SIGHUP reads the file again. SIGTERM and Ctrl-C answer the requests in flight, unload the models, and stop.

Run it with: python docs/examples/fastapi_app.py docs/examples/models.toml
"""

import argparse
import asyncio
import json
import logging
import re
import signal
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, suppress
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, Literal, Protocol, TypeVar

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from bonsai_routing import (
    EndpointStatus,
    LoraAdapter,
    ModelEndpoint,
    ModelLoader,
    ModelRegistry,
    ModelRouter,
    Publication,
    suggestions,
)
from bonsai_routing.config import ConfigError, RoutingConfig
from bonsai_routing.errors import ContextTooLongError, ModelNotFoundError, ModelNotReadyError, RoutingError
from bonsai_routing.openai import error_response, model_response, models_response

logger = logging.getLogger("uvicorn.error")
T = TypeVar("T")
Messages = list[dict[str, str]]  # Each has a role and a content.
Chunks = AsyncGenerator[dict[str, Any], None]  # OpenAI's chat.completion.chunk objects.

METRICS = {
    "bonsai_requests_total": "Requests that have ended, by the model that was asked and how they ended.",
    "bonsai_loads_total": "Loads of a model that have begun.",
    "bonsai_unloads_total": "Unloads of a model that was evicted, replaced or removed.",
    "bonsai_in_flight": "Leases of a model: its requests, and the loaded adapters on it.",
    "bonsai_draining": "Leases of versions of a model that were evicted, replaced or removed.",
}


class Engine(Protocol):
    """What the app needs of an engine. All of it may block: the app calls it in threads, several at the same time."""

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None, base: Any) -> Any:
        """Return a handle of the loaded model. *base* is the handle of an adapter's base, which stays loaded."""

    def unload(self, handle: Any) -> None: ...

    def generate(self, handle: Any, messages: Messages, limit: int) -> Generator[str, None, None]:
        """Yield the answer token by token, at most *limit* tokens. It is closed if the client hangs up."""

    def count_tokens(self, messages: Messages) -> int: ...


class EchoEngine:
    """Stands in for your engine: repeats the last message, word by word."""

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None, base: str | None) -> str:
        time.sleep(0.5)
        return endpoint.base_model if adapter is None else f"{base} with {adapter.name}"

    def unload(self, handle: str) -> None:
        time.sleep(0.1)

    def generate(self, handle: str, messages: Messages, limit: int) -> Generator[str, None, None]:
        for word in re.findall(r"\s*\S+", f"{handle}: {messages[-1]['content']}")[:limit]:
            time.sleep(0.02)
            yield word

    def count_tokens(self, messages: Messages) -> int:
        return -(-sum(len(message["content"]) for message in messages) // 4)


class Part(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    role: str
    content: str | list[Part] | None = None

    def plain(self) -> dict[str, str]:
        parts = self.content if isinstance(self.content, list) else [Part(type="text", text=self.content or "")]
        return {"role": self.role, "content": "".join(part.text for part in parts)}


class StreamOptions(BaseModel):
    include_usage: bool | None = None


Limit = Annotated[int, Field(ge=-1, lt=1 << 31)] | None  # Some clients send -1, which means no limit, as null does.


class Chat(BaseModel):
    """The body of a chat request. Other fields, such as ``temperature``, are ignored: add those that you need."""

    model_config = ConfigDict(strict=True)

    model: str | None = None
    messages: list[Message] = Field(min_length=1)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_completion_tokens: Limit = None
    max_tokens: Limit = None

    def limit(self) -> int | None:
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return None if limit == -1 else limit


class EngineError(Exception):
    """The engine has failed. The log has its message, which is not for clients."""


class Service:
    """The models of a configuration file, which an engine loads on demand."""

    def __init__(self, config: Path, engine: Engine, capacity: float) -> None:
        self.config, self.engine = config, engine
        # These limit what runs at the same time: 32 steps of answers, two loads or unloads, and one reload.
        self.steps, self.loads, self.reloads = ThreadPoolExecutor(32), ThreadPoolExecutor(2), ThreadPoolExecutor(1)
        self.models = ModelRegistry()
        self.loader = ModelLoader(ModelRouter(self.models), self.load, self.unload, capacity=capacity)
        self.lock = Lock()  # For the counts.
        self.counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self.read()

    def read(self) -> None:
        logger.info("models: %s", self.models.replace_with(RoutingConfig.read(self.config).registry(status="loading")))

    def reload(self) -> None:
        try:
            self.read()
        except ConfigError as error:
            logger.error("not reloaded, and nothing has changed:\n%s", error)

    def load(self, endpoint: ModelEndpoint, adapter: LoraAdapter | None) -> Future[Any]:
        self.count("bonsai_loads_total", model=str(endpoint.id))
        if adapter is None:
            return self.loads.submit(self.engine.load, endpoint, None, None)
        # The loader keeps the base in memory as long as the adapter, so its handle is valid without the lease too.
        with self.loader.router.lease(adapter.base_model) as base:
            return self.loads.submit(self.engine.load, endpoint, adapter, base.handle)

    def unload(self, publication: Publication) -> Future[None]:
        self.count("bonsai_unloads_total", model=str(publication.endpoint.id))
        return self.loads.submit(self.engine.unload, publication.handle)

    async def chunks(self, chat: Chat) -> Chunks:
        """Lease the model, load it if necessary, and yield the chunks of an answer. The last one has the usage."""
        messages = [message.plain() for message in chat.messages]
        model, outcome = "", "hung_up"
        held = ExitStack()
        step: Future[Any] = self.steps.submit(self.engine.count_tokens, messages)
        try:
            prompt = await asyncio.wrap_future(step)
            limit = chat.limit()
            lease = held.enter_context(self.loader.lease(chat.model, prompt + (limit or 0)))
            model = str(lease.endpoint.id)
            await asyncio.wrap_future(lease.loaded)
            limit = lease.endpoint.max_context_length - prompt if limit is None else limit
            tokens = held.enter_context(closing(self.engine.generate(lease.handle, messages, limit)))
            head = {
                "id": f"chatcmpl-{uuid.uuid4().hex}",
                "object": "chat.completion.chunk",
                "created": int(time.time()),
                "model": model if chat.model is None else chat.model,
                "system_fingerprint": f"generation-{lease.generation}",
            }
            delta, completion = {"role": "assistant"}, 0
            while (token := await asyncio.wrap_future(step := self.steps.submit(next, tokens, None))) is not None:
                yield {**head, "choices": [{"index": 0, "delta": {**delta, "content": token}, "finish_reason": None}]}
                delta, completion = {}, completion + 1
            finish = "length" if completion == limit else "stop"
            yield {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}
            usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
            yield {**head, "choices": [], "usage": usage}
            outcome = "ok"
        except RoutingError as error:
            if isinstance(error, ContextTooLongError | ModelNotReadyError):
                model = error.model
            outcome = error_response(error).body["error"]["code"]
            raise
        except Exception as error:
            outcome = "engine_error"
            logger.exception("the engine failed on %r", model)
            raise EngineError from error
        finally:
            # If a thread still computes a token, it cannot be stopped, and it uses the weights until the step ends.
            step.add_done_callback(lambda _: held.close())
            self.count("bonsai_requests_total", model=model, outcome=outcome)

    def count(self, metric: str, **labels: str) -> None:
        with self.lock:
            self.counts[metric, tuple(labels.items())] += 1

    def metrics(self) -> str:
        """Return the metrics in Prometheus' text format."""
        with self.lock:
            values = self.counts.copy()
        for endpoint in self.models:
            values["bonsai_in_flight", (("model", str(endpoint.id)),)] = self.models.in_flight(endpoint.id)
        for each in self.models.draining():
            values["bonsai_draining", (("model", str(each.endpoint.id)),)] += each.leases
        lines = []
        for metric, description in METRICS.items():
            kind = "counter" if metric.endswith("_total") else "gauge"
            lines += [f"# HELP {metric} {description}", f"# TYPE {metric} {kind}"]
            for (name, labels), value in values.items():
                if name == metric:
                    lines.append(f"{metric}{{{','.join(f'{key}={quote(text)}' for key, text in labels)}}} {value}")
        return "\n".join(lines) + "\n"


def unless_disabled(endpoint: ModelEndpoint) -> dict[str, object] | None:
    """Show clients all models that can be loaded, and not those that are switched off."""
    return None if endpoint.status is EndpointStatus.DISABLED else {}


def quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def error_body(kind: str, message: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": None}}


ENGINE_FAILED = error_body("server_error", "The engine failed.")


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Return what *work* returns. If the client hangs up before, cancel it and raise ``ClientDisconnect``."""

    async def hang_up() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(hang_up())
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        working.cancel()
        gone.cancel()


async def whole(chunks: Chunks) -> dict[str, Any]:
    """Return the chunks of an answer as one completion."""
    *parts, end, last = [chunk async for chunk in chunks]
    text = "".join(part["choices"][0]["delta"]["content"] for part in parts)
    message = {"role": "assistant", "content": text}
    choice = {"index": 0, "message": message, "finish_reason": end["choices"][0]["finish_reason"]}
    return {**last, "object": "chat.completion", "choices": [choice]}


class Events(StreamingResponse):
    """Sends chunks as server-sent events. Closes their generator at the end, also if the client hangs up."""

    def __init__(self, first: dict[str, Any], chunks: Chunks, usage: bool) -> None:
        self.first, self.chunks, self.usage = first, chunks, usage
        # Neither caches nor nginx may hold events back.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self.events(), headers=headers, media_type="text/event-stream")

    async def events(self) -> AsyncIterator[str]:
        yield f"data: {json.dumps(self.first)}\n\n"
        try:
            async for chunk in self.chunks:
                if chunk["choices"] or self.usage:
                    yield f"data: {json.dumps(chunk)}\n\n"
            yield "data: [DONE]\n\n"
        except EngineError:
            # The status has been sent already. Without [DONE], no client takes this for a finished answer.
            yield f"data: {json.dumps(ENGINE_FAILED)}\n\n"

    async def __call__(self, *args: Any) -> None:
        async with aclosing(self.chunks):
            await super().__call__(*args)


def create_app(config: Path, engine: Engine, capacity: float) -> FastAPI:
    """Return the app. *capacity* is how many models fit into memory. Raises ``ConfigError``."""
    service = Service(config, engine, capacity)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Windows has no SIGHUP, and only the main thread handles signals.
        with suppress(AttributeError, NotImplementedError, RuntimeError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, service.reloads.submit, service.reload)
        yield
        await asyncio.wrap_future(service.loader.close())

    app = FastAPI(title="bonsai_routing", lifespan=lifespan)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return PlainTextResponse(service.metrics(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return models_response(service.loader.router, aliases=True, ready=False, card=unless_disabled)

    @app.get("/v1/models/{name:path}")
    async def retrieve(name: str) -> dict[str, Any]:
        return model_response(service.loader.router, name, ready=False, card=unless_disabled)

    @app.post("/v1/chat/completions")
    async def complete(request: Request) -> Response:
        chat = Chat.model_validate_json(await request.body())
        chunks = service.chunks(chat)
        if not chat.stream:
            return JSONResponse(await unless_gone(request, whole(chunks)))
        # The status is sent when the first chunk is there, so that an earlier failure is answered with its own status.
        first = await unless_gone(request, anext(chunks))
        return Events(first, chunks, bool(chat.stream_options and chat.stream_options.include_usage))

    @app.exception_handler(RoutingError)
    async def refuse(request: Request, error: RoutingError) -> Response:
        answer = error_response(error)
        if isinstance(error, ModelNotFoundError):
            near = suggestions(service.models, error.model, ready=False, card=unless_disabled)
            if near:
                answer.body["error"]["message"] += f" Did you mean {' or '.join(near)}?"
        return JSONResponse(answer.body, answer.status, answer.headers)

    @app.exception_handler(ValidationError)
    async def malformed(request: Request, error: ValidationError) -> Response:
        # For a union, pydantic lists an error for each type. The one with the longest path is the most specific.
        worst = max(error.errors(), key=lambda each: len(each["loc"]))
        places = [each for each in worst["loc"] if each not in ("str", "list[Part]")]
        param = "".join(f"[{each}]" if isinstance(each, int) else f".{each}" for each in places).strip(".")
        message = f"{param}: {worst['msg']}" if param else worst["msg"]
        return JSONResponse(error_body("invalid_request_error", message, param or None), 400)

    @app.exception_handler(HTTPException)
    async def no_such_route(request: Request, error: HTTPException) -> Response:
        body = error_body("invalid_request_error", f"{request.method} {request.url.path}: {error.detail}")
        return JSONResponse(body, error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # Nobody reads it.

    @app.exception_handler(EngineError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # Otherwise OpenAI's client would send the request twice more, to an engine that has just failed.
        return JSONResponse(ENGINE_FAILED, 500, {"x-should-retry": "false"})

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--capacity", type=int, default=2, help="how many models fit into memory; default: 2")
    options = parser.parse_args()
    try:
        app = create_app(options.config, EchoEngine(), options.capacity)
    except (ConfigError, ValueError) as error:
        parser.error(str(error))
    # A client that does not read its answer cannot keep the app from stopping.
    uvicorn.run(app, host=options.host, port=options.port, timeout_graceful_shutdown=30)


if __name__ == "__main__":
    main()
