"""The application: which address does what."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from inkstone import __version__, registry
from inkstone.errors import InkstoneError
from inkstone.serving import body as bodies
from inkstone.serving import openai, protocol
from inkstone.serving import responses as newer
from inkstone.serving.answers import unless_gone
from inkstone.serving.config import ServeConfig
from inkstone.serving.errors import ApiError, told
from inkstone.serving.guard import Gate, Guard
from inkstone.serving.hosted import TEXT_VERBS, Hosted
from inkstone.serving.page import PATHS, Page
from inkstone.serving.reload import Reloader
from inkstone.serving.runs import Watch
from inkstone.serving.threads import beside
from inkstone.serving.worker import Counts

log = logging.getLogger("inkstone.serving")
B = TypeVar("B", bound=BaseModel)
SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Service:
    """Models, and what is counted about them.

    Args:
        hosted: Of different names; the first one answers where none is named.
        config: Of the server.

    Raises:
        UsageError: A folder that is to be watched is none.
    """

    def __init__(self, hosted: Sequence[Hosted], config: ServeConfig) -> None:
        self.hosted = {one.name: one for one in hosted}
        self.config = config
        self.watch = Watch(config.watch)
        self.ready = False
        self.gate = Gate(self.places, config.most)
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "inkstone_requests", "Requests, by address and status.", ("path", "status"),
            registry=self.registry,
        )  # fmt: skip
        self.seconds = Histogram(
            "inkstone_request_seconds", "From the first byte to the last.", ("path",),
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self._refused = Gauge(
            "inkstone_refused", "Requests that found no place.", registry=self.registry
        )
        labels = ("model",)
        reloads = Counter(
            "inkstone_reloads", "New checkpoints, by model and whether they are served.",
            ("model", "result"), registry=self.registry,
        )  # fmt: skip
        self.reloader = Reloader(
            self.hosted, config,
            lambda name, done: reloads.labels(name, "served" if done else "failed").inc(),
        )  # fmt: skip
        self._gauges = {
            name: Gauge(f"inkstone_{name}", about, labels, registry=self.registry)
            for name, about in {
                "waiting": "Requests that wait.",
                "running": "Requests that are being answered.",
                "cache_pages_free": "Pages of keys and values that nobody reads.",
                "prompt_tokens": "Tokens of prompts so far.",
                "answer_tokens": "Tokens of answers so far.",
                "answered": "Requests that came to an end.",
                "cancelled": "Requests that nobody wanted any more.",
                "steps": "Passes of the model.",
            }.items()
        }

    def find(self, name: str | None, verb: str | None = None) -> Hosted:
        """The model of a name; for none the first one that can do what is asked. It stays for as
        long as the request that asks, even where a new one takes its name.

        Raises:
            ApiError: There is no such model, or it cannot.
        """
        if name is None:
            able = [one for one in self.hosted.values() if verb is None or verb in one.verbs]
            if not able:
                raise ApiError(404, f"no model here can {verb}", code="model_not_found")
            able[0].used()
            return able[0]
        if name not in self.hosted:
            near = registry.did_you_mean(name[:200], list(self.hosted))
            raise ApiError(
                404, f"there is no model {name[:200]!r}; {near}", param="model",
                code="model_not_found",
            )  # fmt: skip
        one = self.hosted[name]
        if verb is not None and verb not in one.verbs:
            can = ", ".join(sorted(one.verbs))
            raise ApiError(400, f"{name} cannot {verb}; it can {can}", param="model")
        one.used()
        return one

    def places(self, growing: bool) -> int:
        """Requests that may be open: of those whose answers grow token by token, or of others."""
        workers = {one.worker for one in self.hosted.values()} - {None}  # adapters share one
        if growing:
            return sum(w.engine.scheduler.most + w.waiting for w in workers if w is not None)
        return self.config.waiting * len(self.hosted)

    def start(self) -> None:
        """Begin; called inside the event loop."""
        for one in self.hosted.values():
            one.start()
        self.reloader.start()
        self.ready = True

    async def stop(self) -> None:
        """Let answers end, for `grace_s` at most, and stop."""
        self.ready = False
        end = time.monotonic() + self.config.grace_s
        while time.monotonic() < end and any(self._open(one) for one in self.hosted.values()):
            await asyncio.sleep(0.02)
        await self.reloader.stop(max(0.0, end - time.monotonic()))
        for one in self.hosted.values():
            await asyncio.to_thread(one.stop)

    def metrics(self) -> bytes:
        """For Prometheus."""
        self._refused.set(self.gate.refused)
        for name, one in self.hosted.items():
            values = {"waiting": len(one.desk), "running": 0}
            if one.worker is not None:
                scheduler = one.worker.engine.scheduler
                running = len(scheduler.running)
                own = one.worker.counts_of[one.adapter]
                counts = Counts.sum((*self.reloader.older[name], own))
                values = {
                    "waiting": max(0, len(one.worker) - running), "running": running,
                    "cache_pages_free": scheduler.pages.available,
                    "prompt_tokens": counts.prompt_tokens, "answer_tokens": counts.answer_tokens,
                    "answered": counts.answered, "cancelled": counts.cancelled,
                    "steps": counts.steps,
                }  # fmt: skip
            for key, value in values.items():
                self._gauges[key].labels(name).set(value)
        return generate_latest(self.registry)

    @staticmethod
    def _open(one: Hosted) -> int:
        return len(one.desk) + (0 if one.worker is None else len(one.worker))


def create_app(hosted: Sequence[Hosted], config: ServeConfig) -> ASGIApp:
    """The guarded application that serves some models."""
    service = Service(hosted, config)

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="Inkstone", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        openapi_url="/openapi.json",
    )  # fmt: skip
    app.state.service = service
    _handle_errors(app)
    _count(app, service)
    _routes(app, service)
    Page.read().add_to(app)
    return Guard(app, config, service.gate)


def _routes(app: FastAPI, service: Service) -> None:
    timeout_s = service.config.request_timeout_s

    def post(
        path: str, kind: type[B], answers: type[BaseModel] | None = None
    ) -> Callable[[Callable[[Request, B], Awaitable[Any]]], None]:
        """An address that takes a body of some kind, and what it answers where that is told."""
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        definitions.update(schema.pop("$defs", {}))
        wanted = {"content": {"application/json": {"schema": schema}}, "required": True}

        def take(work: Callable[[Request, B], Awaitable[Any]]) -> None:
            async def handle(request: Request) -> Any:
                return await work(request, await bodies.read(request, kind))

            app.add_api_route(
                path, handle, methods=["POST"], response_model=answers, name=path,
                openapi_extra={"requestBody": wanted},
                responses={s: {"description": d} for s, d in ERRORS.items()},
            )  # fmt: skip

        return take

    definitions: dict[str, Any] = {}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [one.about() for one in service.hosted.values()]}

    @app.get("/v1/models/{name:path}", responses={404: {"description": ERRORS[404]}})
    async def model(name: str) -> Any:
        return service.find(name).about()

    @post("/v1/chat/completions", protocol.ChatCompletions)
    async def chat(request: Request, body: protocol.ChatCompletions) -> Any:
        return await openai.chat(request, service.find(body.model, "chat"), body, timeout_s)

    @post("/v1/completions", protocol.Completions)
    async def completions(request: Request, body: protocol.Completions) -> Any:
        return await openai.completions(
            request, service.find(body.model, "complete"), body, timeout_s
        )

    @post("/v1/responses", protocol.Responses)
    async def responses(request: Request, body: protocol.Responses) -> Any:
        return await newer.responses(request, service.find(body.model, "chat"), body, timeout_s)

    @post("/v1/embeddings", protocol.Embeddings)
    async def embeddings(request: Request, body: protocol.Embeddings) -> Any:
        return await openai.embeddings(request, service.find(body.model, "embed"), body)

    def texts(verb: str) -> None:
        @post(f"/v1/{verb}", protocol.Texts)
        async def work(request: Request, body: protocol.Texts) -> Any:
            one = service.find(body.model, verb)
            if not 0 < len(body.several) <= protocol.MOST_INPUTS:
                raise ApiError(400, f"give 1 to {protocol.MOST_INPUTS} texts", param="input")
            found = await unless_gone(request, one.desk.do(verb, body.several))
            return JSONResponse({"model": one.name, "results": found})

    for verb in TEXT_VERBS:
        texts(verb)

    @post("/v1/answer", protocol.Question)
    async def answer(request: Request, body: protocol.Question) -> Any:
        one = service.find(body.model, "answer")
        work = one.desk.do("answer", [(body.question, body.context)])
        found = await unless_gone(request, work)
        return JSONResponse({"model": one.name, **found[0]})

    @post("/v1/attribute", protocol.Attribute, protocol.Attribution)
    async def attributed(request: Request, body: protocol.Attribute) -> Any:
        one = service.find(body.model, "attribute")
        work = one.desk.do("attribute", [(body.input, body.label)])
        found = await unless_gone(request, work)
        return JSONResponse({"model": one.name, **found[0]})

    @post("/v1/attention", protocol.Attend, protocol.Attention)
    async def attended(request: Request, body: protocol.Attend) -> Any:
        one = service.find(body.model, "attend")
        found = await unless_gone(request, one.desk.do("attend", [(body.input, body.layer)]))
        return JSONResponse({"model": one.name, **found[0]})

    @app.get("/v1/runs", response_model=protocol.Runs)
    async def runs() -> Any:
        told = await asyncio.to_thread(service.watch.all)
        return {"watching": bool(service.watch.folders), "data": told}

    @app.get(
        "/v1/runs/{name:path}", response_model=protocol.RunCurves,
        responses={404: {"description": "no such run"}},
    )  # fmt: skip
    async def run(name: str) -> Any:
        return await asyncio.to_thread(service.watch.one, name)

    @post("/tokenize", protocol.Tokenize)
    async def tokenize(request: Request, body: protocol.Tokenize) -> Any:
        tokenizer = _tokenizer(service.find(body.model))

        def work() -> dict[str, Any]:
            ids = tokenizer.encode(body.text)
            tokens = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids]
            return {"ids": ids, "tokens": tokens}

        return JSONResponse(await unless_gone(request, beside(work)))

    @post("/detokenize", protocol.Detokenize)
    async def detokenize(request: Request, body: protocol.Detokenize) -> Any:
        tokenizer = _tokenizer(service.find(body.model))
        if body.ids and max(body.ids) >= tokenizer.vocab_size:
            raise ApiError(400, f"ids end at {tokenizer.vocab_size - 1}", param="ids")

        def work() -> dict[str, str]:
            return {"text": tokenizer.decode(body.ids, skip_special=False)}

        return JSONResponse(await unless_gone(request, beside(work)))

    @app.get("/health/live")
    async def live() -> Any:
        return {"status": "alive"}

    @app.get("/health/ready", responses={503: {"description": "not yet, or no longer"}})
    async def ready() -> Any:
        status = 200 if service.ready else 503
        return JSONResponse({"status": "ready" if service.ready else "not ready"}, status)

    @app.get("/metrics")
    async def metrics() -> Any:
        return PlainTextResponse(service.metrics())

    made = app.openapi

    def openapi_with_parts() -> dict[str, Any]:
        schema = made()
        schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions)
        return schema

    app.openapi = openapi_with_parts  # type: ignore[method-assign]


ERRORS = {
    400: "the request cannot be done as it is", 401: "no key", 403: "another page's request",
    404: "no such model", 408: "the body did not come in time", 413: "the body is too large",
    415: "the body is no JSON", 421: "another host's request", 429: "too many requests",
    503: "shutting down", 504: "not complete in time",
}  # fmt: skip


def _tokenizer(one: Hosted) -> Any:
    if one.model.tokenizer is None:
        raise ApiError(400, f"{one.name} has no tokenizer")
    return one.model.tokenizer


def _handle_errors(app: FastAPI) -> None:
    async def api(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError)
        return JSONResponse(error.body(), error.status, headers=error.headers)

    async def named(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, InkstoneError)
        return await api(request, told(error))

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        known = ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {}))
        return await api(request, known)

    app.add_exception_handler(ApiError, api)
    app.add_exception_handler(InkstoneError, named)
    app.add_exception_handler(HTTPException, http)


def _count(app: FastAPI, service: Service) -> None:
    """Requests by address and status; the log holds no text of anybody's."""
    watching = {"/v1/models", "/v1/runs", "/v1/runs/{name:path}", "/metrics", "/health/live",
                "/health/ready", "/openapi.json", *PATHS}  # fmt: skip

    class Counting:
        def __init__(self, inner: ASGIApp) -> None:
            self.inner = inner

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return await self.inner(scope, receive, send)
            began, status = time.perf_counter(), 499

            async def sending(message: Any) -> None:
                nonlocal status
                if message["type"] == "http.response.start":
                    status = message["status"]
                await send(message)

            try:
                await self.inner(scope, receive, sending)
            finally:
                route = scope.get("route")
                path = getattr(route, "path", None) or "other"
                took = time.perf_counter() - began
                service.requests.labels(path, status).inc()
                service.seconds.labels(path).observe(took)
                if path not in watching:
                    log.info("%s %s %d %.3f s", scope["method"], path, status, took)
            return None

    app.add_middleware(Counting)
