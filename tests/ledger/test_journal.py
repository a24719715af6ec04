"""The journal of a batch: what was written is read, what cannot be read is an error, and one writer posts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]

from airflow_provider_uniapi_fal.exceptions import FalInputError, FalProtocolError, FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.landing import storage
from airflow_provider_uniapi_fal.ledger import journal as journals
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner, journal_folder
from airflow_provider_uniapi_fal.ledger.rows import Entry, Step, spooled
from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
from tests.fakes import handle

if TYPE_CHECKING:
    from pathlib import Path

OWNER = Owner("nights", "tonight", "batch")
OTHER = replace(OWNER, run_id="tomorrow")


#: The two ways to read a journal.
READS = (Journal.reading, lambda where: Journal.opened(where, OWNER))


@pytest.fixture
def folder(place: str) -> ObjectStoragePath:
    return journal_folder(ObjectStoragePath(place) / "night" / "manifest.jsonl")


def entry(key: str, step: Step = Step.INTENT, **more: Any) -> Entry:
    values: dict[str, Any] = {
        "post": 1,
        "fingerprint": "asked",
        "try_number": 1,
        "max_tries": 2,
        "written_at": 1.0,
    }
    return Entry(key=key, step=step, **{**values, **more})


def submitted(key: str, **more: Any) -> Entry:
    return entry(key, Step.SUBMITTED, handle=handle(request_id=f"req-{key}", submitted_at=1.0), **more)


def succeeded(key: str) -> Entry:
    job = handle(request_id=f"req-{key}", submitted_at=1.0)
    media = (MediaFile("images[0]", f"data:image/png;base64,{key}", width=4),)
    result = JobResult(job, {"prompt": "not to be kept"}, media, seed=7, billable_units="1")
    return entry(key, Step.SUCCEEDED, handle=job, result=spooled(result))


def segments(folder: ObjectStoragePath) -> list[ObjectStoragePath]:
    return sorted((folder / "segments").iterdir(), key=str)


def test_a_journal_that_is_not_there_knows_of_nothing(folder: ObjectStoragePath) -> None:
    assert Journal.reading(folder).rows == {}


def test_what_was_written_is_read_by_the_next_one(folder: ObjectStoragePath) -> None:
    first = Journal.opened(folder, OWNER)
    first.write([entry("a"), entry("b\u2028\x85 ü")])
    first.write([submitted("a")])
    first.write([])
    for next_one in (Journal.reading(folder), Journal.opened(folder, OWNER)):
        assert next_one.rows == first.rows
        assert {key: state.step for key, state in next_one.rows.items()} == {
            "a": Step.SUBMITTED,
            "b\u2028\x85 ü": Step.INTENT,
        }
        assert next_one.rows["a"].handle == handle(request_id="req-a", submitted_at=1.0)
    assert len(segments(folder)) == 2


def test_what_was_paid_for_is_written_down_whatever_half_characters_are_in_it(
    folder: ObjectStoragePath,
) -> None:
    first = Journal.opened(folder, OWNER)
    half = replace(handle(), model="\ud83d \\ud83d")
    first.write([replace(succeeded("a"), handle=half)])
    assert Journal.reading(folder).rows == first.rows


def test_a_result_is_kept_with_its_data_uris_and_without_the_prompt(folder: ObjectStoragePath) -> None:
    Journal.opened(folder, OWNER).write([succeeded("a"), succeeded("b"), submitted("c")])
    found = dict(Journal.reading(folder).results(["a", "b", "c"]))
    assert {key: result.media[0].url for key, result in found.items()} == {
        "a": "data:image/png;base64,a",
        "b": "data:image/png;base64,b",
    }
    assert found["a"].seed == 7
    assert "not to be kept" not in segments(folder)[0].read_text()


def test_what_cannot_be_written_at_all_leaves_no_gap_that_would_make_the_journal_unreadable(
    folder: ObjectStoragePath,
) -> None:
    first = Journal.opened(folder, OWNER)
    with pytest.raises(TypeError):
        first.write([replace(entry("a"), landed={"files": object()})])
    first.write([submitted("b")])
    assert set(Journal.reading(folder).rows) == {"b"}


def test_the_journal_of_another_run_is_refused_and_left_as_it_is(folder: ObjectStoragePath) -> None:
    Journal.opened(folder, OWNER).write([submitted("a")])
    with pytest.raises(FalInputError, match=r"run tonight of nights\.batch"):
        Journal.opened(folder, OTHER)
    assert len(list((folder / "openings").iterdir())) == 1


def test_of_two_runs_that_open_at_once_none_goes_on_without_the_other_noticing(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = journals._put
    other: list[str] = []

    def put_and_be_met(content: bytes, target: ObjectStoragePath) -> None:
        put(content, target)
        if not other:
            other.append("opening")
            with pytest.raises(FalInputError):
                Journal.opened(folder, OTHER)

    monkeypatch.setattr(journals, "_put", put_and_be_met)
    first = Journal.opened(folder, OWNER)
    first.stop_if_superseded()


def test_an_earlier_opening_stops_before_its_posts_and_the_newest_does_not(folder: ObjectStoragePath) -> None:
    first = Journal.opened(folder, OWNER)
    first.write([entry("a")])
    second = Journal.opened(folder, OWNER)
    assert second.rows["a"].step is Step.INTENT
    second.stop_if_superseded()
    with pytest.raises(FalProtocolError, match="Another try"):
        first.stop_if_superseded()


def test_what_an_earlier_opening_writes_late_is_read_and_does_not_undo_what_came_after(
    folder: ObjectStoragePath,
) -> None:
    first = Journal.opened(folder, OWNER)
    first.write([entry("a"), entry("b")])
    second = Journal.opened(folder, OWNER)
    second.write([entry("b", post=2), submitted("b", post=2)])
    first.write([submitted("a"), submitted("b")])
    second.refresh()
    assert (second.rows["a"].step, second.rows["a"].entry.post) == (Step.SUBMITTED, 1)
    assert (second.rows["b"].step, second.rows["b"].entry.post, second.rows["b"].posts) == (
        Step.SUBMITTED,
        2,
        2,
    )


def test_one_who_only_reads_writes_after_what_it_has_read(folder: ObjectStoragePath) -> None:
    first = Journal.opened(folder, OWNER)
    for _ in range(3):
        first.write([submitted("a")])
    watching = Journal.reading(folder)
    watching.write([succeeded("a")])
    assert Journal.reading(folder).rows["a"].step is Step.SUCCEEDED
    assert Journal.reading(folder).rows["a"].order[:2] == (1, 4)


@pytest.mark.parametrize("damage", ["cut", "garbled", "unknown step", "no handle", "lost"])
def test_a_journal_that_cannot_be_read_is_an_error_and_never_an_empty_one(
    folder: ObjectStoragePath, damage: str
) -> None:
    journal = Journal.opened(folder, OWNER)
    journal.write([submitted("a"), submitted("b")])
    journal.write([submitted("c")])
    path = segments(folder)[0]
    text = path.read_text()
    if damage == "lost":
        path.unlink()
    elif damage == "cut":
        path.write_text(text[: text.rindex("\n", 0, -1) + 1])
    elif damage == "garbled":
        path.write_text(text[:-20])
    elif damage == "unknown step":
        path.write_text(text.replace("submitted", "guessed"))
    else:
        lines = [json.loads(line) for line in text.splitlines()]
        del lines[1]["handle"]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
            read(folder)


def test_many_segments_are_summed_up_and_say_the_same(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 4)
    zombie = Journal.opened(folder, OWNER)
    zombie.write([entry("late")])
    first = Journal.opened(folder, OWNER)
    for number in range(5):
        first.write([entry(f"{number}"), submitted(f"{number}")])
    first.write([succeeded("3")])
    whole = Journal.reading(folder).rows
    second = Journal.opened(folder, OWNER)
    assert second.rows == whole
    assert len(list((folder / "snapshots").iterdir())) == 1
    zombie.write([submitted("late")])
    second.write([succeeded("4")])
    reads: list[str] = []
    texts = Journal._texts

    def counted(self: Journal, kind: str, names: list[str]) -> Iterator[bytes]:
        reads.extend(names)
        return texts(self, kind, names)

    monkeypatch.setattr(Journal, "_texts", counted)
    third = Journal.reading(folder)
    assert len(reads) == 3
    assert third.rows["late"].step is Step.SUBMITTED
    assert [key for key, state in third.rows.items() if state.step is Step.SUCCEEDED] == ["3", "4"]
    assert dict(third.results(["3", "4"])).keys() == {"3", "4"}


def size_of(folder: ObjectStoragePath, kind: str) -> int:
    folder.fs.invalidate_cache()
    below = (folder / kind).path
    return sum(folder.fs.size(name) for name in folder.fs.find(below))


def a_batch(folder: ObjectStoragePath, rows: int) -> float:
    """Write the journal of a batch that opens it anew for each ten rows; return the bytes of a row."""
    journal = Journal.opened(folder, OWNER)
    for first in range(0, rows, 5):
        journal.write([submitted(f"{number:05}") for number in range(first, first + 5)])
    for first in range(0, rows, 10):
        Journal.reading(folder).write([succeeded(f"{number:05}") for number in range(first, first + 10)])
        Journal.opened(folder, OWNER)
    return sum(size_of(folder, kind) for kind in ("openings", "segments", "snapshots")) / rows


def test_the_journal_of_a_long_batch_is_no_longer_by_the_row_than_that_of_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 4)
    folders = [ObjectStoragePath(f"file://{tmp_path}/{rows}.journal") for rows in (100, 600)]
    short, long = a_batch(folders[0], 100), a_batch(folders[1], 600)
    assert long < 1.3 * short
    newest = max((folders[1] / "snapshots").iterdir(), key=lambda path: path.name)
    assert size_of(folders[1], "snapshots") < 3 * len(newest.read_bytes())


def test_a_summary_that_was_there_and_is_not_is_an_error(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 2)
    first = Journal.opened(folder, OWNER)
    for key in "abc":
        first.write([submitted(key)])
    Journal.opened(folder, OWNER).write([submitted("d")])
    second = Journal.opened(folder, OWNER)
    assert second.rows.keys() == set("abcd")
    [path] = (folder / "snapshots").iterdir()
    path.unlink()
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match=r"summary .* is missing"):
            read(folder)


@pytest.mark.parametrize("summed_up", [True, False])
def test_a_writer_of_which_every_segment_is_gone_is_missed(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch, summed_up: bool
) -> None:
    """As a bucket's lifecycle rule deletes the oldest files."""
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 1 if summed_up else 64)
    first = Journal.opened(folder, OWNER)
    first.write([submitted("a")])
    first.write([succeeded("a")])
    Journal.opened(folder, OWNER).write([submitted("b")])
    for path in segments(folder)[:2]:
        path.unlink()
    if summed_up:
        # The row is known by the summary, so nothing is paid again; its result is gone, which is said.
        kept = Journal.opened(folder, OWNER)
        assert kept.rows.keys() == {"a", "b"}
        with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
            dict(kept.results(["a"]))
        return
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match=r"segment 1 of writer .* is missing"):
            read(folder)
    for path in segments(folder):
        path.unlink()
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match="is missing"):
            read(folder)


@pytest.mark.parametrize("gone", ["000001", "000002", "all"])
def test_an_opening_that_is_gone_is_missed(folder: ObjectStoragePath, gone: str) -> None:
    for key in "abc":
        Journal.opened(folder, OWNER).write([submitted(key)])
    for path in list((folder / "openings").iterdir()):
        if gone in ("all", path.name[:6]):
            path.unlink()
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match=r"opening . is missing"):
            read(folder)


def test_an_opening_that_cannot_be_read_is_an_error(folder: ObjectStoragePath) -> None:
    Journal.opened(folder, OWNER).write([submitted("a")])
    [path] = (folder / "openings").iterdir()
    path.write_text("{}")
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
            read(folder)


def test_a_journal_that_lacks_what_the_manifest_says_was_posted_is_an_error(
    folder: ObjectStoragePath,
) -> None:
    manifest = folder.parent / "manifest.jsonl"
    Journal.opened(folder, OWNER).write([submitted("a")])
    for path in segments(folder):
        path.unlink()
    rows = [{"key": "carried over", "posts": 0}, {"key": "missing", "posts": 0}]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert Journal.opened(folder, OWNER).rows == {}
    manifest.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"key": "a", "posts": 1}]))
    with pytest.raises(FalSubmitOutcomeUnknown, match=r"names 1 rows that were posted .* such as 'a'"):
        Journal.opened(folder, OWNER)
    manifest.write_text("a half row\n")
    with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
        Journal.opened(folder, OWNER)


def test_a_listing_that_passes_over_what_is_written_meanwhile_misses_nothing(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder is listed piece by piece: it may show the later of two new files without the earlier one."""
    listed, passed_over = journals._listed, set[str]()

    def hasty(where: ObjectStoragePath) -> list[str]:
        names = listed(where)
        hidden = {name for name in names if name.startswith(("000001-000001", f"000001-{OWNER.mark}"))}
        hidden -= passed_over
        passed_over.update(hidden)
        return [name for name in names if name not in hidden]

    first = Journal.opened(folder, OWNER)
    first.write([entry("a")])
    first.write([submitted("a")])
    Journal.opened(folder, OWNER)
    monkeypatch.setattr(journals, "_listed", hasty)
    assert Journal.reading(folder).rows["a"].step is Step.SUBMITTED
    assert len(passed_over) == 2


def test_an_opening_that_comes_while_a_journal_is_read_is_no_missing_one(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    Journal.opened(folder, OWNER).write([entry("a")])
    names, met = Journal._names, list[str]()

    def meet(self: Journal, kind: str) -> list[str]:
        if kind == "segments" and not met:
            met.append(kind)
            Journal.opened(folder, OWNER).write([submitted("a")])
        return names(self, kind)

    monkeypatch.setattr(Journal, "_names", meet)
    assert Journal.reading(folder).rows["a"].step is Step.SUBMITTED


def test_a_run_that_withdraws_leaves_the_opening_that_another_try_counts_on(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, met = journals._put, list[Journal]()

    def put_and_be_met(content: bytes, target: ObjectStoragePath) -> None:
        put(content, target)
        if not met:
            met.append(Journal(folder))
            Journal.opened(folder, OWNER)
            (folder / "openings" / f"000001-{OTHER.mark}-{'0' * 12}.json").write_text("{}")

    monkeypatch.setattr(journals, "_put", put_and_be_met)
    with pytest.raises(FalInputError):
        Journal.opened(folder, OWNER)
    (folder / "openings" / f"000001-{OTHER.mark}-{'0' * 12}.json").unlink()
    assert Journal.opened(folder, OWNER).rows == {}


def test_a_summary_that_cannot_be_read_is_an_error(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 1)
    first = Journal.opened(folder, OWNER)
    for key in "abc":
        first.write([submitted(key)])
    Journal.opened(folder, OWNER)
    [path] = (folder / "snapshots").iterdir()
    path.write_text("{}")
    with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
        Journal.reading(folder)


def test_an_opening_clears_away_the_half_files_that_killed_writers_left_in_the_journal_and_beside_it(
    tmp_path: Path,
) -> None:
    folder = journal_folder(ObjectStoragePath(f"file://{tmp_path}/manifest.jsonl"))
    Journal.opened(folder, OWNER).write([submitted("a")])
    (tmp_path / "manifest.journal" / "snapshots").mkdir()
    name = f".{storage._MACHINE}-{'0' * 32}.part"
    places = [
        tmp_path,
        *(tmp_path / "manifest.journal" / kind for kind in ("openings", "segments", "snapshots")),
    ]
    for place in places:
        (place / name).write_bytes(b"half")
    assert Journal.opened(folder, OWNER).rows.keys() == {"a"}
    assert [place for place in places if (place / name).exists()] == []


class Store:
    """The store, which fails as often as it is told to; before it has written, or after."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, has_written: bool) -> None:
        self.fails = 0
        self.seen: list[tuple[str, bytes]] = []
        self._has_written = has_written
        self._put = journals._put
        monkeypatch.setattr(journals, "_put", self.put)
        monkeypatch.setattr(journals, "backoff", lambda attempt, jitter: 0.0)

    def put(self, content: bytes, target: ObjectStoragePath) -> None:
        self.seen.append((target.name, content))
        fails = self.fails > 0
        if not fails or self._has_written:
            self._put(content, target)
        if fails:
            self.fails -= 1
            raise EndpointConnectionError(endpoint_url="http://x")


@pytest.mark.parametrize("has_written", [False, True])
def test_a_write_that_fails_is_made_again_with_the_same_name_and_the_same_content(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch, has_written: bool
) -> None:
    journal = Journal.opened(folder, OWNER)
    store = Store(monkeypatch, has_written=has_written)
    store.fails = journals.WRITE_ATTEMPTS - 1
    journal.write([submitted("a"), entry("b")])
    assert len(store.seen) == journals.WRITE_ATTEMPTS
    assert len(set(store.seen)) == 1
    assert len(segments(folder)) == 1
    assert Journal.reading(folder).rows == journal.rows
    assert journal.rows["a"].step is Step.SUBMITTED


@pytest.mark.parametrize("has_written", [False, True])
def test_what_the_store_does_not_take_is_raised_and_goes_out_before_the_next_write(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch, has_written: bool
) -> None:
    journal = Journal.opened(folder, OWNER)
    journal.write([entry("a"), entry("b")])
    store = Store(monkeypatch, has_written=has_written)
    store.fails = journals.WRITE_ATTEMPTS
    with pytest.raises(EndpointConnectionError):
        journal.write([submitted("a")])
    assert journal.rows["a"].step is Step.INTENT
    # Somebody may have seen it by now: so its name never stands for anything else.
    other = Journal.reading(folder)
    assert (other.rows["a"].step is Step.SUBMITTED) == has_written
    journal.refresh()
    journal.write([submitted("b")])
    other.refresh()
    for known in (journal, other, Journal.reading(folder), Journal.opened(folder, OWNER)):
        assert {key: state.step for key, state in known.rows.items()} == {
            "a": Step.SUBMITTED,
            "b": Step.SUBMITTED,
        }
    contents: dict[str, set[bytes]] = {}
    for name, content in store.seen:
        contents.setdefault(name, set()).add(content)
    assert [len(found) for found in contents.values()] == [1] * len(contents)


def test_a_store_that_was_waited_for_in_vain_is_not_waited_for_again_until_it_is_back(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.opened(folder, OWNER)
    store = Store(monkeypatch, has_written=False)
    store.fails = journals.WRITE_ATTEMPTS + 2
    for key in "abc":
        with pytest.raises(EndpointConnectionError):
            journal.write([submitted(key)])
    assert len(store.seen) == journals.WRITE_ATTEMPTS + 2
    journal.write([])
    assert Journal.reading(folder).rows.keys() == set("abc")
    store.fails = journals.WRITE_ATTEMPTS - 1
    journal.write([submitted("d")])
    assert Journal.reading(folder).rows.keys() == set("abcd")


def test_a_summary_is_read_row_by_row_so_that_no_other_thread_waits_for_all_of_it(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 1)
    first = Journal.opened(folder, OWNER)
    keys = [f"{number:03}" for number in range(200)]
    for half in (keys[:100], keys[100:]):
        first.write([submitted(key, fingerprint="\u2028\x85\n") for key in half])
    Journal.opened(folder, OWNER)
    for path in segments(folder):
        path.write_text("not read any more")
    [path] = (folder / "snapshots").iterdir()
    loads, lengths = json.loads, list[int]()

    def noted(text: Any, **more: Any) -> Any:
        lengths.append(len(text))
        return loads(text, **more)

    monkeypatch.setattr(json, "loads", noted)
    assert Journal.reading(folder).rows.keys() == set(keys)
    assert max(lengths) < len(path.read_bytes()) / 50


@pytest.mark.parametrize("damage", ["cut", "garbled"])
def test_a_summary_of_which_a_part_is_gone_is_an_error(
    folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    monkeypatch.setattr(journals, "SEGMENTS_PER_SNAPSHOT", 1)
    first = Journal.opened(folder, OWNER)
    for key in "abc":
        first.write([submitted(key)])
    Journal.opened(folder, OWNER)
    [path] = (folder / "snapshots").iterdir()
    text = path.read_text()
    path.write_text(text[: text.rindex("\n", 0, -1) + 1] if damage == "cut" else text[:-20])
    for read in READS:
        with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
            read(folder)
