"""
The waits of a triggerer: however many there are, they share what they need.

All waits of one connection on one event loop stand in one line. The line has one pooled session, a bound on the
looks under way, and one pace: when the gateway answers 429, all slow down. A wait that is not being looked at is an
alarm, not a task: ten thousand cost little.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import (
    FalHook,
    seconds_to_first_look,
    stream_request,
    watching_round,
)
from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.messages import HttpReply
from airflow_provider_uniapi_fal.protocol.pacing import Pace
from airflow_provider_uniapi_fal.protocol.streaming import (
    CHECK_SECONDS,
    OPENING_SECONDS,
    SILENCE_SECONDS,
    EventReader,
    Gateway,
    Trust,
)
from airflow_provider_uniapi_fal.protocol.watching import (
    RoundEnd,
    WaitMore,
    Watch,
    key_was_refused,
    next_deadline,
)
from airflow_provider_uniapi_fal.transport.settings import NoStream
from airflow_provider_uniapi_fal.triggers.alarms import Alarms

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.messages import Sent
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
    from airflow_provider_uniapi_fal.transport.nonblocking import EventStream, NonblockingTransport

log = logging.getLogger(__name__)

#: A longer reply is not read on the event loop that all triggers share.
MAX_BODY_BYTES = 1024 * 1024

#: Looks under way at once on one connection. The others wait for their turn.
MAX_LOOKS_AT_ONCE = 100

#: … and so many while none has waited for its turn for so many seconds: a gateway that answers at once needs no more,
#: and a look costs somewhat less over few connections than over many.
FEW_LOOKS_AT_ONCE = 32
TURN_SECONDS = 0.05

#: A status has so many seconds, and its job's next one twice as many if it was not there by then.
STATUS_SECONDS = 10.0

#: Looks that hang are counted apart, so that they keep no other from beginning: those under way for so many seconds,
#: and those of jobs whose last look got no reply for as long.
SLOW_SECONDS = 2.0
MAX_SLOW_LOOKS = 100

#: Looks that begin in one turn of the event loop, which all triggers share: a crowd does not block it.
LOOKS_A_TURN = 8

#: Streams that are followed at once on one connection, each over a connection of its own. The others are polled.
MAX_STREAMS = 400

#: Connections of whose gateways this process remembers what it has learned.
MAX_REMEMBERED = 200

#: Until Python 3.12, asyncio.wait_for() loses a cancellation that comes together with what it waits for.
CANCEL_AGAIN_SECONDS = 0.5

#: A wait that comes reads the connection again if the last reading is older, so that corrections take effect.
CONNECTION_SECONDS = 60.0

#: After a key was refused and the connection had no other one, it is not read again for so long.
REFUSED_SECONDS = 2.0

#: A key may be revoked before the new one is in the connection: a wait whose key is refused looks again for so long,
#: with pauses that grow to so many seconds. What it waits for is paid.
NEW_KEY_SECONDS = 300.0
LONGEST_REFUSED_REST = 20.0

#: After the connection could not be read, it is not read again for so long; so often a wait tries it.
UNREAD_SECONDS = 1.0
MAX_UNREAD = 8


@asynccontextmanager
async def waits(*, say: Callable[[str], None]) -> AsyncIterator[Waits]:
    """
    Open a place for waits; leaving it drops what still waits, and leaves nothing behind.

    :param say: takes each line of news, in the context (so, into the log) of the caller
    """
    opened = Waits(say)
    try:
        yield opened
    finally:
        await asyncio.shield(opened.close())


class Waits:
    """Some waits of one trigger; see :func:`waits`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        # Airflow tells by the context in whose log a line belongs.
        self.context = copy_context()
        self._waiting: set[_Wait] = set()
        self._lines: set[_Line] = set()
        self._ends: asyncio.Queue[tuple[Watch, RoundEnd]] = asyncio.Queue()

    @property
    def open(self) -> int:
        """How many waits :meth:`next_end` has still to return."""
        return len(self._waiting) + self._ends.qsize()

    def add(self, watch: Watch) -> None:
        """Begin a wait over the connection that the watch's handle names."""
        line = _line_of(watch.handle.fal_conn_id)
        line.owners.add(self)
        self._lines.add(line)
        wait = _Wait(watch, self, line)
        self._waiting.add(wait)
        line.admit(wait)

    async def next_end(self) -> tuple[Watch, RoundEnd]:
        """
        Return the next wait that has ended and how: the result, a result to fetch elsewhere, or the failure.

        :raises LookupError: if none is open
        """
        if not self.open:
            raise LookupError("no wait is open")
        return await self._ends.get()

    def ends_by_now(self, most: int) -> list[tuple[Watch, RoundEnd]]:
        """Return the waits that have ended and were not returned yet, without waiting: at most so many."""
        return [self._ends.get_nowait() for _ in range(min(most, self._ends.qsize()))]

    def tell(self, watch: Watch) -> None:
        """Bring the news of a watch into the owner's log."""
        for line in watch.take_news() if watch.news else ():
            try:
                self.context.run(self._say, line)
            except Exception as error:  # noqa: BLE001 - a log that cannot be written is not to touch a wait
                _complain("News of a wait could not be told.", error)

    def ended(self, wait: _Wait, end: RoundEnd) -> None:
        """Take a wait that has ended."""
        self._waiting.discard(wait)
        self._ends.put_nowait((wait.watch, end))

    async def close(self) -> None:
        """Drop what still waits."""
        dropped, self._waiting = self._waiting, set()
        looks = {look for look in (wait.line.dismiss(wait) for wait in dropped) if look is not None}
        while looks:
            _, looks = await asyncio.wait(looks, timeout=CANCEL_AGAIN_SECONDS)
            for look in looks:
                look.cancel()
        for line in self._lines:
            await line.leave(self)


class _Wait:
    """One wait in its line: an alarm until its look is due, a task while it is looked at."""

    __slots__ = (
        "alarm",
        "dropped",
        "due_at",
        "follows",
        "line",
        "look",
        "met",
        "owner",
        "patience",
        "polls",
        "refused_at",
        "slow",
        "unread",
        "watch",
    )

    def __init__(self, watch: Watch, owner: Waits, line: _Line) -> None:
        self.watch = watch
        self.owner = owner
        self.line = line
        self.alarm: int | None = None
        self.look: asyncio.Task[RoundEnd] | None = None
        self.follows = Trust.NONE
        self.polls = False  # whether its next look is a poll, because its stream came to nothing
        self.met = False  # whether its first look has been made
        self.unread = 0  # how often it found the connection not readable
        self.refused_at = math.inf  # since when its key is refused
        self.due_at = 0.0
        self.patience = STATUS_SECONDS
        self.slow = False  # whether its last look got no reply for long
        self.dropped = False


class _Unread(Exception):
    """The connection could not be read, for a reason that may pass."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


class _Line:
    """All waits of one connection on one event loop."""

    def __init__(self, fal_conn_id: str) -> None:
        self._fal_conn_id = fal_conn_id
        self._loop = asyncio.get_running_loop()
        self.owners: set[Waits] = set()
        # Each is an ordered set; those whose time is over come first, and wait for no pause.
        self._overdue: dict[_Wait, None] = {}
        self._due: dict[_Wait, None] = {}
        self._slow: dict[_Wait, None] = {}
        self._alarms: Alarms[_Wait] = Alarms(self._is_due)
        #: The looks under way with the times at which they began, and how many there are besides that hang.
        self._looks: dict[_Wait, float] = {}
        self._slow_looks = 0
        self._streams = 0
        #: Until these are over, no look begins.
        self._turn: asyncio.Handle | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._begun = 0
        self._hook = FalHook(fal_conn_id)
        self._reading = asyncio.Lock()
        self._read_at = -math.inf
        #: Why the connection could not be read the last time, and when that was.
        self._unread: tuple[float, Exception] | None = None
        self._refused_at = -math.inf
        self._open: tuple[GatewayAccount, NonblockingTransport] | None = None
        self._lent = AsyncExitStack()
        self._known = _known_of(fal_conn_id)

    def admit(self, wait: _Wait) -> None:
        """Take in a wait that comes."""
        follows = self._trust(wait) is not Trust.NONE
        self._look_after(wait, 0.0 if follows else seconds_to_first_look(wait.watch))

    def dismiss(self, wait: _Wait) -> asyncio.Task[RoundEnd] | None:
        """Drop a wait; return its look, cancelled, if one is under way."""
        self._stop_alarm(wait)
        wait.dropped = True
        if wait.look is not None:
            wait.look.cancel()
            return wait.look
        for queue in (self._overdue, self._due, self._slow):
            queue.pop(wait, None)
        return None

    async def leave(self, owner: Waits) -> None:
        """Let an owner go; with the last one the line ends."""
        self.owners.discard(owner)
        lines = _lines.get(self._loop, {})
        if self.owners or lines.get(self._fal_conn_id) is not self:
            return
        del lines[self._fal_conn_id]
        self._alarms.close()
        for handle in (self._turn, self._pause):
            if handle is not None:
                handle.cancel()
        await self._lent.aclose()

    def _look_after(self, wait: _Wait, seconds: float) -> None:
        wait.alarm = self._alarms.set(wait, self._loop.time() + seconds)

    def _stop_alarm(self, wait: _Wait) -> None:
        if wait.alarm is not None:
            self._alarms.take_back(wait.alarm)
            wait.alarm = None

    def _is_due(self, wait: _Wait) -> None:
        """Let a wait stand in a queue, or its time end while it does."""
        wait.alarm = None
        deadline = next_deadline(wait.watch)
        left = math.inf if deadline is None else deadline - time.time()
        queue = self._overdue if left <= 0 else self._slow if wait.slow else self._due
        if queue is self._overdue:
            self._slow.pop(wait, None)
            self._due.pop(wait, None)
            wait.slow = False
        if wait not in queue:
            wait.due_at = self._loop.time()
            queue[wait] = None
        self._serve()
        # A pause, however long, does not hold up the end of its time.
        if 0 < left < math.inf and wait.look is None:
            self._look_after(wait, left)

    def _serve(self) -> None:
        """Begin the looks that are due, as many as may be under way, and no faster than the pace allows."""
        while self._turn is None:
            now = self._loop.time()
            first = self._next(now)
            if first is None:
                return
            start = self._known.pace.may_start_at(now, urgent=first is self._overdue)
            if start > now:
                self._pause_until(start)
                return
            if self._begun == LOOKS_A_TURN:
                self._turn = self._loop.call_soon(self._turn_is_over)
                return
            self._begun += 1
            wait = next(iter(first))
            del first[wait]
            self._begin(wait, now)

    def _next(self, now: float) -> dict[_Wait, None] | None:
        """Return the queue of which one may begin; None if none may."""
        first = self._overdue or self._due
        slow = self._slow if self._slow_looks < MAX_SLOW_LOOKS else None
        if not (first and self._has_room(first, now)):
            return slow or None
        if slow and first is self._due and next(iter(slow)).due_at < next(iter(first)).due_at:
            return slow
        return first

    def _has_room(self, first: dict[_Wait, None], now: float) -> bool:
        """Whether one more look may be under way; if one has hung for long, it makes room."""
        few = MAX_LOOKS_AT_ONCE if first is self._overdue else min(FEW_LOOKS_AT_ONCE, MAX_LOOKS_AT_ONCE)
        if len(self._looks) < few:
            return True
        if len(self._looks) < MAX_LOOKS_AT_ONCE:
            turn = next(iter(first)).due_at + TURN_SECONDS
            if now < turn:
                self._pause_until(turn)
            return now >= turn
        if self._slow_looks >= MAX_SLOW_LOOKS:
            return False
        oldest, begun = next(iter(self._looks.items()))
        if now < begun + SLOW_SECONDS:
            self._pause_until(begun + SLOW_SECONDS)
            return False
        del self._looks[oldest]
        self._slow_looks += 1
        return True

    def _pause_until(self, start: float) -> None:
        """Serve at that time at the latest; an earlier time may have been set already."""
        if self._pause is None or start < self._pause.when():
            if self._pause is not None:
                self._pause.cancel()
            self._pause = self._loop.call_at(start, self._pause_is_over)

    def _turn_is_over(self) -> None:
        self._turn = None
        self._begun = 0
        self._serve()

    def _pause_is_over(self) -> None:
        self._pause = None
        self._begun = 0
        self._serve()

    def _begin(self, wait: _Wait, now: float) -> None:
        self._stop_alarm(wait)
        self._known.pace.started(now)
        wait.follows = Trust.NONE if wait.polls else self._trust(wait)
        if wait.follows is not Trust.NONE:
            self._streams += 1
        elif wait.slow:
            self._slow_looks += 1
        else:
            self._looks[wait] = now
        if wait.follows is Trust.TRIAL:
            self._known.streams.tries()
        look = wait.look = wait.owner.context.run(self._loop.create_task, self._look(wait))
        # Not at the end of the coroutine: one that is cancelled at once never begins.
        look.add_done_callback(lambda _: self._has_looked(wait, look))

    def _has_looked(self, wait: _Wait, look: asyncio.Task[RoundEnd]) -> None:
        wait.look = None
        if wait.follows is not Trust.NONE:
            self._streams -= 1
        elif wait in self._looks:
            del self._looks[wait]
        else:
            self._slow_looks -= 1
        if wait.follows is Trust.TRIAL:
            self._known.streams.trial_ended()
        if not look.cancelled() and not wait.dropped:
            end = look.result()
            if isinstance(end, WaitMore):
                wait.polls = wait.follows is not Trust.NONE
                self._look_after(wait, end.seconds)
            else:
                wait.owner.ended(wait, end)
            # Who waits for the end comes in a later turn of the loop: it has been told by then.
            wait.owner.tell(wait.watch)
        self._serve()

    async def _look(self, wait: _Wait) -> RoundEnd:
        try:
            return await (self._round(wait) if wait.follows is Trust.NONE else self._follow(wait))
        except _Unread as unread:
            return _broken_off(unread.error) if self._gives_up(wait) else self._later(wait)
        except FalError as error:
            return error.failure.while_waiting(wait.watch.handle.request_id)
        except Exception as error:  # noqa: BLE001 - one wait's fault is not to end the others of its trigger
            _complain("A wait was broken off.", error)
            return _broken_off(error)

    def _gives_up(self, wait: _Wait) -> bool:
        """Whether a wait that cannot be looked after is at its end."""
        wait.unread += 1
        deadline = next_deadline(wait.watch)
        return wait.unread >= MAX_UNREAD or (deadline is not None and deadline <= time.time())

    def _later(self, wait: _Wait) -> WaitMore:
        seconds = retrying.backoff(wait.unread, random.random())
        wait.watch.news.append(f"The connection cannot be read; trying again in {seconds:.0f} seconds.")
        deadline = next_deadline(wait.watch)
        return WaitMore(seconds if deadline is None else max(min(seconds, deadline - time.time()), 0.0))

    async def _round(self, wait: _Wait, told: bytes | None = None) -> RoundEnd:
        account, transport = await self._access(arriving=not wait.met)
        wait.met = True
        while True:
            end = await transport.run(
                watching_round(wait.watch, told), partial(self._heard, wait), brief_seconds=wait.patience
            )
            if not key_was_refused(end):
                wait.refused_at = math.inf
                return end
            # The key in the connection may have been changed while the job ran.
            if not await self._has_changed(account):
                return self._for_a_new_key(wait, end)
            account, transport = await self._access()
            told = None
            wait.watch.news.append("The connection's key was changed; looking again with the new one.")

    def _for_a_new_key(self, wait: _Wait, end: RoundEnd) -> RoundEnd:
        """Wait some more with a key that is refused and was not changed, or end."""
        now = self._loop.time()
        wait.refused_at = min(wait.refused_at, now)
        refused = now - wait.refused_at
        deadline = next_deadline(wait.watch)
        left = math.inf if deadline is None else deadline - time.time()
        if isinstance(end, WaitMore) or refused >= NEW_KEY_SECONDS or left <= 0:
            return end
        rest = min(max(refused / 2, REFUSED_SECONDS), LONGEST_REFUSED_REST)
        wait.watch.news.append(f"The key is refused; looking for another one in {rest:.0f} seconds.")
        return WaitMore(min(rest, left))

    def _trust(self, wait: _Wait) -> Trust:
        """Tell whether a wait is to follow its job's stream now."""
        if self._streams >= MAX_STREAMS or stream_request(wait.watch) is None:
            return Trust.NONE
        return self._known.streams.trust(wait.watch.by, self._loop.time())

    async def _follow(self, wait: _Wait) -> RoundEnd:
        """Follow a job's stream; if that came to nothing, the job is to be looked at."""
        watch, request = wait.watch, stream_request(wait.watch)
        _, transport = await self._access(arriving=not wait.met)
        wait.met = True
        if request is None:
            return WaitMore(0.0)
        started_at = self._loop.time()
        try:
            patience = SILENCE_SECONDS if wait.follows is Trust.FULL else OPENING_SECONDS
            async with transport.stream(request, patience) as stream:
                return await self._events(wait, stream)
        except NoStream as refusal:
            now, reply = self._loop.time(), refusal.reply
            if reply is not None and reply.status == 429:
                self._note_refusal(reply, started_at)
                return WaitMore(retrying.look_again_after(reply, time.time()) or 0.0)
            # A fault that may pass, and a key that is refused, say nothing about streams, unless there is no end of it.
            if reply is None or reply.status >= 500 or reply.status in (401, 402, 403):
                self._known.streams.cut(now)
            else:
                self._known.streams.failed(now)
                watch.news.append(f"There is no status stream ({refusal}); polling.")
            return WaitMore(0.0)

    async def _events(self, wait: _Wait, stream: EventStream) -> RoundEnd:
        watch, reader = wait.watch, EventReader()
        begun = False
        heard = self._loop.time()
        rest = CHECK_SECONDS if wait.follows is Trust.FULL else seconds_to_first_look(watch)
        check = heard + rest
        while True:
            now = self._loop.time()
            deadline = next_deadline(watch)
            over = math.inf if deadline is None else now + deadline - time.time()
            chunk = await stream.read(min(heard + SILENCE_SECONDS, check, over) - now)
            now = self._loop.time()
            if chunk == b"":
                self._known.streams.cut(now)
                return WaitMore(0.0)
            if chunk is None:
                if now - heard >= SILENCE_SECONDS:
                    self._known.streams.cut(now)
                    watch.news.append("The status stream is silent; polling.")
                    return WaitMore(0.0)
                end = await self._round(wait)
                if not isinstance(end, WaitMore):
                    if now < over:
                        self._known.streams.cut(now)  # a poll knew before the stream did
                    return end
                check = self._loop.time() + (CHECK_SECONDS if wait.follows is Trust.FULL else end.seconds)
                continue
            heard = now
            if begun:
                self._known.streams.flows()
            for data in reader.feed(chunk):
                # The result may have to be fetched with another key than the one that began the stream.
                end = await self._round(wait, data)
                wait.owner.tell(watch)
                if watch.completed_at is not None:
                    self._known.streams.told()
                    return end
                if not isinstance(end, WaitMore):
                    return end
                begun = begun or watch.state is not None
                if wait.follows is Trust.FULL:
                    check = self._loop.time() + CHECK_SECONDS

    def _note_refusal(self, reply: HttpReply, started_at: float) -> None:
        self._known.pace.refused(
            self._loop.time(),
            started_at=started_at,
            retry_after=retrying.look_again_after(reply, time.time()),
            jitter=random.random(),
        )

    def _heard(self, wait: _Wait, sent: Sent, started_at: float) -> None:
        """Take note of how the gateway bears what it is asked."""
        if not isinstance(sent, HttpReply):
            seconds = self._loop.time() - started_at
            wait.slow = seconds >= min(SLOW_SECONDS, wait.patience)
            if seconds >= wait.patience:
                # If it is not stuck, but that slow, it is to have its time.
                wait.patience *= 2
        else:
            wait.slow, wait.patience = False, STATUS_SECONDS
            if sent.status == 429:
                self._note_refusal(sent, started_at)
            else:
                self._known.pace.answered(self._loop.time(), started_at=started_at)

    async def _access(self, *, arriving: bool = False) -> tuple[GatewayAccount, NonblockingTransport]:
        """Return the account and its transport; read the connection first if an arriving wait finds it old."""
        if self._open and not arriving and not self._reading.locked():
            return self._open
        async with self._reading:
            old = arriving and self._loop.time() - self._read_at > CONNECTION_SECONDS
            if self._open and not old:
                return self._open
            if self._unread is not None and self._loop.time() - self._unread[0] < UNREAD_SECONDS:
                raise _Unread(self._unread[1])
            try:
                return await self._read()
            except (FalError, AirflowNotFoundException) as error:
                # It was read; that it is wrong, or not there, will not pass by itself.
                if self._open is None:
                    raise
                self._try_later(error)
            except Exception as error:
                # The database, its API server or a secrets backend: all may be away for a while.
                if self._open is None:
                    self._unread = (self._loop.time(), error)
                    raise _Unread(error) from error
                self._try_later(error)
            return self._open

    def _try_later(self, error: Exception) -> None:
        """Go on with the account that is known, which was good until now."""
        self._read_at = self._loop.time() - CONNECTION_SECONDS + REFUSED_SECONDS
        _complain(f"The connection {self._fal_conn_id} could not be read again; going on as before.", error)

    async def _has_changed(self, refused: GatewayAccount) -> bool:
        """Whether there is another account by now than the one whose key was refused."""
        async with self._reading:
            now = self._loop.time()
            if self._open and self._open[0] != refused:
                return True
            if now - self._refused_at < REFUSED_SECONDS:
                return False
            try:
                account, _ = await self._read()
            except Exception as error:  # noqa: BLE001 - nothing is known of another key then, and it is asked again
                self._refused_at = now
                _complain(f"The connection {self._fal_conn_id} could not be read again.", error)
                return False
            self._refused_at = now if account == refused else -math.inf
            return account != refused

    async def _read(self) -> tuple[GatewayAccount, NonblockingTransport]:
        account = await self._hook.aaccount(again=True)
        self._read_at = self._loop.time()
        if account != self._known.account:
            if self._known.account is not None:
                # It may be another gateway.
                self._known = _remember(self._fal_conn_id)
            self._known.account = account
        if self._open is None or account != self._open[0]:
            before, self._lent = self._lent, AsyncExitStack()
            transport = await self._lent.enter_async_context(self._hook.pool(MAX_BODY_BYTES))
            self._open = (account, transport)
            # What is under way over the old session ends there.
            await before.aclose()
        return self._open


_lines: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Line]] = weakref.WeakKeyDictionary()


@dataclass
class _Known:
    """
    What this process has learned of the gateway behind one connection; a monotonic clock serves all event loops.

    It outlives the line: the waits that come next would only learn it again, at the gateway's cost.
    """

    account: GatewayAccount | None = None
    streams: Gateway = field(default_factory=Gateway)
    pace: Pace = field(default_factory=Pace)


_gateways: dict[str, _Known] = {}


def _known_of(fal_conn_id: str) -> _Known:
    return _gateways.get(fal_conn_id) or _remember(fal_conn_id)


def _remember(fal_conn_id: str) -> _Known:
    """Begin to learn anew of the gateway behind a connection; of the oldest ones all is forgotten."""
    _gateways.pop(fal_conn_id, None)
    while len(_gateways) >= MAX_REMEMBERED:
        del _gateways[next(iter(_gateways))]
    known = _gateways[fal_conn_id] = _Known()
    return known


def _line_of(fal_conn_id: str) -> _Line:
    lines = _lines.setdefault(asyncio.get_running_loop(), {})
    if fal_conn_id not in lines:
        lines[fal_conn_id] = _Line(fal_conn_id)
    return lines[fal_conn_id]


def _complain(text: str, error: Exception) -> None:
    """Write into the triggerer's own log, which may be what is out of order."""
    with suppress(Exception):
        log.error(text, exc_info=error)


def _broken_off(error: Exception) -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what=f"The wait was broken off by an unexpected error ({type(error).__name__}).",
        retry_does="of a wait looks again.",
        advice="The triggerer's log tells more.",
        billed="maybe",
        may_run=True,
    )
