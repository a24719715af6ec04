"""
The ledger of a batch: a folder of immutable segments in object storage, beside the manifest.

Object stores cannot append, so each write is a segment of its own, whole or not at all. A wave of submits costs
two: the intents before its posts, the outcomes after them. What the segments come to is decided in
:mod:`~airflow_provider_uniapi_fal.ledger.rows`.

::

    <manifest>.journal/
      openings/000002-<owner>-<writer>.json          who posts: the newest opening, and no other; what it has found
      segments/000002-000007-<writer>-000003.jsonl   a header, then one entry a line
      snapshots/000002-000009-<writer>-000000.jsonl  what the segments that it names come to: read in their place

The numbers of a segment are its opening, its place among all segments of that opening, and its place among those
of its writer. Nothing is ever deleted, no name has ever more than one content, and what was there is known: the
numbers of the openings and of each writer's segments have no gaps, each opening notes what it has found, and the
manifest of an earlier try names the rows that were posted. So what somebody else has deleted is noticed, and not
posted again.

**A store that fails.** After an error nobody knows whether the store has the segment. So the very same is written
again, for a minute and more; it changes nothing if it is there. What the store takes then neither is kept, and goes
out before the next segment does.

**Two tries at once.** A worker that lost touch with Airflow goes on while its retry begins. Each opening is
numbered. A writer writes its intents first, then looks whether it is still the newest, and only then posts. A new
opening is written first, then the segments are read. So with a store that lists what was written (S3, GCS and
Azure do, as do file systems), either the old writer sees the new opening and stops, or the new one sees the old
one's intents and does not post those rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import random
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.landing.storage import clear_halves, is_local, json_text, put_bytes
from airflow_provider_uniapi_fal.ledger.rows import Entry, RowState, join, state_of
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.protocol.retrying import backoff

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

log = logging.getLogger(__name__)

JOURNAL_VERSION = 1

#: An opening sums up what it has found once that is more than so many segments, and more than what was summed up
#: already: so the next one reads few, and all summaries together are no longer than twice the last one.
SEGMENTS_PER_SNAPSHOT = 64

#: Segments that are read at once from an object store.
READERS = 16

#: How often a segment is written before the store counts as away: for a minute at least. What it tells may be paid for.
WRITE_ATTEMPTS = 7

_NAME = re.compile(r"(\d{6})-(\d{6})-([0-9a-f]{12})-(\d{6})\.jsonl")
_OPENING = re.compile(r"(\d{6})-([0-9a-f]{12})-([0-9a-f]{12})\.json")


@dataclass(frozen=True)
class Owner:
    """
    Whose journal it is: one task of one DAG run, over all its tries.

    :param dag_id: empty for the command line, which names its batch by ``run_id``
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int = -1

    @property
    def mark(self) -> str:
        """A short hash for names of files."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def journal_folder(manifest_path: ObjectStoragePath) -> ObjectStoragePath:
    """Return where the journal of a manifest lies: ``manifest.journal`` beside ``manifest.jsonl``."""
    return manifest_path.parent / f"{manifest_path.stem}.journal"


def manifest_beside(folder: ObjectStoragePath) -> ObjectStoragePath:
    """Return where the manifest of a journal lies; the opposite of :func:`journal_folder`."""
    return folder.parent / f"{folder.stem}.jsonl"


@dataclass(frozen=True)
class _Found:
    """
    What an opening has found before it was written: whoever comes later finds at least that.

    :param snapshot: the newest summary
    :param segments: the segments that are not in it: by writer, the number of the last one
    """

    snapshot: str | None = None
    segments: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class _Segment:
    """A segment on its way into the store, where its name has this content and no other."""

    name: str
    content: bytes
    entries: Sequence[Entry]


class Journal:
    """
    What is known of each row of a batch, and the means to write more of it.

    :meth:`reading` for those who only watch and land; :meth:`opened` for the one who posts.

    :param folder: see :func:`journal_folder`
    :ivar rows: the state of each row, by key
    """

    def __init__(self, folder: ObjectStoragePath) -> None:
        self.folder = folder
        self.rows: dict[str, RowState] = {}
        self._read: set[str] = set()
        self._summed_up: set[str] = set()
        self._snapshot: str | None = None
        self._epoch = 0
        self._writer = uuid.uuid4().hex[:12]
        self._written = 0
        self._place = 0
        self._opening: str | None = None
        self._writing = threading.Lock()
        self._owed: deque[_Segment] = deque()

    @classmethod
    def reading(cls, folder: ObjectStoragePath) -> Journal:
        """
        Read a journal, to watch its jobs or to tell of them.

        :raises FalSubmitOutcomeUnknown: if it is there and cannot be read
        """
        journal = cls(folder)
        journal.refresh()
        return journal

    @classmethod
    def opened(cls, folder: ObjectStoragePath, owner: Owner) -> Journal:
        """
        Open a journal to post: from now on every earlier writer stops before its next wave.

        :raises FalInputError: if it is the journal of another run or task; nothing was posted
        :raises FalSubmitOutcomeUnknown: if it is there and cannot be read; nothing was posted
        """
        journal = cls(folder)
        journal._refuse_others(owner)
        journal.refresh()
        journal._epoch += 1
        journal._place = 0
        name = f"{journal._epoch:06d}-{owner.mark}-{journal._writer}.json"
        header = {"schema_version": JOURNAL_VERSION, **asdict(owner), "found": asdict(journal._found())}
        _put(_written(header), folder / "openings" / name)
        journal._opening = name
        try:
            journal._refuse_others(owner)
        except FalError:
            # Two runs began at once. Each that sees the other withdraws, so that none is paid for twice.
            journal._withdraw()
            raise
        for left in (folder.parent, *(folder / kind for kind in ("openings", "segments", "snapshots"))):
            clear_halves(left)
        journal.refresh()
        journal._refuse_a_manifest_that_knows_more()
        if len(journal._read - journal._summed_up) > max(SEGMENTS_PER_SNAPSHOT, len(journal._summed_up)):
            journal._sum_up()
        return journal

    def refresh(self) -> None:
        """
        Take in what others have written since.

        :raises FalSubmitOutcomeUnknown: if something cannot be read, or is missing
        """
        # What an opening has found is looked for after the opening was read, so it must be there.
        newest, found = self._newest_opening()
        self._epoch = self._epoch or newest
        if not self._read:
            self._take_snapshot(found.snapshot)
        names = self._segments(found)
        fresh = sorted(names - self._read)
        for name, text in zip(fresh, self._texts("segments", fresh), strict=True):
            self._take(name, _entries(self.folder / "segments" / name, text))
        places = [place for epoch, place, _, _ in map(_parts, self._read) if epoch == self._epoch]
        self._place = max([self._place, *places])

    def write(self, entries: Iterable[Entry]) -> None:
        """
        Write entries as one segment: when this returns, they are durable.

        Blocks, for as long as it takes to bear with a store that fails. If it raises, the entries may be in the store
        or not; they are kept, and go out before those of the next write.

        :raises Exception: whatever storage raises
        """
        entries = list(entries)
        with self._writing:
            # A store that was waited for in vain is not waited for again: those who write now would stand in line.
            attempts = 1 if self._owed else WRITE_ATTEMPTS
            if entries:
                self._owed.append(self._segment(entries))
            while self._owed:
                segment = self._owed[0]
                _put_patiently(segment.content, self.folder / "segments" / segment.name, attempts)
                self._take(segment.name, segment.entries)
                self._owed.popleft()
                attempts = WRITE_ATTEMPTS

    def _segment(self, entries: Sequence[Entry]) -> _Segment:
        place, written = self._place + 1, self._written + 1
        name = f"{self._epoch:06d}-{place:06d}-{self._writer}-{written:06d}.jsonl"
        segment = _Segment(name, _lines({"entries": len(entries)}, (e.to_json() for e in entries)), entries)
        # A number that no segment has would be one that is missing.
        self._place, self._written = place, written
        return segment

    def stop_if_superseded(self) -> None:
        """
        Make sure that nobody opened the journal later, after an intent and before its posts.

        :raises FalProtocolError: if somebody did; what was posted is in the journal, and the other goes on with it
        """
        newest = max((name for _, _, name in self._openings()), default=None)
        if newest != self._opening:
            raise error_of(_superseded())

    def results(self, keys: Collection[str]) -> Iterator[tuple[str, JobResult]]:
        """
        Yield the results that lie in the journal for these rows, reading each segment once.

        :raises FalSubmitOutcomeUnknown: if one cannot be read
        """
        wanted: dict[str, list[str]] = {}
        for key in keys:
            spool = self.rows[key].spool
            if spool is not None:
                wanted.setdefault(spool, []).append(key)
        names = sorted(wanted)
        for name, text in zip(names, self._texts("segments", names), strict=True):
            found = {
                e.key: e for e in _entries(self.folder / "segments" / name, text) if e.result is not None
            }
            for key in wanted[name]:
                yield key, JobResult.from_json(found[key].result)

    def _join(self, key: str, state: RowState) -> None:
        self.rows[key] = join(self.rows.get(key), state)

    def _take(self, name: str, entries: Iterable[Entry]) -> None:
        epoch, place, writer, _ = _parts(name)
        for entry in entries:
            self._join(entry.key, state_of(entry, (epoch, place, writer), name))
        self._read.add(name)

    def _take_snapshot(self, noted: str | None) -> None:
        names = self._names("snapshots")
        newest = max(names, default=None)
        if noted is not None and (newest is None or newest < noted):
            raise error_of(_unreadable(self.folder, ValueError(f"the summary {noted} is missing")))
        if newest is None:
            return
        [text] = self._texts("snapshots", [newest])
        try:
            header, rows = _read_lines(text, "rows")
            for row in rows:
                state = RowState.from_json(row)
                self._join(state.entry.key, state)
            self._read |= set(header["segments"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise error_of(_unreadable(self.folder / "snapshots" / newest, error)) from error
        self._summed_up, self._snapshot = set(self._read), newest

    def _sum_up(self) -> None:
        name = f"{self._epoch:06d}-{self._place:06d}-{self._writer}-{self._written:06d}.jsonl"
        header = {"segments": sorted(self._read), "rows": len(self.rows)}
        rows = (state.to_json() for state in self.rows.values())
        _put(_lines(header, rows), self.folder / "snapshots" / name)

    def _found(self) -> _Found:
        """Return what has been read, as an opening notes it."""
        numbers: dict[str, int] = {}
        for _, _, writer, number in map(_parts, self._read - self._summed_up):
            numbers[writer] = max(number, numbers.get(writer, 0))
        return _Found(self._snapshot, numbers)

    def _newest_opening(self) -> tuple[int, _Found]:
        """Return the number of the newest opening, and what it notes."""
        openings = self._openings()
        if _first_gap({number for number, _, _ in openings}) is not None:
            openings = self._openings()  # one that is written while a folder is listed may be passed over
        gap = _first_gap({number for number, _, _ in openings})
        if gap is not None:
            raise error_of(_unreadable(self.folder, ValueError(f"opening {gap} is missing")))
        if not openings:
            return 0, _Found()
        number, _, name = max(openings, key=lambda opening: opening[2])
        path = self.folder / "openings" / name
        try:
            found = json.loads(path.read_bytes())["found"]
            numbers = {str(writer): int(last) for writer, last in found["segments"].items()}
            return number, _Found(found["snapshot"], numbers)
        except (FileNotFoundError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise error_of(_unreadable(path, error)) from error

    def _segments(self, found: _Found) -> set[str]:
        """
        Return the names of all segments.

        :raises FalSubmitOutcomeUnknown: if one is missing: the rows in it would be posted again
        """
        for _ in range(2):  # one that is written while a folder is listed may be passed over
            names = set(self._names("segments"))
            missing = _missing(names | self._read, found.segments)
            if missing is None:
                break
        else:
            raise error_of(_unreadable(self.folder, ValueError(missing)))
        latest = max((epoch for epoch, _, _, _ in map(_parts, names)), default=0)
        if latest > self._epoch and latest not in {number for number, _, _ in self._openings()}:
            raise error_of(_unreadable(self.folder, ValueError(f"opening {latest} is missing")))
        return names

    def _refuse_a_manifest_that_knows_more(self) -> None:
        """Refuse a journal that lacks a row of which an earlier try said in the manifest that it was posted."""
        path = manifest_beside(self.folder)
        path.fs.invalidate_cache(self.folder.parent.path)
        try:
            rows = [json.loads(line) for line in path.read_bytes().splitlines()]
            lost = [row["key"] for row in rows if row["posts"] and row["key"] not in self.rows]
        except FileNotFoundError:
            return
        except (ValueError, TypeError, KeyError) as error:
            raise error_of(_unreadable(path, error)) from error
        if lost:
            said = (
                f"the manifest names {len(lost)} rows that were posted and are not in it, such as {lost[0]!r}"
            )
            raise error_of(_unreadable(self.folder, ValueError(said)))

    def _withdraw(self) -> None:
        """Take the opening away again, unless somebody has counted on from it."""
        if self._opening and all(number <= self._epoch for number, _, _ in self._openings()):
            (self.folder / "openings" / self._opening).unlink()

    def _openings(self) -> list[tuple[int, str, str]]:
        """Return number, owner's mark and name of each opening."""
        found = []
        for name in _listed(self.folder / "openings"):
            match = _OPENING.fullmatch(name)
            if match:
                found.append((int(match[1]), match[2], name))
        return found

    def _refuse_others(self, owner: Owner) -> None:
        others = [name for _, mark, name in self._openings() if mark != owner.mark]
        if others:
            raise error_of(
                bad_input(
                    f"manifest_path: there is already the journal of {self._owner_of(others[0])} at {self.folder}.",
                    "Nothing was submitted. Give each run and task a manifest of its own, such as "
                    "s3://bucket/{{ ds }}/manifest.jsonl.",
                )
            )

    def _owner_of(self, name: str) -> str:
        try:
            data = json.loads((self.folder / "openings" / name).read_bytes())
            return f"run {data['run_id']} of {data['dag_id']}.{data['task_id']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another run or task"

    def _names(self, kind: str) -> list[str]:
        return [name for name in _listed(self.folder / kind) if _NAME.fullmatch(name)]

    def _texts(self, kind: str, names: list[str]) -> Iterator[bytes]:
        """Yield what is in files of the journal, without having all of it in memory at once."""
        paths = [self.folder / kind / name for name in names]
        if len(paths) < 2 or is_local(self.folder):
            yield from map(_text, paths)
            return
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(paths), READERS):
                yield from pool.map(_text, paths[first : first + READERS])


def _text(path: ObjectStoragePath) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise error_of(_unreadable(path, error)) from error


def _entries(path: ObjectStoragePath, text: bytes) -> list[Entry]:
    try:
        _, values = _read_lines(text, "entries")
        return [Entry.from_json(value) for value in values]
    except (ValueError, TypeError, KeyError) as error:
        raise error_of(_unreadable(path, error)) from error


def _lines(header: Mapping[str, Any], values: Iterable[Any]) -> bytes:
    """Return the content of a file that has a header, which tells how many values follow, each on a line."""
    parts = [{"schema_version": JOURNAL_VERSION, **header}, *values]
    return b"".join(_written(part) + b"\n" for part in parts)


def _read_lines(text: bytes, counted: str) -> tuple[Mapping[str, Any], Iterator[Any]]:
    """
    Return the header and the values of what :func:`_lines` wrote.

    The values are read one by one: JSON of many megabytes at once would hold up all other threads of the process, and
    with them the event loop of a triggerer.

    :param counted: what the header calls the number of values
    :raises ValueError: if values are missing, or one cannot be read
    """
    first, *lines = text.removesuffix(b"\n").split(b"\n")
    header = json.loads(first)
    if header[counted] != len(lines):
        raise ValueError(f"{len(lines)} {counted} of {header[counted]}")
    return header, map(json.loads, lines)


def _written(value: Any) -> bytes:
    """Return JSON that is read back as it was: what was paid for is written down, however odd its texts are."""
    return json_text(value, errors="backslashreplace")


def _parts(name: str) -> tuple[int, int, str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a segment")
    return int(match[1]), int(match[2]), match[3], int(match[4])


def _first_gap(numbers: Collection[int], last: int = 0) -> int | None:
    """Return the first number from 1 that is missing before the last one."""
    last = max(last, *numbers, 0)
    return None if len(numbers) == last else min(set(range(1, last + 1)) - set(numbers))


def _missing(names: Collection[str], noted: Mapping[str, int]) -> str | None:
    """
    Return which segment is missing, in words.

    :param noted: by writer, the number of the last segment that is known to have been there
    """
    numbers: dict[str, set[int]] = {writer: set() for writer in noted}
    for name in names:
        _, _, writer, number = _parts(name)
        numbers.setdefault(writer, set()).add(number)
    for writer, found in numbers.items():
        gap = _first_gap(found, noted.get(writer, 0))
        if gap is not None:
            return f"segment {gap} of writer {writer} is missing"
    return None


def _unreadable(path: ObjectStoragePath, error: Exception) -> Failure:
    return unknown_outcome(f"the batch's journal cannot be read at {path} ({type(error).__name__}: {error})")


def _superseded() -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what="Another try of this task has taken the batch over; this one posts nothing more.",
        retry_does="is not needed: the other try goes on with what this one has posted.",
        billed="maybe",
        may_run=True,
    )


def _put_patiently(content: bytes, target: ObjectStoragePath, attempts: int) -> None:
    """Write a file, and after an error write it again: a store that has it already has the same still."""
    for attempt in range(1, attempts):
        try:
            _put(content, target)
        except Exception as error:  # noqa: BLE001 - whatever storage raises
            pause = backoff(attempt, random.random())
            log.warning(
                "The batch's journal was not written to %s (%s: %s); it is tried again in %.1f seconds.",
                target,
                type(error).__name__,
                error,
                pause,
            )
            time.sleep(pause)
        else:
            return
    _put(content, target)


def _put(content: bytes, target: ObjectStoragePath) -> None:
    if is_local(target):
        put_bytes(content, target)
    else:
        # One request, so whole or not at all; and outside of transactions, which other threads may have open.
        target.fs.pipe_file(target.path, content)


def _listed(folder: ObjectStoragePath) -> list[str]:
    """Return the names in a folder as the store has them now, not as somebody's cache does; none if it is not there."""
    folder.fs.invalidate_cache(folder.path)
    try:
        found: list[Mapping[str, Any] | str] = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return [str(path).rstrip("/").rpartition("/")[2] for path in found]
