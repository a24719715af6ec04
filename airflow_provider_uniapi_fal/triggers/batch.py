"""The trigger that watches all jobs of a batch in the triggerer, and the watching that it shares with the worker."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath
from airflow.triggers.base import BaseTrigger, TriggerEvent

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook, known_of, learn, usual_seconds
from airflow_provider_uniapi_fal.hooks.task_states import marked_by_user, states_of
from airflow_provider_uniapi_fal.ledger.journal import Journal
from airflow_provider_uniapi_fal.ledger.record import ends_the_job
from airflow_provider_uniapi_fal.ledger.rows import Entry, RowState, Step, Try, spooled
from airflow_provider_uniapi_fal.protocol.cadence import JOBS_REMEMBERED, SHARE_OF_AGE
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import SCHEMA_VERSION, JobResult
from airflow_provider_uniapi_fal.protocol.watching import FetchElsewhere, RoundEnd, Watch
from airflow_provider_uniapi_fal.triggers.deferring import foreign_event
from airflow_provider_uniapi_fal.triggers.fal import RACE_SECONDS
from airflow_provider_uniapi_fal.triggers.hub import waits

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.job import JobHandle
    from airflow_provider_uniapi_fal.protocol.streaming import WatchBy
    from airflow_provider_uniapi_fal.triggers.hub import Waits

#: Ended jobs are written down together: so many seconds after the first of them, or when there are so many.
GATHER_SECONDS = 1.0
GATHER_MOST = 100

#: While it is not known how long the jobs of a model take, so many of them are looked at, in the order of their
#: submits, and closely. They tell it for all: the others rest until then, or until they are so many seconds old.
SCOUTS = 20
SCOUTS_SHARE_OF_AGE = 0.1
REST_SECONDS = 30.0

#: Waits that are begun without a pause: the event loop is that of all triggers.
BEGUN_TOGETHER = 100

#: Requests to cancel under way at once.
CANCELLERS = 16

#: Models of which a worker is told how long their jobs take, at most: those of which most jobs run. An event is a row
#: in Airflow's database, and is logged.
MODELS_TOLD = 10

#: Seconds between two lines about how the wait goes.
SAY_EVERY = 60.0


@dataclass(frozen=True)
class WatchSettings:
    """
    How each job of a batch is watched.

    :param began: seconds since the epoch at which this try began: its clocks count from there, or from the
        submit if that is later
    :param timeout: seconds until the wait for a job fails
    :param queue_timeout: seconds in which a job must have been seen running, or None
    :param cancel_on_timeout: ask the gateway to cancel a job whose time is over
    :param poke_interval: seconds between looks, or None for adaptive
    :param by: how to learn of the ends: ``poll``, ``stream`` or ``auto``. A stream holds a connection for each job,
        and one batch may have ten thousand
    """

    began: float
    timeout: float = 86400.0
    queue_timeout: float | None = None
    cancel_on_timeout: bool = True
    poke_interval: float | None = None
    by: WatchBy = "poll"

    def watch(self, handle: JobHandle, *, scout: bool = False) -> Watch:
        """
        Return the wait for one job. The model's log lines are left out: there are too many jobs.

        :param scout: it is looked at closely, to tell how long such jobs take
        """
        since = max(self.began, handle.submitted_at)
        return Watch(
            handle,
            deadline=since + self.timeout,
            queue_deadline=None if self.queue_timeout is None else since + self.queue_timeout,
            cancel_on_timeout=self.cancel_on_timeout,
            poke_interval=self.poke_interval,
            share_of_age=SCOUTS_SHARE_OF_AGE if scout else SHARE_OF_AGE,
            logs=False,
            by=self.by,
        )

    def rest(self, handle: JobHandle, now: float) -> float:
        """Return the seconds for which a job of an unknown model may rest while others are looked at."""
        if self.poke_interval is not None or self.by != "poll":
            return 0.0
        longest = min(REST_SECONDS, self.timeout, self.queue_timeout or math.inf)
        # It may have been submitted by a clock that is ahead of this one.
        return min(handle.submitted_at - now, 0.0) + longest


@dataclass(frozen=True)
class LandSettings:
    """
    When a worker is called to land what has ended.

    :param every: results that are ready
    :param after: seconds since the first of them was ready
    :param ahead: seconds before the end of the last job. A worker takes a while to begin, and watches, too: it lands
        what is ready while the last jobs end. No longer than it watches before it defers again
    :param room_below: with fewer jobs running there is room to submit another row; 0 if no row waits for that
    """

    every: int = 100
    after: float = 60.0
    ahead: float = 0.0
    room_below: int = 0

    def work(self, *, ready: int, running: int) -> int:
        """Return for how many jobs that have ended a worker has something to do: to land, or to submit another."""
        return max(ready, self.room_below - running)

    def due(
        self,
        *,
        ready: int,
        since: float,
        running: int,
        urgent: bool,
        over_at: float = math.inf,
        now: float = 0.0,
    ) -> float:
        """
        Return the moment to call a worker, in seconds since the epoch; infinite if there is no reason yet.

        :param ready: results that are ready
        :param since: when the first job ended for which a worker has something to do
        :param running: jobs that are still watched
        :param urgent: a result is ready that only a worker can fetch: the gateway keeps it for minutes only
        :param over_at: when the last of the jobs should end; infinite if that is not known
        :param now: the time
        """
        work = self.work(ready=ready, running=running)
        if running == 0 or work >= self.every or urgent:
            return 0.0
        if work <= 0:
            return math.inf
        # Jobs that are long overdue end when they like: a worker would wait for them in vain.
        nearly_over = over_at - self.ahead if self.ahead and over_at > now - self.ahead else math.inf
        return min(since + self.after, nearly_over)


class Watching:
    """
    The jobs of a batch that are watched in this process; their ends are taken in groups.

    Of a model that is not known yet a few are looked at first: see :data:`SCOUTS`.

    :param hub: where they wait
    """

    def __init__(self, hub: Waits, settings: WatchSettings, this_try: Try) -> None:
        self._hub = hub
        self._settings = settings
        self._try = this_try
        self._rows: dict[str, RowState] = {}
        #: By model, the rows whose jobs rest, each with its job.
        self._resting: dict[str, deque[tuple[str, JobHandle]]] = {}
        #: Which row a wait is for. The request id does not tell: it is the gateway's word, and may come twice.
        self._row_of: dict[int, str] = {}
        self._looked_at: Counter[str] = Counter()
        self._next: asyncio.Future[tuple[Watch, RoundEnd]] | None = None

    @property
    def running(self) -> int:
        """How many have not ended."""
        return len(self._rows)

    def models(self) -> Counter[str]:
        """Return the models of those that have not ended, with the count of each."""
        return Counter(state.handle.model for state in self._rows.values() if state.handle is not None)

    def over_at(self) -> float:
        """Return when the last of them should end, in seconds since the epoch; infinite if that is not known."""
        usual = {model: usual_seconds(model) for model in self._resting}
        ends = (
            handle.submitted_at + (usual[handle.model] or math.inf)
            for handle in (state.handle for state in self._rows.values())
            if handle is not None
        )
        return max(ends, default=math.inf)

    def add(self, state: RowState) -> None:
        """Watch the job of a row."""
        if state.handle is None:
            raise ValueError(f"row {state.entry.key!r} has no job to watch")
        self._rows[state.entry.key] = state
        self._resting.setdefault(state.handle.model, deque()).append((state.entry.key, state.handle))

    async def take(self, seconds: float, *, gather: float) -> list[Entry]:
        """
        Wait for jobs to end; return what is to be written down about them.

        :param seconds: how long at most
        :param gather: how long others are waited for once one has ended
        """
        entries: list[Entry] = []
        until = time.monotonic() + seconds
        while self._rows and len(entries) < GATHER_MOST:
            rest = self._look_at_more()
            if self._next is None:
                self._next = asyncio.ensure_future(self._hub.next_end())
            left = until - time.monotonic()
            await asyncio.wait({self._next}, timeout=max(min(left, rest), 0.0))
            if not self._next.done():
                if rest < left:
                    continue
                break
            if not entries:
                until = min(until, time.monotonic() + gather)
            first, self._next = self._next.result(), None
            # Waiting for each of many takes turns of an event loop that is busy with their looks.
            for watch, end in (first, *self._hub.ends_by_now(GATHER_MOST - len(entries) - 1)):
                self._looked_at[watch.handle.model] -= 1
                state = self._rows.pop(self._row_of.pop(id(watch)))
                entries.append(ended(state, watch, end, self._try, now=time.time()))
        return entries

    def _look_at_more(self) -> float:
        """Look at some of those whose time to rest is over; return the seconds until the next one's is."""
        begun, next_one = 0, math.inf
        for model, resting in self._resting.items():
            while resting:
                rest = self._settings.rest(resting[0][1], time.time())
                scout = rest > 0 and usual_seconds(model) is None
                if scout and self._looked_at[model] >= SCOUTS:
                    next_one = min(next_one, rest)
                    break
                if begun >= BEGUN_TOGETHER:
                    return 0.0
                begun += 1
                self._looked_at[model] += 1
                key, handle = resting.popleft()
                watch = self._settings.watch(handle, scout=scout)
                self._row_of[id(watch)] = key
                self._hub.add(watch)
        return next_one

    async def close(self) -> None:
        """Give up the end that is being waited for."""
        if self._next is not None:
            self._next.cancel()
            await asyncio.gather(self._next, return_exceptions=True)


def ended(state: RowState, watch: Watch, end: RoundEnd, this_try: Try, *, now: float) -> Entry:
    """Return what is to be written down about a wait that ended."""
    if isinstance(end, JobResult):
        return Entry.about(state, Step.SUCCEEDED, this_try, now=now, handle=end.handle, result=spooled(end))
    if isinstance(end, FetchElsewhere):
        return Entry.about(state, Step.SUCCEEDED, this_try, now=now, handle=end.handle)
    if not isinstance(end, Failure):
        raise TypeError(f"the wait has not ended: {end}")
    failure = end.about(watch.handle.request_id)
    if ends_the_job(failure) and not failure.may_run:
        return Entry.about(state, Step.ENDED, this_try, now=now, failure=in_words_of_a_batch(failure))
    failure = replace(failure, may_run=True, retry_does="looks at the same job again, if it is still there.")
    return Entry.about(state, Step.OUT_OF_SIGHT, this_try, now=now, failure=failure)


def in_words_of_a_batch(failure: Failure) -> Failure:
    """Return the failure of a job that has ended, with what a retry of the batch does about it."""
    again = (
        "submits it again." if failure.transient else "submits nothing for it; once cleared, the task does."
    )
    return replace(failure, retry_does=again)


def still_running(journal: Journal) -> list[RowState]:
    """Return the rows whose jobs are to be watched."""
    return [state for state in journal.rows.values() if state.step is Step.SUBMITTED]


def waiting_to_land(journal: Journal, this_try: Try) -> list[RowState]:
    """Return the rows whose results are there, but for those of which this try has failed to land one."""
    return [
        state
        for state in journal.rows.values()
        if state.step is Step.SUCCEEDED
        or (state.step is Step.UNLANDED and state.entry.try_number != this_try.number)
    ]


def learn_from(journal: Journal) -> None:
    """Let this process know how long the jobs took that were landed before, of the models that it will look at."""
    unknown = {
        state.handle.model
        for state in still_running(journal)
        if state.handle is not None and usual_seconds(state.handle.model) is None
    }
    # As many as are remembered: to learn from each of ten thousand would hold the event loop up.
    lately: dict[str, deque[Mapping[str, Any]]] = {model: deque(maxlen=JOBS_REMEMBERED) for model in unknown}
    for state in journal.rows.values() if unknown else ():
        if state.entry.landed and state.handle is not None and state.handle.model in lately:
            lately[state.handle.model].append(state.entry.landed)
    for model, jobs in lately.items():
        for landed in jobs:
            learn(
                model,
                seconds_queued=landed.get("seconds_queued"),
                seconds_running=landed.get("seconds_running"),
            )


def cancel_all(states: Iterable[RowState], say: Callable[[str], None], *, until: float = math.inf) -> None:
    """
    Ask the gateway to cancel the jobs of many rows. Blocks.

    :param until: monotonic time after which no further job is cancelled; those are named
    """
    handles = [state.handle for state in states if state.handle is not None]
    hooks = {conn_id: FalHook(conn_id) for conn_id in {handle.fal_conn_id for handle in handles}}
    for hook in hooks.values():
        # Read the connection once, here, and not in each thread. One that is gone keeps no job of another one running.
        with suppress(Exception):
            _ = hook.account

    def cancel(handle: JobHandle) -> str:
        if time.monotonic() > until:
            return "not asked in time"
        try:
            return hooks[handle.fal_conn_id].cancel(handle).value
        except FalError as error:
            return f"not asked ({error.failure.kind.value})"
        except Exception as error:  # noqa: BLE001 - its connection cannot be read, whatever the reason
            return f"not asked ({type(error).__name__})"

    with ThreadPoolExecutor(CANCELLERS) as pool:
        answers = list(pool.map(cancel, handles))
    for answer in sorted(set(answers)):
        say(f"Asked to cancel {answers.count(answer)} of {len(handles)} jobs, the gateway says: {answer}.")
    for handle, answer in zip(handles, answers, strict=True):
        if answer.startswith("not asked"):
            say(f"Request {handle.request_id} may still be running: {answer}.")


class FalBatchTrigger(BaseTrigger):
    """
    Watch all jobs of a batch that still run, and call a worker when there is something to land.

    It submits nothing and downloads no media. The result of each job is fetched at once, because the queue may
    keep it for six minutes only, and written into the batch's journal. It fires exactly one event:
    ``{"schema_version", "journal", "began", "ready", "running", "known"}``, or ``failure`` in place of the last
    three. By ``known`` the worker need not find out anew how long the jobs take that still run. Its arguments
    lie in plain text in Airflow's metadata database: they name the journal, and hold no key, no prompt, no input
    and no list of jobs.

    :param journal: path of the journal's folder
    :param watch: see :class:`WatchSettings`
    :param land_every: results that call a worker, default 100
    :param land_after: seconds since the first result after which a worker is called, default 60
    :param land_ahead: seconds before the expected end of the last job at which a worker is called, default 0
    :param room_below: with fewer jobs running a worker is called to submit more rows, in the same way as to land;
        default 0: no row waits for that
    :param try_number: Airflow's number of the try, for the journal
    :param max_tries: Airflow's number of the last allowed try, for the journal
    :param cancel_on_kill: ask the gateway to cancel all jobs when the task is marked by a user
    :param hold_until: seconds since the epoch before which no event is fired: Airflow 3.3 may fail a task that
        resumes within a few seconds of deferring
    """

    def __init__(
        self,
        *,
        journal: str,
        watch: Mapping[str, Any],
        land_every: int = 100,
        land_after: float = 60.0,
        land_ahead: float = 0.0,
        try_number: int = 1,
        max_tries: int = 0,
        cancel_on_kill: bool = False,
        hold_until: float = 0.0,
        room_below: int = 0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.journal = journal
        self.watch = dict(watch)
        self.land_every = land_every
        self.land_after = land_after
        self.land_ahead = land_ahead
        self.try_number = try_number
        self.max_tries = max_tries
        self.cancel_on_kill = cancel_on_kill
        self.hold_until = hold_until
        self.room_below = room_below
        self._fired = False

    @classmethod
    def of(
        cls,
        journal: Journal,
        watch: WatchSettings,
        land: LandSettings,
        this_try: Try,
        *,
        cancel_on_kill: bool,
        hold_until: float,
    ) -> FalBatchTrigger:
        """Return the trigger that goes on with the waits that a worker began."""
        return cls(
            journal=str(journal.folder),
            watch=asdict(watch),
            land_every=land.every,
            land_after=land.after,
            land_ahead=land.ahead,
            try_number=this_try.number,
            max_tries=this_try.max_tries,
            cancel_on_kill=cancel_on_kill,
            hold_until=hold_until,
            room_below=land.room_below,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, for Airflow's database."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "journal": self.journal,
                "watch": self.watch,
                "land_every": self.land_every,
                "land_after": self.land_after,
                "land_ahead": self.land_ahead,
                "try_number": self.try_number,
                "max_tries": self.max_tries,
                "cancel_on_kill": self.cancel_on_kill,
                "hold_until": self.hold_until,
                "room_below": self.room_below,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the jobs and fire the event."""
        event: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "journal": self.journal,
            "began": self.watch.get("began"),
        }
        # The worker's clock may be ahead of this one.
        hold_until = min(self.hold_until, time.time() + RACE_SECONDS)
        try:
            event.update(await self._watched(hold_until))
        except FalError as error:
            event["failure"] = error.failure.to_json()
        await asyncio.sleep(max(hold_until - time.time(), 0.0))
        self._fired = True
        yield TriggerEvent(event)

    async def on_kill(self) -> None:
        """
        Cancel all jobs if a user marked the task, and only then; see ``FalQueueTrigger.on_kill``.

        A clear cancels nothing: the next try takes up what runs.
        A thread does it: it outlives the second cancellation that Airflow sends after about a second.
        """
        if self.cancel_on_kill and not self._fired:
            await asyncio.to_thread(self._cancel_unless_deferred)

    def _cancel_unless_deferred(self) -> None:
        states = states_of(self.task_instance)
        if not marked_by_user(states):
            self._say(f"The batch's jobs are not cancelled: the task's states are {states}.")
            return
        cancel_all(still_running(Journal.reading(ObjectStoragePath(self.journal))), self._say)

    async def _watched(self, hold_until: float) -> dict[str, Any]:
        """Watch until a worker is wanted; return what the event is to tell it."""
        settings, this_try = WatchSettings(**self.watch), Try(self.try_number, self.max_tries)
        land = LandSettings(self.land_every, self.land_after, self.land_ahead, self.room_below)
        journal = await asyncio.to_thread(lambda: Journal.reading(ObjectStoragePath(self.journal)))
        learn_from(journal)
        since, said_at = time.time(), time.monotonic()
        # Of its own: a store that is away is borne with for a minute, and the loop's threads are all triggers'.
        writer, loop = ThreadPoolExecutor(1), asyncio.get_running_loop()

        async def write(entries: list[Entry]) -> None:
            # In this context, so that what the journal says of its store comes into this task's log.
            await loop.run_in_executor(writer, copy_context().run, journal.write, entries)

        async with waits(say=_unsaid) as hub:
            watching = Watching(hub, settings, this_try)
            for state in still_running(journal):
                watching.add(state)
            try:
                while True:
                    ready = waiting_to_land(journal, this_try)
                    work = land.work(ready=len(ready), running=watching.running)
                    # Those that are ready while nobody may be called yet land together with the others.
                    due = max(
                        hold_until,
                        land.due(
                            ready=len(ready),
                            since=since,
                            running=watching.running,
                            urgent=any(state.spool is None for state in ready),
                            over_at=watching.over_at() if ready else math.inf,
                            now=time.time(),
                        ),
                    )
                    if due <= time.time():
                        # What has ended by now, too, is not left to be asked for again.
                        entries = await watching.take(0.0, gather=0.0)
                        await write(entries)
                        if len(entries) == GATHER_MOST:
                            continue
                        return {
                            "ready": len(waiting_to_land(journal, this_try)),
                            "running": watching.running,
                            "known": known_of(each for each, _ in watching.models().most_common(MODELS_TOLD)),
                        }
                    if not watching.running:
                        await asyncio.sleep(due - time.time())
                        continue
                    if time.monotonic() - said_at > SAY_EVERY:
                        said_at = time.monotonic()
                        self._say(f"{watching.running} jobs are running, {len(ready)} results wait to land.")
                    # The first end may be what a worker is to be called for: it waits for no others.
                    entries = await watching.take(
                        min(due - time.time(), SAY_EVERY), gather=GATHER_SECONDS if work > 0 else 0.0
                    )
                    if entries and work <= 0:
                        since = time.time()
                    await write(entries)
            finally:
                writer.shutdown(wait=False)
                await watching.close()

    def _say(self, line: str) -> None:
        self.log.info("%s", line)


def _unsaid(line: str) -> None:
    """Take the news of a single job: a batch tells of all together."""


def began_of(event: object) -> float:
    """
    Return when the try began, which the event brings back to the worker.

    :raises FalError: what went wrong in the trigger
    :raises FalProtocolError: if the event is none of this trigger's
    """
    if isinstance(event, Mapping) and event.get("failure"):
        try:
            failure = Failure.from_json(event["failure"])
        except (KeyError, TypeError, ValueError):
            pass
        else:
            raise error_of(failure)
    if isinstance(event, Mapping) and "journal" in event and isinstance(event.get("began"), (int, float)):
        return float(event["began"])
    again = "of the batch goes on with the jobs that run; nothing is submitted twice."
    raise error_of(foreign_event(event, retry_does=again))


def learn_from_event(event: object) -> None:
    """Let this process know what the triggerer knew of the models; an event of an earlier version tells nothing."""
    known = event.get("known") if isinstance(event, Mapping) else None
    # Whatever is wrong with it, the jobs are paid for: they are waited for without.
    with suppress(AttributeError, TypeError, ValueError):
        for model, jobs in (known or {}).items():
            for queued, running in jobs:
                learn(model, seconds_queued=float(queued), seconds_running=float(running))
