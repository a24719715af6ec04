"""The server: every call is written down, let in or not, struck by a fault or not, and answered."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_uniapi_fal.emulator.account import Account, SeenRequest, read_authorization
from airflow_provider_uniapi_fal.emulator.faults import RuleBook, carry_out
from airflow_provider_uniapi_fal.emulator.jobs import Job, JobQueue
from airflow_provider_uniapi_fal.emulator.reply import Reply

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.media import Studio
    from airflow_provider_uniapi_fal.emulator.settings import Settings

# Inputs may be pictures and videos as data URIs.
LARGEST_BODY = 128 * 1024 * 1024
# From the middleware to the handler of the same request.
_SEEN: ContextVar[SeenRequest] = ContextVar("seen")


@dataclass
class Gateway:
    """All that one emulator knows; ``reset`` forgets it."""

    settings: Settings
    studio: Studio
    rules: RuleBook = field(init=False)
    queue: JobQueue = field(init=False)
    account: Account = field(init=False)

    def __post_init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all jobs, requests and rules, but those the emulator was started with."""
        self.rules = RuleBook(self.settings.faults)
        self.queue = JobQueue(self.settings.concurrency)
        self.account = Account()

    def now(self) -> float:
        """Return the time, after the queue has caught up with it."""
        now = time.time()
        self.queue.advance(now)
        return now

    def begin(self, model: str, body: bytes, headers: Mapping[str, str]) -> Job:
        """Accept a post: a new job, whatever was posted before."""
        job = Job.begin(
            number=len(self.queue.jobs) + 1,
            request_id=str(uuid.uuid4()),
            model=model,
            body=body,
            behaviour=self.settings.behaviour_of(model, self.rules.changes(body)),
            now=self.now(),
            seed=self.settings.seed,
        )
        job.headers = fal_headers(headers)
        self.queue.submit(job)
        self.account.accept(job)
        return job


@dataclass
class Call:
    """One request of the gateway's client, with the job it is about, if there is one."""

    request: web.Request
    body: bytes
    job: Job | None

    @property
    def origin(self) -> str:
        """The address by which the client reached the emulator."""
        return str(self.request.url.origin())

    def part(self, name: str) -> str:
        """Return one variable part of the path."""
        return self.request.match_info.get(name, "")


Handler = Callable[[Gateway, Call], Awaitable[Reply]]


@dataclass(frozen=True)
class Route:
    """One operation of a dialect: method, path, who answers, and the scheme of its key (None: no key)."""

    method: str
    path: str
    operation: str
    handler: Handler
    scheme: str | None


def add_routes(app: web.Application, gateway: Gateway, routes: list[Route]) -> None:
    """Serve the operations of a dialect."""
    for route in routes:
        path, serve = gateway.settings.base_prefix + route.path, _serve(gateway, route)
        if route.method == "GET":
            app.router.add_get(path, serve)  # answers HEAD, too
        else:
            app.router.add_route(route.method, path, serve)


def recorder(gateway: Gateway, verbose: Callable[[str], None] | None) -> Any:
    """Return the middleware that writes every request down, those for unknown paths too."""

    @web.middleware
    async def record(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith("/_emulator/"):
            return await handler(request)
        header = request.headers.get("Authorization")
        seen = SeenRequest(
            time=time.time(),
            method=request.method,
            host=request.host,
            path=request.path,
            query=request.query_string,
            has_authorization=header is not None,
            scheme=read_authorization(header)[0],
            fal_headers=fal_headers(request.headers),
        )
        _SEEN.set(seen)
        account = gateway.account
        account.see(seen)
        started = time.monotonic()
        status: int | None = None
        try:
            response = await handler(request)
            status = None if isinstance(response, _NoAnswer) else response.status
        except web.HTTPException as error:
            status = error.status
            raise
        except ConnectionError:  # the client has gone
            raise
        except Exception:
            status = 500
            raise
        finally:
            account.answered(seen, status)
            if verbose is not None:
                took = (time.monotonic() - started) * 1000
                verbose(f"{seen.method} {seen.path} {status or 'closed'} {took:.1f} ms")
        return response

    return record


def fal_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the request options that travel as headers."""
    return {
        name: value for name, value in headers.items() if name.lower().startswith(("x-fal-", "x-app-fal-"))
    }


class _NoAnswer(web.Response):
    """Stands for an answer that was never sent."""


def _serve(gateway: Gateway, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        seen = _SEEN.get()
        job = gateway.queue.jobs.get(request.match_info.get("request_id", ""))
        seen.operation, seen.request_id = route.operation, job.request_id if job else None
        gateway.account.called(seen)
        if route.scheme is not None:
            scheme, credentials = read_authorization(request.headers.get("Authorization"))
            seen.key_matched = scheme == route.scheme and _is_accepted(credentials, gateway.settings.key)
            if not seen.key_matched:
                return await _send(request, Reply.json({"detail": "invalid key credentials"}, 401))
        body = await request.read()
        call = Call(request, body, job)

        async def proceed() -> Reply:
            reply = await route.handler(gateway, call)
            seen.request_id = call.job.request_id if call.job else None
            return reply

        rule = gateway.rules.strike(route.operation, job.body if job else body)
        if rule is None:
            return await _send(request, await proceed())
        seen.fault = rule.fault
        reply = await carry_out(rule, proceed, request.path_qs)
        return _hang_up(request) if reply is None else await _send(request, reply)

    return serve


def _is_accepted(credentials: str, key: str) -> bool:
    return credentials == key if key else bool(credentials)


def _hang_up(request: web.Request) -> web.StreamResponse:
    if request.transport is not None:
        request.transport.close()
    return _NoAnswer()


async def _send(request: web.Request, reply: Reply) -> web.StreamResponse:
    if not reply.beats:
        headers = {**reply.headers, "Content-Type": reply.content_type}
        return web.Response(status=reply.status, body=reply.body, headers=headers)
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_type = reply.content_type
    await response.prepare(request)
    for _ in range(reply.beats):
        await response.write(b"\n")
        await asyncio.sleep(reply.beat_seconds)
    await response.write(reply.body)
    await response.write_eof()
    return response
