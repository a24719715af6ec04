"""The server: every call is written down, let in or not, struck by a fault or not, and answered."""

from __future__ import annotations

import asyncio
import base64
import itertools
import random
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_uniapi_fal.emulator.account import Account, SeenRequest, read_authorization
from airflow_provider_uniapi_fal.emulator.faults import Allowance, Rule, RuleBook, carry_out, read_header
from airflow_provider_uniapi_fal.emulator.jobs import Job, JobQueue
from airflow_provider_uniapi_fal.emulator.refusals import Manners
from airflow_provider_uniapi_fal.emulator.reply import HangUp, Reply
from airflow_provider_uniapi_fal.emulator.sending import NoAnswer, hang_up, send
from airflow_provider_uniapi_fal.emulator.settings import Behaviour

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.inputs import Recipe
    from airflow_provider_uniapi_fal.emulator.media import MediaFile, Studio
    from airflow_provider_uniapi_fal.emulator.settings import Settings
    from airflow_provider_uniapi_fal.emulator.state_file import StateFile

# Inputs may be pictures and videos as data URIs.
LARGEST_BODY = 128 * 1024 * 1024
# Rules that a request brings for itself.
FAULT_HEADER = "X-Emulator-Fault"
OWN_FILE = re.compile(r"https?://.+/files/(?P<request_id>[\w-]+)/(?P<name>[\w.-]+)(\?.*)?")
# From the middleware to the handler of the same request.
_SEEN: ContextVar[SeenRequest] = ContextVar("seen")


@dataclass
class Gateway:
    """
    All that one emulator knows; ``reset`` forgets it.

    With a state file, whatever changes here is written down before it is answered. The state of a job is a function of
    time, so its beginning and its cancels are enough to have it again.
    """

    settings: Settings
    studio: Studio
    state_file: StateFile | None = None
    families: dict[str, Family] = field(init=False, default_factory=dict)
    rules: RuleBook = field(init=False)
    queue: JobQueue = field(init=False)
    account: Account = field(init=False)
    allowance: Allowance = field(init=False)
    _chance: random.Random = field(init=False, default_factory=random.Random)
    _numbers: itertools.count[int] = field(init=False, default_factory=lambda: itertools.count(1))

    def __post_init__(self) -> None:
        self._forget()
        if self.state_file is not None:
            self._replay(self.state_file.read())

    def reset(self) -> None:
        """Forget all jobs, requests and rules, but those the emulator was started with."""
        self._forget()
        if self.state_file is not None:
            self.state_file.clear()

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

    def behaviour(self, model: str, call: Call, *, family: str = "fal", endpoint: str = "") -> Behaviour:
        """Return how a job that is about to begin will go; the rules that say so are counted."""
        changes = {**self.rules.changes(call.body, family), **call.own_rules.changes(call.body, family)}
        kind = model if family == "fal" else f"{family}/{endpoint}/{model}"
        return self.settings.behaviour_of(kind, changes)

    def begin(self, model: str, call: Call, behaviour: Behaviour, **about: str) -> Job:
        """
        Accept a post: a new job, whatever was posted before.

        :param about: family, endpoint, own_id and source, as a job has them
        """
        job = Job.begin(
            number=len(self.queue.jobs) + 1,
            request_id=str(uuid.uuid4()),
            model=model,
            body=call.body,
            behaviour=behaviour,
            now=self.now(),
            seed=self.settings.seed,
            **about,
        )
        job.headers = fal_headers(call.request.headers)
        self._note("job", **job.as_mapping())
        self._take(job)
        return job

    async def develop(self, recipe: Recipe) -> MediaFile:
        """Render a file; a picture that it is made from may be one that was made here before."""
        given = [await self._own_picture(each) for each in (recipe.source, recipe.second)]
        if given != [recipe.source, recipe.second]:
            recipe = replace(recipe, source=given[0], second=given[1])
        return await self.studio.develop(recipe)

    async def _own_picture(self, source: str) -> str:
        """Return the picture at one of the emulator's own addresses as a data URI, anything else as it is."""
        found = OWN_FILE.fullmatch(source) if source.startswith("http") else None
        job = self.queue.jobs.get(found["request_id"]) if found else None
        if found is None or job is None or job.finished_at is None:
            return source
        file = self.families[job.family].files(job).get(found["name"])
        if file is None or file.recipe.kind != "image":
            return source
        made = await self.develop(file.recipe)
        return f"data:{file.recipe.content_type};base64,{base64.b64encode(made.data).decode()}"

    def media_url(self, call: Call, job: Job, name: str) -> str:
        """Return the address of one of a job's files."""
        return f"{call.origin}{self.settings.base_prefix}/files/{job.request_id}/{name}"

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
        self.allowance = Allowance(self.settings.calls_a_second * self.settings.time_scale)

    def _note(self, event: str, **fields: Any) -> None:
        if self.state_file is not None:
            self.state_file.write(event, **fields)

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


@dataclass(frozen=True)
class PublicFile:
    """A media file that a job has made, and how long after the job's end it is there."""

    recipe: Recipe
    seconds: float
    by_link: bool = False
    """It is there for those alone whose address says until when, and not any longer."""


def _job_at(gateway: Gateway, request_id: str) -> Job | None:
    return gateway.queue.jobs.get(request_id)


def _as_it_is(settings: Settings, reply: Reply) -> Reply:
    return reply


@dataclass(frozen=True)
class Family:
    """One of the gateway's dialects, or what belongs to none of them."""

    name: str
    routes: Sequence[Route]
    files: Callable[[Job], Mapping[str, PublicFile]] = lambda job: {}
    """The media files of a job that is finished, by their names."""
    find: Callable[[Gateway, str], Job | None] = _job_at
    """The job that a path names."""
    finds_all: bool = False
    """Whether its paths name the jobs of other families, too."""
    dress: Callable[[Settings, Reply], Reply] = _as_it_is
    """Changes answers and refusals on their way out."""

    def job_at(self, gateway: Gateway, name: str) -> Job | None:
        """Return the job that a path names, if it is one of those that it may name."""
        job = self.find(gateway, name)
        return job if job is not None and (self.finds_all or job.family == self.name) else None


def add_routes(app: web.Application, gateway: Gateway, family: Family) -> None:
    """Serve the operations of a dialect."""
    gateway.families[family.name] = family
    for route in family.routes:
        path, serve = gateway.settings.base_prefix + route.path, _serve(gateway, family, route)
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
            response = NoAnswer()
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


def _serve(
    gateway: Gateway, family: Family, route: Route
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    manners = Manners(family.name, gateway.settings.gateway_errors)

    async def serve(request: web.Request) -> web.StreamResponse:
        seen = _SEEN.get()
        job = family.job_at(gateway, request.match_info.get("request_id", ""))
        seen.operation, seen.request_id = route.operation, job.request_id if job else None
        gateway.called(seen)
        if route.scheme is not None:
            scheme, credentials = read_authorization(request.headers.get("Authorization"))
            seen.key_matched = scheme == route.scheme and _is_accepted(credentials, gateway.settings.key)
            if not seen.key_matched:
                return await send(request, family.dress(gateway.settings, manners.refusal("bad-key")))
        body = await request.read()
        await asyncio.sleep(gateway.latency())
        if route.scheme is not None and not gateway.allowance.take(time.monotonic()):
            seen.fault = "rate-limit"
            return await send(request, family.dress(gateway.settings, manners.rate_limit()))
        try:
            own_rules = read_header(request.headers.getall(FAULT_HEADER, ()), route.operation)
            for rule in own_rules.all():
                gateway.settings.check_rule(rule)
        except ValueError as error:
            return await send(request, Reply.gateway_error(400, f"{FAULT_HEADER}: {error}"))
        call = Call(request, body, job, own_rules)

        async def proceed() -> Reply:
            reply = family.dress(gateway.settings, await route.handler(gateway, call))
            seen.request_id = call.job.request_id if call.job else None
            return reply

        submitted = job.body if job else body
        about = (route.operation, submitted, job.family if job else family.name)
        struck = own_rules.strike(*about) or gateway.rules.strike(*about)
        if struck is None:
            return await send(request, await proceed())
        seen.fault = struck.fault
        reply = await carry_out(
            struck.on_scale(gateway.settings.time_scale), proceed, request.path_qs, manners
        )
        if isinstance(reply, HangUp):
            return hang_up(request, reset=reply.reset)
        if struck.fault in ("turned-away", "rate-limit"):
            reply = family.dress(gateway.settings, reply)
        return await send(request, reply)

    return serve


def _is_accepted(credentials: str, key: str) -> bool:
    return credentials == key if key else bool(credentials)
