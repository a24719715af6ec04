"""One stretch of work on a batch in one process: submit in waves, watch, and land what has ended, all at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.batch.accounting import Tally
from airflow_provider_uniapi_fal.batch.submit_pace import SubmitPace, SubmitsOver
from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import learn, usual_seconds
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.inputs import files_in, with_files
from airflow_provider_uniapi_fal.landing.manifest import summary_path
from airflow_provider_uniapi_fal.landing.media import Lander, Landing, Limits
from airflow_provider_uniapi_fal.ledger.journal import manifest_beside
from airflow_provider_uniapi_fal.ledger.record import ends_the_job
from airflow_provider_uniapi_fal.ledger.rows import Entry, RowState, Step, Try, spooled
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.triggers.batch import (
    Watching,
    WatchSettings,
    in_words_of_a_batch,
    learn_from,
)
from airflow_provider_uniapi_fal.triggers.hub import waits

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.batch.planning import Plan
    from airflow_provider_uniapi_fal.batch.requests import Row
    from airflow_provider_uniapi_fal.hooks.fal import FalHook
    from airflow_provider_uniapi_fal.landing.names import Names
    from airflow_provider_uniapi_fal.ledger.journal import Journal
    from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
    from airflow_provider_uniapi_fal.protocol.messages import HttpRequest

#: Rows of one wave: what a crash can leave unknown at most.
WAVE = 50

#: Results that are landed and written down together.
LAND_TOGETHER = 50

#: Seconds for which the ends of further jobs are waited for, to be written down with the first.
GATHER_SECONDS = 0.25

#: Results too long for the journal that are in memory at once.
LONG_RESULTS = 2

#: Seconds that the posts under way are given when the work is broken off, and as many as a reply may take besides.
LAST_WAVE_SECONDS = 30.0

#: Seconds between two lines about how far the batch is.
SAY_EVERY = 30.0

#: What keeps every other submit from being accepted as well, so that no more are sent in this try.
_STOPS = {FailureKind.AUTH, FailureKind.BALANCE, FailureKind.RATE_LIMITED, FailureKind.PROTOCOL}

#: What the gateway says if it has no (other) addresses of a result: it is kept no longer, or never was.
_NO_OTHER = {FailureKind.RESULT_EXPIRED, FailureKind.INPUT}


@dataclass(frozen=True)
class SessionSettings:
    """
    How a batch is worked on.

    :param max_in_flight: submits under way at once
    :param rate_limit: submits a second; None for no limit
    :param max_unfinished: jobs that are submitted and have not ended, at most; None for no limit
    :param fail_fast: submit nothing more once a row has failed
    :param limits: what is landed at most
    :param parallel: media files under way at once
    """

    max_in_flight: int = 10
    rate_limit: float | None = None
    max_unfinished: int | None = None
    fail_fast: bool = False
    limits: Limits = field(default_factory=Limits)
    parallel: int = 8


class Session:
    """
    Works on a batch until all of it has ended, or until there is nothing left to do but wait.

    :param rows: all rows, by key
    :param plan: what is to be done about them
    :param journal: opened for posting
    :param hook: the account that submits
    :param names_of: how the files of a row are called
    :param say: takes each line for the log
    :param kept: files of earlier manifests, which stay as they are
    """

    def __init__(
        self,
        *,
        rows: Mapping[str, Row],
        plan: Plan,
        journal: Journal,
        hook: FalHook,
        this_try: Try,
        watch: WatchSettings,
        settings: SessionSettings,
        destination: ObjectStoragePath,
        names_of: Callable[[Row, JobResult | None], Names],
        say: Callable[[str], None],
        kept: Sequence[LandedFile] = (),
    ) -> None:
        self._rows = rows
        self._plan = plan
        self._journal = journal
        self._hook = hook
        self._try = this_try
        self._watch = watch
        self._settings = settings
        self._destination = destination
        self._names_of = names_of
        self._say = say
        self._kept = kept
        self._to_post = deque(plan.post)
        self._to_land = deque(plan.land)
        self._pace = SubmitPace(settings.rate_limit, time.monotonic)
        self._gate = asyncio.Semaphore(settings.max_in_flight)
        self._long_results = asyncio.Semaphore(LONG_RESULTS)
        self._room = asyncio.Event()
        self._blocked = False
        self._interrupted = False
        self._said_at = time.monotonic()
        self.tally = Tally(len(rows), journal.rows.values(), now=time.monotonic())
        self.stopped: Failure | None = None

    @property
    def waits_for_room(self) -> bool:
        """Whether rows are to be submitted as soon as there are fewer unfinished jobs."""
        return bool(self._to_post) and self.stopped is None

    def interrupt(self) -> None:
        """Post nothing more, and end soon; may be called from a signal handler."""
        self._interrupted = True

    async def run(self, *, linger: float | None) -> int:
        """
        Work, and return how many jobs still run.

        :param linger: seconds to go on watching when there is nothing left to do but wait; None until all have
            ended
        :raises FalProtocolError: if another try has taken the batch over, or this one was interrupted
        """
        await self._write(
            [Entry.about(state, Step.SUBMITTED, self._try, now=time.time()) for state in self._plan.taken_up]
        )
        async with AsyncExitStack() as stack:
            hub = await stack.enter_async_context(waits(say=lambda line: None))
            self._watching = Watching(hub, self._watch, self._try)
            stack.push_async_callback(self._watching.close)
            account = await self._hook.aaccount()
            self._reply_seconds = account.connect_timeout + account.read_timeout
            # Held for as long as the session lasts, so that not each submit opens a pool of its own.
            await stack.enter_async_context(self._hook.pool())
            self._lander = await stack.enter_async_context(
                Lander(account, limits=self._settings.limits, parallel=self._settings.parallel)
            )
            self._keep_names()
            await self._learn()
            for state in self._plan.watch:
                self._watching.add(state)
            self._stop_after_failures(self._left_as_they_are())
            await self._conduct(linger)
            return self._watching.running

    def _keep_names(self) -> None:
        """Let nothing that lands take the place of what is to stay; what is made anew takes that of the old."""
        made_anew = {row.key for row in self._plan.post}
        self._lander.remember(self._kept)
        self._lander.remember(
            file
            for key, state in self._journal.rows.items()
            if key not in made_anew
            for file in files_of(state)
        )
        manifest = manifest_beside(self._journal.folder)
        self._lander.reserve(map(str, (manifest, summary_path(manifest))))
        for row in self._rows.values():
            self._lander.reserve(files_in(row.arguments, dialect_named(row.dialect).media_inputs))

    async def _learn(self) -> None:
        """Learn from what has ended how long the jobs that still run may take."""
        learn_from(self._journal)
        if self._plan.watch and self._to_land:
            keys = list(islice(self._to_land, LAND_TOGETHER))
            results = (await asyncio.to_thread(lambda: dict(self._journal.results(keys)))).values()
            # What the triggerer told of a model holds these jobs, and others: they are not to count twice.
            unknown = {
                each for each in {result.handle.model for result in results} if usual_seconds(each) is None
            }
            for result in results:
                if result.handle.model in unknown:
                    learn(
                        result.handle.model,
                        seconds_queued=result.seconds_queued,
                        seconds_running=result.seconds_running,
                    )

    async def _conduct(self, linger: float | None) -> None:
        posting = asyncio.ensure_future(self._post_all())
        others: dict[str, asyncio.Future[None]] = {}
        quiet_since = time.monotonic()
        try:
            while True:
                if self._interrupted:
                    self._room.set()
                    await posting
                    raise error_of(_interrupted())
                if "land" not in others and self._to_land:
                    keys = [self._to_land.popleft() for _ in range(min(LAND_TOGETHER, len(self._to_land)))]
                    others["land"] = asyncio.ensure_future(self._land(keys))
                if "take" not in others and self._watching.running:
                    others["take"] = asyncio.ensure_future(self._take())
                if posting.done():
                    posting.result()
                busy = not (posting.done() or self._blocked) or "land" in others
                if busy:
                    quiet_since = time.monotonic()
                elif not others or (linger is not None and time.monotonic() - quiet_since >= linger):
                    break
                under_way = [*others.values(), *([] if posting.done() else [posting])]
                done, _ = await asyncio.wait(under_way, timeout=0.5, return_when=asyncio.FIRST_COMPLETED)
                for name, future in list(others.items()):
                    if future in done:
                        del others[name]
                        future.result()
                self._say_how_far()
            if "take" in others:
                await others.pop("take")
        finally:
            if not posting.done():
                # A post that is cut off is one whose outcome nobody knows: those under way may come to their end.
                self._interrupted = True
                self._room.set()
                await asyncio.wait({posting}, timeout=LAST_WAVE_SECONDS + self._reply_seconds)
            for future in (posting, *others.values()):
                future.cancel()
            await asyncio.gather(posting, *others.values(), return_exceptions=True)

    # Submitting

    async def _post_all(self) -> None:
        while self._to_post and self.stopped is None and not self._interrupted:
            room = WAVE
            if self._settings.max_unfinished is not None:
                room = min(room, self._settings.max_unfinished - self._watching.running)
            if room <= 0:
                self._blocked = True
                self._room.clear()
                await self._room.wait()
                continue
            await self._post_wave([self._to_post.popleft() for _ in range(min(room, len(self._to_post)))])

    async def _post_wave(self, wave: Sequence[Row]) -> None:
        """Write down what is going to be posted, post it, and write down what came of it."""
        intents = [self._intent(row) for row in wave]
        try:
            await self._write(intents)
            await asyncio.to_thread(self._journal.stop_if_superseded)
        except BaseException as error:
            # Nothing of the wave was sent, and whoever goes on is to know that.
            failure = error.failure if isinstance(error, FalError) else _interrupted()
            self._write_at_last([self._outcome(intent, Step.NOT_TAKEN, failure) for intent in intents])
            raise
        outcomes: list[Entry] = []
        posts = [
            asyncio.ensure_future(self._post(row, intent, outcomes))
            for row, intent in zip(wave, intents, strict=True)
        ]
        try:
            # One that breaks does not cut off the others, which are paid for.
            ended = await asyncio.gather(*posts, return_exceptions=True)
        except BaseException:
            # Whatever breaks in, what is known of the wave is written down before anything else.
            for post in posts:
                post.cancel()
            await asyncio.gather(*posts, return_exceptions=True)
            self._write_at_last(outcomes)
            raise
        await self._write(outcomes)
        for broken in ended:
            if broken is not None:
                raise broken
        accepted = [entry for entry in outcomes if entry.step in (Step.SUBMITTED, Step.SUCCEEDED)]
        unknown = [entry for entry in outcomes if entry.step is Step.INTENT]
        for entry in accepted:
            if entry.handle is not None:
                metrics.submitted(entry.handle)
            if entry.step is Step.SUBMITTED:
                self._watching.add(self._journal.rows[entry.key])
        if len(unknown) > len(accepted):
            self.stopped = _too_many_unknown(len(unknown), len(wave))
        self._stop_after_failures(entry.step for entry in outcomes)
        if self.stopped is not None and self._to_post:
            self._say(f"{len(self._to_post)} rows are not submitted in this try: {self.stopped.what}")

    async def _post(self, row: Row, intent: Entry, outcomes: list[Entry]) -> None:
        may_be_taken = False

        def sent(now: bool) -> None:
            nonlocal may_be_taken
            may_be_taken = now

        try:
            async with self._gate:
                if self._is_over():
                    raise SubmitsOver
                request = await self._prepared(row, intent, outcomes)
                if request is None:
                    return
                accepted = await self._hook.apost(
                    row.model,
                    request,
                    dialect=row.dialect,
                    paced=partial(self._pace.of, sent=sent, over=self._is_over),
                )
        except SubmitsOver:
            self._to_post.append(row)  # it waits for the next stretch, or the next try
            outcomes.append(self._outcome(intent, Step.NOT_TAKEN, self.stopped or _interrupted()))
        except FalError as error:
            outcomes.append(self._refused(intent, error))
        except BaseException:
            # Those of the wave that are not sent yet stay where they are.
            self.stopped = self.stopped or _interrupted()
            if not may_be_taken:
                outcomes.append(self._outcome(intent, Step.NOT_TAKEN, _interrupted()))
            raise
        else:
            outcomes.append(await self._accepted(intent, accepted))

    def _is_over(self) -> bool:
        return self.stopped is not None or self._interrupted

    async def _prepared(self, row: Row, intent: Entry, outcomes: list[Entry]) -> HttpRequest | None:
        """Return the post of a row, with its files inside; None if it cannot be made, which harms no other row."""
        try:
            # Files are read when their row's turn has come, so that only a few are in memory at once.
            inputs = dialect_named(row.dialect).media_inputs
            arguments = await asyncio.to_thread(with_files, row.arguments, inputs)
            return self._hook.prepare(row.model, arguments, dialect=row.dialect)
        except FalError as error:
            failure = error.failure
            if failure.kind is FailureKind.INPUT:
                outcomes.append(self._outcome(intent, Step.ENDED, in_words_of_a_batch(failure)))
            else:
                # What storage does not give now it may give to the next try.
                failure = replace(failure, retry_does="reads it again, and submits the row.")
                outcomes.append(self._outcome(intent, Step.NOT_TAKEN, failure))
            return None

    def _refused(self, intent: Entry, error: FalError) -> Entry:
        failure = error.failure
        if failure.kind is FailureKind.SUBMIT_OUTCOME_UNKNOWN:
            return self._outcome(intent, Step.INTENT, failure)
        if failure.kind in _STOPS and not failure.may_run and failure.billed == "no":
            self.stopped = self.stopped or failure
            return self._outcome(intent, Step.NOT_TAKEN, failure)
        return self._outcome(intent, Step.ENDED, in_words_of_a_batch(failure))

    async def _accepted(self, intent: Entry, accepted: Submitted | Finished) -> Entry:
        if not isinstance(accepted, Finished):
            return replace(intent, step=Step.SUBMITTED, handle=accepted.handle, written_at=time.time())
        # There is no id to fetch it by again: it is written down before anything else is done with it.
        result = accepted.result
        entry = replace(
            intent,
            step=Step.SUCCEEDED,
            handle=result.handle,
            result=spooled(result),
            written_at=time.time(),
        )
        try:
            await self._write([entry])
        except Exception:  # noqa: BLE001 - whatever storage raises; the record of the wave takes the result along
            return entry
        self._to_land.append(entry.key)
        return replace(entry, result=None)

    def _intent(self, row: Row) -> Entry:
        state = self._journal.rows.get(row.key)
        return Entry(
            key=row.key,
            post=1 if state is None else state.entry.post + 1,
            step=Step.INTENT,
            fingerprint=row.fingerprint,
            try_number=self._try.number,
            max_tries=self._try.max_tries,
            written_at=time.time(),
        )

    def _outcome(self, intent: Entry, step: Step, failure: Failure) -> Entry:
        return replace(intent, step=step, failure=failure, written_at=time.time())

    def _left_as_they_are(self) -> list[Step]:
        """
        Return the steps of the rows that this try does nothing about, but for those from before a clear.

        What it submits, watches or lands again may end well this time; and a user who clears the task has seen what
        had failed, and asks for the rest.
        """
        taken_up = {row.key for row in self._plan.post} | {s.entry.key for s in self._plan.watch}
        taken_up.update(self._plan.land)
        states = (self._journal.rows.get(key) for key in self._rows if key not in taken_up)
        return [s.step for s in states if s is not None and s.entry.max_tries == self._try.max_tries]

    def _stop_after_failures(self, steps: Iterable[Step]) -> None:
        failed = (Step.ENDED, Step.OUT_OF_SIGHT, Step.UNLANDED, Step.INTENT)
        if self._settings.fail_fast and self.stopped is None and any(step in failed for step in steps):
            self.stopped = _failed_fast()

    # Watching

    async def _take(self) -> None:
        entries = await self._watching.take(1.0, gather=GATHER_SECONDS)
        if not entries:
            return
        await self._write(entries)
        self._to_land.extend(entry.key for entry in entries if entry.step is Step.SUCCEEDED)
        self._stop_after_failures(entry.step for entry in entries)
        self._blocked = False
        self._room.set()

    # Landing

    async def _land(self, keys: Sequence[str]) -> None:
        results = await asyncio.to_thread(lambda: dict(self._journal.results(keys)))
        landings = (self._land_row(key, results.get(key)) for key in keys)
        ended = await asyncio.gather(*landings, return_exceptions=True)
        entries = [entry for entry in ended if isinstance(entry, Entry)]
        await self._write(entries)
        for broken in ended:
            if isinstance(broken, BaseException):
                raise broken
        self._stop_after_failures(entry.step for entry in entries)

    async def _land_row(self, key: str, result: JobResult | None) -> Entry:
        landing = Landing() if result is None else await self._landing(key, result)
        if result is not None and not _is_away(landing):
            return self._landed(key, result, landing)
        # The journal has no result because it is long; or its addresses lead nowhere, and the gateway may have others.
        # To ask it costs nothing.
        async with self._long_results:
            state = self._journal.rows[key]
            if state.handle is None:
                raise ValueError(f"row {key!r} has neither a result nor a job")
            try:
                found = await self._result_again(state.handle)
            except FalError as error:
                failure = error.failure.about(state.handle.request_id)
                return self._no_result(key, result, landing, failure)
            result = found if result is None else replace(result, media=found.media)
            return self._landed(key, result, await self._landing(key, result, landing.files))

    async def _result_again(self, handle: JobHandle) -> JobResult:
        hook = self._hook.of(handle)
        try:
            await hook.aaccount()
        except Exception as error:
            # The gateway was not asked, so this says nothing of the job.
            raise error_of(_cannot_ask(handle, error)) from error
        return await hook.aresult(handle)

    async def _landing(self, key: str, result: JobResult, already: Sequence[LandedFile] = ()) -> Landing:
        names = self._names_of(self._rows[key], result)
        already = already or files_of(self._journal.rows[key])
        return await self._lander.attempt(result, self._destination, names, already=already)

    def _no_result(self, key: str, result: JobResult | None, landing: Landing, failure: Failure) -> Entry:
        """Return what is to be written down of a row whose result the gateway did not give (again)."""
        state = self._journal.rows[key]
        if result is None or landing.error is None:
            over = ends_the_job(failure) and not failure.may_run
            return self._not_landed(state, failure, {}, over=over)
        refused = landing.error.failure
        if failure.kind not in _NO_OTHER:
            # It may have other addresses when it answers: the file is not to be given up.
            refused = replace(refused, kind=FailureKind.PROTOCOL)
        elif state.entry.failure is not None and state.entry.failure.http_status == refused.http_status:
            # What two tries were refused and nobody has another address of is lost; so a clear can make it anew.
            refused = replace(refused, kind=FailureKind.RESULT_EXPIRED)
        return self._landed(key, result, replace(landing, error=error_of(refused)))

    def _landed(self, key: str, result: JobResult, landing: Landing) -> Entry:
        state = self._journal.rows[key]
        landed = {
            "files": [file.to_json() for file in landing.files],
            "seed": result.seed,
            "billable_units": result.billable_units,
            "seconds_queued": result.seconds_queued,
            "seconds_running": result.seconds_running,
            "flagged": result.flagged,
        }
        if landing.error is not None:
            # The job has succeeded: whatever else keeps its files from being landed, the next try may have mended.
            return self._not_landed(state, landing.error.failure.about(result.handle.request_id), landed)
        return Entry.about(state, Step.DELIVERED, self._try, now=time.time(), landed=landed)

    def _not_landed(
        self, state: RowState, failure: Failure, landed: Mapping[str, Any], *, over: bool = False
    ) -> Entry:
        over = over or failure.kind is FailureKind.RESULT_EXPIRED
        failure = in_words_of_a_batch(replace(failure, may_run=False)) if over else failure
        step = Step.ENDED if over else Step.UNLANDED
        return Entry.about(state, step, self._try, now=time.time(), failure=failure, landed=dict(landed))

    async def _write(self, entries: Sequence[Entry]) -> None:
        await asyncio.to_thread(self._write_or_say, entries)
        self.tally.take(entries)

    def _write_at_last(self, entries: Sequence[Entry]) -> None:
        """Write entries while the work is broken off, for a reason of which a store that fails is not to take the place."""
        with contextlib.suppress(Exception):
            self._write_or_say(entries)

    def _write_or_say(self, entries: Sequence[Entry]) -> None:
        try:
            self._journal.write(entries)
        except Exception as error:
            for entry in entries:
                known = self._journal.rows.get(entry.key)
                if entry.handle is not None and (known is None or known.handle is None):
                    self._say(
                        f"Row {entry.key!r} was accepted as request {entry.handle.request_id}, which may be billed, and "
                        f"the journal did not take that ({type(error).__name__}: {error})."
                    )
            raise

    def _say_how_far(self) -> None:
        if time.monotonic() - self._said_at >= SAY_EVERY:
            self._said_at = time.monotonic()
            self._say(self.tally.line(time.monotonic()))


def files_of(state: RowState) -> list[LandedFile]:
    """Return what was landed of a row."""
    landed = state.entry.landed or {}
    return [LandedFile.from_json(file) for file in landed.get("files") or ()]


def _is_away(landing: Landing) -> bool:
    """Whether media are not where the result says, so that a fresh address may help."""
    return landing.error is not None and landing.error.failure.http_status in (403, 404, 410)


def _cannot_ask(handle: JobHandle, error: Exception) -> Failure:
    said = error.failure.what if isinstance(error, FalError) else type(error).__name__
    return Failure(
        FailureKind.PROTOCOL,
        what=f"The connection {handle.fal_conn_id!r}, through which it was submitted, cannot be read: {said}",
        retry_does="asks for the result again; nothing is submitted for it.",
        advice="The job is done and is not paid again. Keep the connection until its jobs are landed.",
        billed="maybe",
        request_id=handle.request_id,
    )


def _interrupted() -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what="The batch was interrupted from outside; nothing more is submitted.",
        retry_does="goes on with the jobs that run, and submits what never was.",
        billed="maybe",
        may_run=True,
    )


def _failed_fast() -> Failure:
    return Failure(
        FailureKind.JOB_FAILED,
        what="A row has failed, and fail_fast=True: no more are submitted; those that run are landed.",
        retry_does="submits the rest if it can mend that row; once cleared, the task does in any case.",
    )


def _too_many_unknown(unknown: int, wave: int) -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what=f"Of {wave} submits, {unknown} had no reply: no more are sent while the gateway answers so badly.",
        retry_does="submits those that were never sent.",
        billed="maybe",
        may_run=True,
    )
