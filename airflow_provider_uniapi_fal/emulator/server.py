"""The server: every call is written down, let in or not, struck by a fault or not, and answered."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_uniapi_fal.emulator.account import Account, SeenRequest, read_authorization
from airflow_provider_uniapi_fal.emulator.faults import Rule, RuleBook, carry_out, read_header
from airflow_provider_uniapi_fal.emulator.jobs import Job, JobQueue
from airflow_provider_uniapi_fal.emulator.refusals import BAD_KEY
from airflow_provider_uniapi_fal.emulator.reply import HangUp, Reply
from airflow_provider_uniapi_fal.emulator.sending import NoAnswer, hang_up, send
from airflow_provider_uniapi_fal.emulator.settings import Behaviour

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.journal import Journal
    from airflow_provider_uniapi_fal.emulator.media import Studio
    from airflow_provider_uniapi_fal.emulator.settings import Settings

# Inputs may be pictures and videos as data URIs.
LARGEST_BODY = 128 * 1024 * 1024
# Rules that a request brings for itself.
FAULT_HEADER = "X-Emulator-Fault"
# From the middleware to the handler of the same request.
_SEEN: ContextVar[SeenRequest] = ContextVar("seen")


@dataclass
class Gateway:
    """
    All that one emulator knows; ``reset`` forgets it.

    With a journal, whatever changes here is written down before it is answered. The state of a job is a function of
    time, so its beginning and its cancels are enough to have it again.
    """

    settings: Settings
    studio: Studio
    journal: Journal | None = None
    rules: RuleBook = field(init=False)
    queue: JobQueue = field(init=False)
    account: Account = field(init=False)
    _chance: random.Random = field(init=False, default_factory=random.Random)
    _numbers: itertools.count[int] = field(init=False, default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self._forget()
        if self.journal is not None:
            self._replay(self.journal.read())

    def reset(self) -> None:
        """Forget all jobs, requests and rules, but those the emulator was started with."""
        self._forget()
        if self.journal is not None:
            self.journal.clear()

    def see(self, **known: Any) -> SeenRequest:
        """Write a request down as it arrives."""
        request = SeenRequest(number=next(self._numbers), **known)
        self.account.see(request)
        return request

    def called(self, request: SeenRequest) -> None:
        """Count a request whose operation and job are known."""
        self.account.called(request)
        self._note("request", **request.as_mapping())

    def answered(self, request: SeenRequest, status: int | None) -> None:
        """Write down how a request was answered."""
        self.account.answered(request, status)
        if request.operation is None:  # nobody was called
            self._note("request", **request.as_mapping())
        names = ("number", "status", "request_id", "fault", "key_matched")
        self._note("reply", **{name: getattr(request, name) for name in names})

    def now(self) -> float:
        """Return the time, after the queue has caught up with it."""
        now = time.time()
        self.queue.advance(now)
        return now

    def latency(self) -> float:
        """Return the seconds by which the next answer is late."""
        settings = self.settings
        return settings.latency * (1 + settings.latency_spread * self._chance.uniform(-1, 1))

    def waiting(self) -> int:
        """Return how many jobs wait."""
        self.now()
        return self.queue.length

    def begin(self, model: str, call: Call) -> Job:
        """Accept a post: a new job, whatever was posted before."""
        changes = {**self.rules.changes(call.body), **call.own_rules.changes(call.body)}
        job = Job.begin(
            number=len(self.queue.jobs) + 1,
            request_id=str(uuid.uuid4()),
            model=model,
            body=call.body,
            behaviour=self.settings.behaviour_of(model, changes),
            now=self.now(),
            seed=self.settings.seed,
        )
        job.headers = fal_headers(call.request.headers)
        self._note("job", **job.as_mapping())
        self._take(job)
        return job

    def request_cancel(self, job: Job) -> None:
        """Write down that a job is to be cancelled."""
        self._note("cancel", request_id=job.request_id)
        job.cancel_requested = True

    def end(self, job: Job, *, cancelled: bool) -> None:
        """End a job now, as cancelled or as if it had run."""
        self._note("end", request_id=job.request_id, now=self.now(), cancelled=cancelled)
        self._end(job, cancelled=cancelled)

    def _take(self, job: Job) -> None:
        self.queue.submit(job)
        self.account.accept(job)

    def _end(self, job: Job, *, cancelled: bool) -> None:
        if cancelled:
            self.queue.remove(job)
        else:
            self.queue.finish(job)

    def _forget(self) -> None:
        self.rules = RuleBook(self.settings.faults, self._note_rules)
        self.queue = JobQueue(self.settings.concurrency)
        self.account = Account()

    def _note(self, event: str, **fields: Any) -> None:
        if self.journal is not None:
            self.journal.write(event, **fields)

    def _note_rules(self) -> None:
        self._note("rules", left=_as_mappings(self.rules.all()), first=_as_mappings(self.settings.faults))

    def _replay(self, events: list[dict[str, Any]]) -> None:
        unanswered: dict[int, SeenRequest] = {}
        for fields in events:
            event, job = fields.pop("event"), self.queue.jobs.get(fields.get("request_id", ""))
            # An answer or a cancel that was under way during a reset is about what is forgotten.
            if event == "request":
                request = SeenRequest(**fields)
                unanswered[request.number] = request
                self.account.see(request)
                self.account.called(request)
            elif event == "reply" and fields["number"] in unanswered:
                request = unanswered.pop(fields["number"])
                for name, value in fields.items():
                    setattr(request, name, value)
                self.account.answered(request, request.status)
            elif event == "job":
                self._take(Job.read(fields, Behaviour(**fields["behaviour"])))
            elif event == "cancel" and job is not None:
                job.cancel_requested = True
            elif event == "end" and job is not None:
                self.queue.advance(fields["now"])
                self._end(job, cancelled=fields["cancelled"])
            # Rules go on where they were, unless the emulator is started with others.
            elif event == "rules" and fields["first"] == _as_mappings(self.settings.faults):
                self.rules = RuleBook((Rule.read(each) for each in fields["left"]), self._note_rules)
        for request in unanswered.values():
            self.account.answered(request, None)
        self._numbers = itertools.count(
            1 + max((each["number"] for each in self.account.requests()), default=0)
        )


@dataclass
class Call:
    """One request of the gateway's client, with the job it is about, if there is one."""

    request: web.Request
    body: bytes
    job: Job | None
    own_rules: RuleBook

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
        seen = gateway.see(
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
        started = time.monotonic()
        status: int | None = None
        try:
            response = await handler(request)
            status = None if isinstance(response, NoAnswer) else response.status
        except web.HTTPException as error:
            status = error.status
            raise
        except ConnectionError:  # the client has gone
            raise
        except Exception:
            status = 500
            raise
        finally:
            gateway.answered(seen, status)
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


def _as_mappings(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    return [rule.as_mapping() for rule in rules]


def _serve(gateway: Gateway, route: Route) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def serve(request: web.Request) -> web.StreamResponse:
        seen = _SEEN.get()
        job = gateway.queue.jobs.get(request.match_info.get("request_id", ""))
        seen.operation, seen.request_id = route.operation, job.request_id if job else None
        gateway.called(seen)
        if route.scheme is not None:
            scheme, credentials = read_authorization(request.headers.get("Authorization"))
            seen.key_matched = scheme == route.scheme and _is_accepted(credentials, gateway.settings.key)
            if not seen.key_matched:
                return await send(request, BAD_KEY)
        body = await request.read()
        await asyncio.sleep(gateway.latency())
        try:
            own_rules = read_header(request.headers.getall(FAULT_HEADER, ()), route.operation)
            for rule in own_rules.all():
                gateway.settings.check_rule(rule)
        except ValueError as error:
            return await send(request, Reply.gateway_error(400, f"{FAULT_HEADER}: {error}"))
        call = Call(request, body, job, own_rules)

        async def proceed() -> Reply:
            reply = await route.handler(gateway, call)
            seen.request_id = call.job.request_id if call.job else None
            return reply

        submitted = job.body if job else body
        struck = own_rules.strike(route.operation, submitted) or gateway.rules.strike(
            route.operation, submitted
        )
        if struck is None:
            return await send(request, await proceed())
        seen.fault = struck.fault
        reply = await carry_out(struck.on_scale(gateway.settings.time_scale), proceed, request.path_qs)
        return (
            hang_up(request, reset=reply.reset) if isinstance(reply, HangUp) else await send(request, reply)
        )

    return serve


def _is_accepted(credentials: str, key: str) -> bool:
    return credentials == key if key else bool(credentials)
