"""
The ledger of a batch: a folder of immutable segments in object storage, beside the manifest.

Object stores cannot append, so each write is a segment of its own, whole or not at all. A wave of submits costs
two: the intents before its posts, the outcomes after them. What the segments come to is decided in
:mod:`~airflow_provider_uniapi_fal.ledger.rows`.

::

    <manifest>.journal/
      openings/000002-<owner>-<writer>.json          who posts: the newest opening, and no other
      segments/000002-000007-<writer>-000003.jsonl   a header, then one entry a line
      snapshots/000002-000009-<writer>-000000.json   what the segments that it names come to: read in their place

The numbers of a segment are its opening, its place among all segments of that opening, and its place among those
of its writer, by which a lost segment is noticed.

**Two tries at once.** A worker that lost touch with Airflow goes on while its retry begins. Each opening is
numbered. A writer writes its intents first, then looks whether it is still the newest, and only then posts. A new
opening is written first, then the segments are read. So with a store that lists what was written (S3, GCS and
Azure do, as do file systems), either the old writer sees the new opening and stops, or the new one sees the old
one's intents and does not post those rows.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.landing.storage import json_text, put_bytes
from airflow_provider_uniapi_fal.ledger.rows import Entry, RowState, join, state_of
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobResult

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

JOURNAL_VERSION = 1

#: An opening sums up what it has found once that is more than so many segments, and more than what was summed up
#: already: so the next one reads few, and all summaries together are no longer than twice the last one.
SEGMENTS_PER_SNAPSHOT = 64

#: Segments that are read at once from an object store.
READERS = 16

_NAME = re.compile(r"(\d{6})-(\d{6})-([0-9a-f]{12})-(\d{6})\.jsonl?")
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
        self._epoch = 0
        self._writer = uuid.uuid4().hex[:12]
        self._written = 0
        self._place = 0
        self._opening: str | None = None
        self._writing = threading.Lock()

    @classmethod
    def reading(cls, folder: ObjectStoragePath) -> Journal:
        """
        Read a journal, to watch its jobs or to tell of them.

        :raises FalSubmitOutcomeUnknown: if it is there and cannot be read
        """
        journal = cls(folder)
        journal._epoch = max((number for number, _, _ in journal._openings()), default=0)
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
        openings = journal._openings()
        journal._epoch = max((number for number, _, _ in openings), default=0) + 1
        name = f"{journal._epoch:06d}-{owner.mark}-{journal._writer}.json"
        header = {"schema_version": JOURNAL_VERSION, **asdict(owner)}
        _put(_written(header), folder / "openings" / name)
        journal._opening = name
        try:
            journal._refuse_others(owner)
        except FalError:
            # Two runs began at once. Each that sees the other withdraws, so that none is paid for twice.
            (folder / "openings" / name).unlink()
            raise
        journal.refresh()
        if len(journal._read - journal._summed_up) > max(SEGMENTS_PER_SNAPSHOT, len(journal._summed_up)):
            journal._sum_up()
        return journal

    def refresh(self) -> None:
        """
        Take in what others have written since.

        :raises FalSubmitOutcomeUnknown: if a segment cannot be read, or is missing
        """
        names = set(self._names("segments"))
        if not self._read:
            self._take_snapshot()
        fresh = sorted(names - self._read)
        _refuse_gaps(self.folder, names | self._read)
        for name, text in zip(fresh, self._texts("segments", fresh), strict=True):
            self._take(name, text)
        places = [place for epoch, place, _, _ in map(_parts, self._read) if epoch == self._epoch]
        self._place = max(places, default=self._place)

    def write(self, entries: Iterable[Entry]) -> None:
        """Write entries as one segment: when this returns, they are durable."""
        entries = list(entries)
        if entries:
            with self._writing:
                self._write(entries)

    def _write(self, entries: list[Entry]) -> None:
        header = {"schema_version": JOURNAL_VERSION, "entries": len(entries)}
        lines = [_written(each) for each in (header, *(e.to_json() for e in entries))]
        place, written = self._place + 1, self._written + 1
        name = f"{self._epoch:06d}-{place:06d}-{self._writer}-{written:06d}.jsonl"
        _put(b"\n".join(lines) + b"\n", self.folder / "segments" / name)
        self._place, self._written = place, written
        self._read.add(name)
        for entry in entries:
            self._join(entry.key, state_of(entry, (self._epoch, place, self._writer), name))

    def stop_if_superseded(self) -> None:
        """
        Make sure that nobody opened the journal later, after an intent and before its posts.

        :raises FalProtocolError: if somebody did; what was posted is in the journal, and the other goes on with it
        """
        newest = max(name for _, _, name in self._openings())
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

    def _take(self, name: str, text: bytes) -> None:
        epoch, place, writer, _ = _parts(name)
        for entry in _entries(self.folder / "segments" / name, text):
            self._join(entry.key, state_of(entry, (epoch, place, writer), name))
        self._read.add(name)

    def _take_snapshot(self) -> None:
        names = self._names("snapshots")
        if not names:
            return
        [text] = self._texts("snapshots", [max(names)])
        try:
            data = json.loads(text)
            for key, state in data["rows"].items():
                self._join(key, RowState.from_json(state))
            self._read |= set(data["segments"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise error_of(_unreadable(self.folder / "snapshots" / max(names), error)) from error
        self._summed_up = set(self._read)

    def _sum_up(self) -> None:
        name = f"{self._epoch:06d}-{self._place:06d}-{self._writer}-{self._written:06d}.json"
        data = {
            "schema_version": JOURNAL_VERSION,
            "segments": sorted(self._read),
            "rows": {key: state.to_json() for key, state in self.rows.items()},
        }
        _put(_written(data), self.folder / "snapshots" / name)

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
        if len(paths) < 2 or _is_local(self.folder):
            yield from (path.read_bytes() for path in paths)
            return
        with ThreadPoolExecutor(READERS) as pool:
            for first in range(0, len(paths), READERS):
                yield from pool.map(lambda path: path.read_bytes(), paths[first : first + READERS])


def _entries(path: ObjectStoragePath, text: bytes) -> list[Entry]:
    try:
        header, *lines = text.decode().removesuffix("\n").split("\n")
        count = json.loads(header)["entries"]
        if count != len(lines):
            raise ValueError(f"{len(lines)} entries of {count}")
        return [Entry.from_json(json.loads(line)) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise error_of(_unreadable(path, error)) from error


def _written(value: Any) -> bytes:
    """Return JSON that is read back as it was: what was paid for is written down, however odd its texts are."""
    return json_text(value, errors="backslashreplace")


def _parts(name: str) -> tuple[int, int, str, int]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no name of a segment")
    return int(match[1]), int(match[2]), match[3], int(match[4])


def _refuse_gaps(folder: ObjectStoragePath, names: Collection[str]) -> None:
    """Refuse a journal of which a segment was lost: the rows in it would be posted again."""
    last: dict[str, set[int]] = {}
    for name in names:
        _, _, writer, number = _parts(name)
        last.setdefault(writer, set()).add(number)
    for numbers in last.values():
        if len(numbers) != max(numbers):
            missing = min(set(range(1, max(numbers))) - numbers)
            raise error_of(_unreadable(folder, ValueError(f"segment {missing} of a writer is missing")))


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


def _is_local(path: ObjectStoragePath) -> bool:
    return path.protocol in ("file", "local", "")


def _put(content: bytes, target: ObjectStoragePath) -> None:
    if _is_local(target):
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
