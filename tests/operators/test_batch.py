"""A batch, many jobs in one task: blocking and deferrable are the same promise, on the local file system and in S3."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk import Asset, ObjectStoragePath
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]

from airflow_provider_uniapi_fal.batch import batch as batches
from airflow_provider_uniapi_fal.batch import session, submit_pace
from airflow_provider_uniapi_fal.batch.accounting import shortfall
from airflow_provider_uniapi_fal.batch.submit_pace import SubmitPace
from airflow_provider_uniapi_fal.exceptions import (
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobCancelled,
    FalJobFailed,
    FalProtocolError,
    FalResultExpired,
    FalSubmitOutcomeUnknown,
    FalTimeout,
)
from airflow_provider_uniapi_fal.hooks import fal as hooks
from airflow_provider_uniapi_fal.hooks import task_states
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing import media, storage
from airflow_provider_uniapi_fal.landing.manifest import (
    Manifest,
    ManifestRow,
    RowError,
    read_manifest,
    verify_files,
    write_manifest,
)
from airflow_provider_uniapi_fal.ledger import journal as journals
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner
from airflow_provider_uniapi_fal.ledger.rows import Step
from airflow_provider_uniapi_fal.ledger.task_state import BATCH_KEY
from airflow_provider_uniapi_fal.operators import batch as operators
from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator
from airflow_provider_uniapi_fal.protocol import watching
from airflow_provider_uniapi_fal.protocol.cadence import Experience
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
from airflow_provider_uniapi_fal.retry_policy import FalRetryPolicy
from airflow_provider_uniapi_fal.triggers import batch as triggers
from tests.batch.tasks import MODES, BatchTask, counts, table
from tests.fakes import (
    KEY,
    MODEL,
    PROMPT,
    Exchange,
    ScriptedServer,
    calls,
    fired,
    handle,
    posts,
    set_connection,
    wait_until,
)

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from airflow_provider_uniapi_fal.triggers.batch import FalBatchTrigger
    from tests.fakes import Start

New = Callable[..., BatchTask]

#: Long enough that jobs are still running when a deferrable task defers.
SHORT = {"run_seconds": 0.3}
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "RACE_SECONDS", 0.0)
    monkeypatch.setattr(triggers, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(watching, "CANCEL_GRACE", 0.05)


@pytest.fixture(params=MODES)
def new(request: pytest.FixtureRequest, tmp_path: Path) -> New:
    """Return a function that makes a task in one of the modes, whose media go to a folder of the test."""

    def make(**options: Any) -> BatchTask:
        return BatchTask(f"file://{tmp_path}/night", **{**MODES[request.param], **options})

    return make


@pytest.fixture(params=[("blocking", "local"), ("deferrable", "local"), ("deferrable", "s3")], ids="-".join)
def anywhere(request: pytest.FixtureRequest, tmp_path: Path) -> New:
    """Return a function that makes a task in one of the modes, whose journal and media go to one kind of storage."""
    mode, storage = request.param
    root = f"file://{tmp_path}" if storage == "local" else request.getfixturevalue("s3_place")
    return lambda **options: BatchTask(f"{root}/night", **{**MODES[mode], **options})


@pytest.fixture
def blocking_anywhere(place: str) -> New:
    """Return a function that makes a blocking task, whose journal and media go to each kind of storage."""
    return lambda **options: BatchTask(
        f"{place}/night", **{"requests": table(3), **MODES["blocking"], **options}
    )


@pytest.fixture
def blocking(tmp_path: Path) -> New:
    """Return a function that makes a blocking task, for what does not depend on the mode."""
    return lambda **options: BatchTask(
        f"file://{tmp_path}/night", **{"requests": table(3), **MODES["blocking"], **options}
    )


def journal_of(task: BatchTask) -> Journal:
    return Journal.reading(ObjectStoragePath(f"{task.place}/manifest.journal"))


def forget_the_last_segments(task: BatchTask, count: int = 1) -> None:
    """Leave the journal as a process leaves it that was killed before it wrote these."""
    folder = ObjectStoragePath(task.place) / "manifest.journal" / "segments"
    for path in sorted(folder.iterdir(), key=lambda path: path.name)[-count:]:
        path.unlink()


def prompts(emulator: Emulator) -> list[str]:
    return sorted(job["prompt"] for job in emulator.account()["jobs"])


# --- success ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_is_paid_once_each_and_every_row_is_accounted_for(
    start: Start, place: str, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    emulator = start(run_seconds=2.0)
    task = BatchTask(f"{place}/night", requests=table(7), **MODES[mode])
    made = task.run()
    assert counts(made) == {"asked": 7, "succeeded": 7}
    assert made["manifest_path"] == task.xcoms["manifest_path"] == f"{place}/night/manifest.jsonl"
    assert set(made) == {"manifest_path", "summary_path", "counts"}
    assert posts(emulator) == 7
    rows = [json.loads(line) for line in ObjectStoragePath(made["manifest_path"]).read_text().splitlines()]
    assert [row["key"] for row in rows] == [f"row-{n:03}" for n in range(7)]
    for row in rows:
        [file] = row["files"]
        assert (row["posts"], row["tries"], row["error"]) == (1, 1, None)
        assert ObjectStoragePath(file["path"]).read_bytes()[:2] == b"\xff\xd8"
        assert (file["width"], file["height"]) == (64, 48)
    assert task.legs == (1 if mode == "blocking" else 2)
    written = capsys.readouterr()
    for told in (written.out + written.err, json.dumps([made, rows, task.xcoms])):
        assert PROMPT not in told
        assert KEY not in told


def test_where_the_batch_is_is_known_before_anything_is_posted(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    task = blocking()

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("the store cannot be reached")

    with monkeypatch.context() as patch:
        patch.setattr(task.store, "set", refuse)
        with pytest.raises(RuntimeError, match="cannot be reached"):
            task.run()
    assert posts(emulator) == 0
    task.next_try().run()
    assert task.store.get(BATCH_KEY) == {"manifest_path": f"{task.place}/manifest.jsonl"}


def test_nothing_is_posted_by_a_retry_of_a_batch_that_was_delivered(start: Start, anywhere: New) -> None:
    emulator = start(**SHORT)
    task = anywhere(requests=table(3))
    made = task.run()
    asked = len(emulator.requests())
    assert task.next_try().run() == made
    assert len(emulator.requests()) == asked


@pytest.mark.parametrize(("on_clear", "more"), [("missing", 0), ("all", 3)])
def test_a_clear_makes_what_is_missing_unless_told_to_make_all(
    start: Start, anywhere: New, on_clear: str, more: int
) -> None:
    emulator = start(**SHORT)
    task = anywhere(requests=table(3), on_clear=on_clear)
    task.run()
    before = hashes(task)
    assert counts(task.next_try(cleared=True).run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3 + more
    # The model draws another picture each time that it is asked.
    after = hashes(task)
    assert len(before | after) == 3 + more
    # A clear counts once.
    task.next_try().run()
    assert posts(emulator) == 3 + more
    assert hashes(task) == after


def hashes(task: BatchTask) -> set[str]:
    """Return the hashes of the files that the manifest names, each of which is there with these very bytes."""
    manifest = read_manifest(ObjectStoragePath(f"{task.place}/manifest.jsonl"))
    assert [check.problem for check in verify_files(manifest)] == [None] * len(manifest.rows)
    return {file.sha256 for row in manifest.rows for file in row.files}


def test_many_rows_go_out_in_waves_and_no_more_than_allowed_at_once(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 4)
    emulator = start(faults=["slow on=submit seconds=0.05"])
    task = blocking(requests=table(10), max_in_flight=2)
    task.run()
    steps = [len(states) for states in waves(task)]
    assert steps == [4, 4, 2]
    assert posts(emulator) == 10


def waves(task: BatchTask) -> list[list[str]]:
    folder = Path(task.place.removeprefix("file://"), "manifest.journal", "segments")
    found = []
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
        if lines[0]["step"] == "intent":
            found.append([line["key"] for line in lines])
    return found


def test_no_more_jobs_are_unfinished_than_allowed(start: Start, new: New) -> None:
    emulator = start(run_seconds=0.2)
    task = new(requests=table(5), max_unfinished=2, land_after=0.1)
    assert counts(task.run()) == {"asked": 5, "succeeded": 5}
    assert posts(emulator) == 5
    assert most_at_once(emulator) <= 2


def most_at_once(emulator: Emulator) -> int:
    """Return how many jobs were submitted and not yet fetched, at most."""
    found, most = 0, 0
    for request in emulator.requests():
        found += {"submit": 1, "result": -1}.get(request["operation"], 0)
        most = max(most, found)
    return most


def test_a_job_that_fails_makes_room_for_another_while_the_rest_still_runs(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(run_seconds=0.3)
    emulator.add_fault(fault="job", match=f"{PROMPT} 000", run_seconds=15)
    emulator.add_fault(fault="job", match=f"{PROMPT} 001", failure="refused", run_seconds=0.3)
    options = {"max_unfinished": 2, "land_after": 0.2, **MODES["deferrable"]}
    task = BatchTask(f"file://{tmp_path}/night", requests=table(4), **options)
    go = partial(task.operator().execute, task.context)
    while posts(emulator) < 4:
        with pytest.raises(TaskDeferred) as deferral:
            go()
        if posts(emulator) < 4:
            go = partial(task.operator().execute_complete, task.context, fired(deferral.value))
    assert journal_of(task).rows["row-000"].step is Step.SUBMITTED
    # When all are submitted, there is nothing more to make room for.
    assert cast("FalBatchTrigger", deferral.value.trigger).room_below == 0


def test_results_are_landed_while_others_still_run(start: Start, tmp_path: Path) -> None:
    emulator = start(run_seconds=1.0)
    emulator.add_fault(fault="job", match=f"{PROMPT} 002", stuck=True)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(3), land_every=2, **MODES["deferrable"])
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    event = fired(deferral.value)
    assert (event["ready"], event["running"]) == (2, 1)
    with pytest.raises(TaskDeferred):
        task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    assert sorted(path.name for path in (tmp_path / "night").glob("*.jpg")) == ["row-000.jpg", "row-001.jpg"]


def test_the_results_that_wait_tell_a_new_process_how_long_the_other_jobs_take(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=1.0)
    emulator.add_fault(fault="job", match=f"{PROMPT} 006", stuck=True)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(7), land_every=6, **MODES["deferrable"])
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    event = fired(deferral.value)
    del event["known"]
    monkeypatch.setattr(hooks, "EXPERIENCE", Experience())
    with pytest.raises(TaskDeferred):
        task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    known = hooks.usual_seconds(MODEL)
    assert known is not None
    assert known > 0.9


def test_a_worker_knows_of_the_jobs_that_it_goes_on_with_what_the_triggerer_knew(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=0.2)
    emulator.add_fault(fault="job", match=f"{PROMPT} 001", stuck=True)
    for _ in range(60):
        hooks.learn(MODEL, seconds_queued=0.0, seconds_running=77.0)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(2), land_every=1, **MODES["deferrable"])
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    event = fired(deferral.value)
    monkeypatch.setattr(hooks, "EXPERIENCE", Experience())
    with pytest.raises(TaskDeferred):
        task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    assert hooks.usual_seconds(MODEL) == pytest.approx(77.0)


def test_a_worker_is_called_ahead_for_no_longer_than_it_would_watch(start: Start, tmp_path: Path) -> None:
    start(run_seconds=30.0)
    ahead = []
    for defer_after in (0.0, 0.5):
        task = BatchTask(f"file://{tmp_path}/{defer_after}", requests=table(1), defer_after=defer_after)
        with pytest.raises(TaskDeferred) as deferral:
            task.operator().execute(task.context)
        ahead.append(deferral.value.trigger.land_ahead)
    assert ahead == [0.0, 0.5]


def test_rows_of_an_earlier_manifest_are_not_posted_but_carried_over(start: Start, blocking: New) -> None:
    emulator = start(faults=[{"fault": "job", "match": f"{PROMPT} 001", "failure": "refused", "times": 1}])
    first = blocking(min_success_ratio=0.0)
    first.run()
    earlier = first.manifest()
    second = BatchTask(
        f"{first.place}-2",
        requests=table(3),
        skip_existing=f"{first.place}/manifest.jsonl",
        **MODES["blocking"],
    )
    assert counts(second.run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 4
    rows = second.manifest()
    assert rows["row-000"] == {**earlier["row-000"], "posts": 0, "tries": 0}
    assert rows["row-001"]["posts"] == 1


@pytest.mark.parametrize("then", ["go on", "retry", "clear"])
def test_an_earlier_manifest_that_grows_takes_no_row_from_the_batch_that_has_submitted_it(
    start: Start, tmp_path: Path, then: str
) -> None:
    """Somebody clears yesterday's night while tonight's, which skips what that has, is under way."""
    emulator = start(run_seconds=0.5)
    old = BatchTask(f"file://{tmp_path}/old", requests=table(4), **MODES["blocking"])
    path = ObjectStoragePath(old.run()["manifest_path"])
    whole = read_manifest(path)
    write_manifest(replace(whole, rows=whole.rows[:1]), path)
    emulator.add_fault(fault="job", match=f"{PROMPT} 001", run_seconds=3)
    task = BatchTask(
        f"file://{tmp_path}/night",
        requests=table(4),
        skip_existing=str(path),
        on_changed_arguments="fail",
        land_every=2,
        **MODES["deferrable"],
    )
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    assert posts(emulator) == 4 + 3
    event = fired(deferral.value)
    # Some of the rows are ready, and most likely one still runs.
    assert event["ready"] >= 2
    write_manifest(whole, path)
    if then == "go on":
        made = None
        while made is None:
            try:
                made = task.operator().execute_complete(task.context, event)
            except TaskDeferred as again:
                event = fired(again)
    else:
        made = task.next_try(cleared=then == "clear").run()
    assert counts(made) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4 + 3
    assert [row["posts"] for row in task.manifest().values()] == [0, 1, 1, 1]
    # What has been delivered stays, too.
    task.next_try(cleared=True).run()
    assert [row["posts"] for row in task.manifest().values()] == [0, 1, 1, 1]
    assert posts(emulator) == 4 + 3


def test_a_line_that_is_carried_over_has_the_arguments_only_if_asked(start: Start, tmp_path: Path) -> None:
    start()

    def tonight(name: str, earlier: str | None, **options: Any) -> BatchTask:
        task = BatchTask(
            f"file://{tmp_path}/{name}",
            requests=table(1),
            skip_existing=None if earlier is None else f"file://{tmp_path}/{earlier}/manifest.jsonl",
            run_id=name,
            **{**MODES["blocking"], **options},
        )
        task.run()
        return task

    asked = table(1)[0]["arguments"]
    assert tonight("told", None, include_arguments=True).manifest()["row-000"]["arguments"] == asked
    assert tonight("untold", "told").manifest()["row-000"]["arguments"] is None
    told_again = tonight("told again", "untold", include_arguments=True)
    assert told_again.manifest()["row-000"]["arguments"] == asked


@pytest.mark.parametrize(("policy", "more"), [("reattach", 0), ("resubmit", 1), ("fail", 0)])
def test_a_row_that_asks_for_something_else_than_an_earlier_manifest_has_follows_the_policy(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch, policy: str, more: int
) -> None:
    said: list[str] = []
    monkeypatch.setattr(FalBatchOperator, "_say", lambda self, line: said.append(line))
    emulator = start()
    first = blocking()
    first.run()
    earlier = first.manifest()
    rows = table(3)
    rows[1]["arguments"]["prompt"] = "something else"
    second = BatchTask(
        f"{first.place}-2",
        requests=rows,
        skip_existing=f"{first.place}/manifest.jsonl",
        on_changed_arguments=policy,
        include_arguments=True,
        **MODES["blocking"],
    )
    said.clear()
    if policy == "fail":
        with pytest.raises(FalInputError, match="skip_existing: row 'row-001' asks for something else"):
            second.run()
    else:
        assert counts(second.run()) == {"asked": 3, "succeeded": 3}
        made = second.manifest()
        assert made["row-000"]["arguments"] == rows[0]["arguments"]
        kept = made["row-001"]["arguments_sha256"] == earlier["row-001"]["arguments_sha256"]
        assert kept is (policy == "reattach")
        # Nobody can tell the prompt from its hash; the new one did not make the picture.
        assert made["row-001"]["arguments"] == (None if kept else rows[1]["arguments"])
    assert posts(emulator) == 3 + more
    assert any("Row 'row-001' asks for something else" in line for line in said) is (policy == "reattach")


def test_files_named_as_inputs_are_sent_and_one_that_is_missing_harms_no_other(
    start: Start, blocking: New, tmp_path: Path
) -> None:
    (tmp_path / "in.png").write_bytes(base64.b64decode(PIXEL.partition(",")[2]))
    rows = table(2, image_url=f"file://{tmp_path}/in.png")
    rows[1]["arguments"]["image_url"] = f"file://{tmp_path}/missing.png"
    emulator = start()
    task = blocking(requests=rows, min_success_ratio=0.5)
    assert counts(task.run()) == {"asked": 2, "succeeded": 1, "failed": 1}
    assert posts(emulator) == 1
    row = task.manifest()["row-001"]
    assert "cannot be read" in row["error"]["message"]
    assert row["error"]["billed"] == "no"


@pytest.mark.parametrize("error", [OSError("SlowDown"), EndpointConnectionError(endpoint_url="http://x")])
def test_an_input_that_storage_does_not_give_now_harms_no_other_row_and_is_read_by_the_next_try(
    start: Start, blocking: New, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    (tmp_path / "in.png").write_bytes(base64.b64decode(PIXEL.partition(",")[2]))
    emulator = start(faults=["slow on=submit seconds=1.0"])
    rows = table(8)
    rows[5]["arguments"]["image_url"] = f"file://{tmp_path}/in.png"
    task = blocking(requests=rows, max_in_flight=8)

    read: Any = ObjectStoragePath.open

    def away(self: ObjectStoragePath, *args: Any, **more: Any) -> Any:
        if self.name == "in.png":
            raise error
        return read(self, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoragePath, "open", away)
        with pytest.raises(FalJobFailed, match="7 succeeded, 1 missing"):
            task.run()
    assert posts(emulator) == 7
    row = task.manifest()["row-005"]
    assert (row["outcome"], row["posts"], row["error"]["billed"]) == ("missing", 0, "no")
    assert "reads it again, and submits the row" in row["error"]["message"]
    assert counts(task.next_try().run()) == {"asked": 8, "succeeded": 8}
    assert posts(emulator) == 8


def test_a_post_that_breaks_lets_the_others_of_its_wave_come_to_their_end(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(faults=["slow on=submit seconds=1.0"])
    task = blocking(requests=table(8), max_in_flight=4)
    apost = FalHook.apost
    asked: list[str] = []

    async def broken(self: FalHook, model: str, request: Any, **more: Any) -> Any:
        asked.append(model)
        if len(asked) == 2:
            while posts(emulator) < 3:
                await asyncio.sleep(0.01)
            raise RuntimeError("a defect")
        return await apost(self, model, request, **more)

    with monkeypatch.context() as patch:
        patch.setattr(FalHook, "apost", broken)
        with pytest.raises(RuntimeError, match="a defect"):
            task.run()
    steps = [state.step for state in journal_of(task).rows.values()]
    assert steps.count(Step.SUBMITTED) == posts(emulator) == 3
    assert steps.count(Step.NOT_TAKEN) == 5
    assert counts(task.next_try().run()) == {"asked": 8, "succeeded": 8}
    assert posts(emulator) == 8


def test_an_outlets_event_carries_the_manifest_and_the_counts(start: Start, blocking: New) -> None:
    start()
    asset = Asset("night")
    task = blocking(outlets=[asset])
    event = SimpleNamespace(extra={})
    task.outlet_events = {asset: event}
    made = task.run()
    assert event.extra == {"manifest_path": made["manifest_path"], "counts": made["counts"]}


def test_the_manifest_holds_the_arguments_only_if_asked_and_always_the_metadata(
    start: Start, blocking: New
) -> None:
    start()
    rows = [{**row, "campaign": "spring", "shot": {"no": 7}} for row in table(1)]
    task = blocking(requests=rows, include_arguments=True)
    task.run()
    row = task.manifest()["row-000"]
    assert row["arguments"] == rows[0]["arguments"]
    assert row["metadata"] == {"campaign": "spring", "shot": {"no": 7}}


def test_a_reply_with_the_result_in_it_is_written_down_before_it_is_landed(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    result = JobResult(handle(), None, (MediaFile("data[0]", PIXEL),), seed=3)
    sent = []

    async def apost(self: FalHook, model: str, request: Any, **more: Any) -> Finished:
        sent.append(model)
        return Finished(replace(result, handle=handle(request_id=f"req-{len(sent)}")))

    monkeypatch.setattr(FalHook, "apost", apost)
    task = blocking()
    assert counts(task.run()) == {"asked": 3, "succeeded": 3}
    assert len(sent) == 3
    assert {Path(row["files"][0]["path"]).suffix for row in task.manifest().values()} == {".png"}
    steps = [state.step for state in journal_of(task).rows.values()]
    assert steps == [Step.DELIVERED] * 3
    # A try that was killed before it landed them lands them now, without a post.
    forget_the_last_segments(task)
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert len(sent) == 3


def test_a_result_in_a_reply_is_not_lost_if_storage_refuses_its_first_record(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    result = JobResult(handle(), None, (MediaFile("data[0]", PIXEL),))
    write = Journal.write
    refused: list[str] = []

    async def apost(self: FalHook, model: str, request: Any, **more: Any) -> Finished:
        return Finished(result)

    def away(self: Journal, entries: Any) -> None:
        entries = list(entries)
        if entries and entries[0].result is not None and not refused:
            refused.append(entries[0].key)
            raise EndpointConnectionError(endpoint_url="http://x")
        write(self, entries)

    monkeypatch.setattr(FalHook, "apost", apost)
    monkeypatch.setattr(Journal, "write", away)
    assert counts(blocking(requests=table(1)).run()) == {"asked": 1, "succeeded": 1}
    assert refused == ["row-000"]


# --- refused before anything is paid ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "words"),
    [
        ("a prompt where a list is due", "list of rows"),
        ({"arguments": {}}, "list of rows"),
        (["a prompt"], "row 0"),
        ([{"prompt": "x"}], "no 'arguments'"),
        ([{"key": "a", "arguments": {}}, {"key": "a", "arguments": {}}], "more than once"),
        ([{"key": "../a", "arguments": {}}], "plain file name"),
        ([{"key": 7, "arguments": {}}], "key must be a text"),
        ([{"arguments": {}, "dialect": "klingon"}], "no dialect 'klingon'"),
        ([{"arguments": {}, "model": "http://x"}], "is an address"),
        ([{"arguments": {"x": float("nan")}}], "arguments.x"),
        ([{"arguments": {}, "when": object()}], "metadata"),
        ([{"arguments": {}, "score": float("nan")}], "metadata"),
        ([{"arguments": {}, "note": "half a pair \ud83d"}], "half of a surrogate pair is in its metadata"),
        ([{"arguments": {"prompt": "half a pair \ud83d"}}], "half of a surrogate pair"),
        ([{"key": "half a pair \ud83d", "arguments": {}}], "half of a surrogate pair is in its key"),
        ([{"arguments": {"image_url": "cat.png"}}], r"row 0: arguments\.image_url is neither"),
        (
            [{"key": "a", "arguments": {"shots": [{"ref_urls": ["data:,", "cat.png"]}]}}],
            r"'a'\): arguments\.shots\[0\]\.ref_urls\[1\] is neither",
        ),
        ("file:///nowhere/rows.jsonl", "cannot be read"),
    ],
)
def test_a_wrong_table_is_refused_by_name_before_anything_is_posted(
    start: Start, blocking: New, requests: Any, words: str
) -> None:
    emulator = start()
    task = blocking(requests=requests)
    with pytest.raises(FalInputError, match=words):
        task.run()
    assert emulator.requests() == []
    assert task.xcoms["failure"]["kind"] == "input"
    assert "manifest_path" not in task.xcoms


def test_all_wrong_rows_are_named_at_once(start: Start, blocking: New) -> None:
    emulator = start()
    rows = [*table(2), {"key": "one"}, {"key": "two", "arguments": 7}, "three"]
    with pytest.raises(FalInputError) as raised:
        blocking(requests=rows).run()
    assert all(name in str(raised.value) for name in ("'one'", "'two'", "row 4"))
    assert emulator.requests() == []


def test_of_many_wrong_rows_the_error_names_some_and_the_log_all_the_others(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(FalBatchOperator, "_say", lambda self, line: said.append(line))
    start()
    rows = [{"key": f"k{n}", "arguments": {"image_url": "cat.png"}} for n in range(50)]
    with pytest.raises(
        FalInputError, match=r"50 problems in 50 rows.*and 30 more, which the log names"
    ) as raised:
        blocking(requests=rows).run()
    told = f"{raised.value} {said}"
    assert [n for n in range(50) if f"'k{n}'" not in told] == []
    assert len(str(raised.value)) < 4000


def test_a_dry_run_refuses_the_rows_that_a_run_would_refuse(start: Start, blocking: New) -> None:
    start()
    rows = [{"arguments": {"image_url": "cat.png"}}, {"arguments": 7}]
    with pytest.raises(FalInputError, match="2 problems in 2 rows"):
        blocking(requests=rows).run(dry_run=True)


def test_arguments_that_do_not_fit_the_schema_are_named_by_row_before_anything_is_posted(
    start: Start, blocking: New
) -> None:
    emulator = start()
    schema = {"properties": {"seed": {"type": "integer"}}, "required": ["seed"]}
    size = {"width": 64, "height": 48}
    rows = [
        {"key": "good", "arguments": {"prompt": "a", "seed": 1, "image_size": size}},
        {"key": "bad", "arguments": {"prompt": "b", "seed": "one", "image_size": size}},
        {"key": "none", "arguments": {"prompt": "c", "image_size": size}},
        {"key": "other", "model": "flux/schnell", "arguments": {"prompt": "d", "image_size": size}},
    ]
    with pytest.raises(FalInputError) as raised:
        blocking(requests=rows, arguments_schema=schema).run()
    assert "'bad'" in str(raised.value)
    assert "'none'" in str(raised.value)
    assert "'good'" not in str(raised.value)
    assert "'other'" not in str(raised.value)
    assert emulator.requests() == []


def test_a_batch_larger_than_meant_is_refused(start: Start, blocking: New) -> None:
    emulator = start()
    with pytest.raises(FalInputError, match="max_jobs=2"):
        blocking(max_jobs=2).run()
    assert emulator.requests() == []


def test_a_dry_run_says_what_would_be_submitted_and_does_nothing(start: Start, blocking: New) -> None:
    emulator = start()
    task = blocking()
    told = task.run(dry_run=True)
    assert (told["rows"], told["would_submit"], told["models"]) == (3, 3, {MODEL: 3})
    assert emulator.requests() == []
    assert not Path(task.place.removeprefix("file://")).exists()
    task.run()
    assert task.next_try().run(dry_run=True)["would_submit"] == 0


def test_a_manifest_path_of_another_run_is_refused_before_anything_is_paid(
    start: Start, blocking: New
) -> None:
    emulator = start()
    task = blocking()
    task.run()
    other = blocking()
    other.run_id = "tomorrow"
    with pytest.raises(FalInputError, match="run night of"):
        other.run()
    assert posts(emulator) == 3
    assert set(task.outcomes().values()) == {"succeeded"}
    # Nothing leads from the refused run to the media of the other one.
    assert "manifest_path" not in other.xcoms


def test_a_manifest_without_its_journal_is_refused(start: Start, blocking: New) -> None:
    emulator = start()
    task = blocking()
    task.run()
    journal = Path(task.place.removeprefix("file://"), "manifest.journal")
    journal.rename(journal.with_name("elsewhere"))
    with pytest.raises(FalInputError, match="not its journal"):
        task.next_try().run()
    assert posts(emulator) == 3


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"destination": None}, "destination or manifest_path"),
        ({"dialect": "fall"}, "dialect"),
        ({"on_clear": "regenerate"}, "on_clear"),
        ({"on_flagged": "drop"}, "on_flagged"),
        ({"on_unknown_submit": "guess"}, "on_unknown_submit"),
        ({"on_changed_arguments": "ignore"}, "on_changed_arguments"),
        ({"max_in_flight": 0}, "max_in_flight"),
        ({"max_unfinished": 0}, "max_unfinished"),
        ({"max_jobs": True}, "max_jobs"),
        ({"land_every": 1.5}, "land_every"),
        ({"land_after": -1}, "land_after"),
        ({"min_success_ratio": 1.1}, "min_success_ratio"),
        ({"rate_limit": 0}, "rate_limit"),
        ({"watch": "stare"}, "watch"),
        ({"timeout": 0}, "timeout"),
        ({"queue_timeout": 90000}, "queue_timeout"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_when_the_dag_is_parsed(
    options: dict[str, Any], name: str
) -> None:
    with pytest.raises(ValueError, match=name):
        FalBatchOperator(task_id="batch", **{"requests": [], "destination": "file:///x", **options})


@pytest.mark.parametrize("clock", [None, "success", {}, {"schema_version": 1}])
def test_an_event_of_another_kind_fails_loudly_and_no_job_is_given_up(
    start: Start, tmp_path: Path, clock: Any
) -> None:
    emulator = start(run_seconds=2.0)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(2), **MODES["deferrable"])
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    with pytest.raises(FalProtocolError, match="event cannot be understood"):
        task.operator().resume_execution(deferral.value.method_name, {"event": clock}, task.context)
    assert counts(task.next_try().run()) == {"asked": 2, "succeeded": 2}
    assert posts(emulator) == 2


@pytest.mark.parametrize("file", ["table.jsonl", "earlier.jsonl", "schema.json"])
@pytest.mark.parametrize("error", [OSError("SlowDown"), EndpointConnectionError(endpoint_url="http://x")])
def test_a_file_that_storage_does_not_give_now_is_read_by_a_retry_which_takes_up_what_runs(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, error: Exception
) -> None:
    emulator = start(run_seconds=2.0)
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, table(3))))
    (tmp_path / "schema.json").write_text(json.dumps({"required": ["prompt"]}))
    write_manifest(Manifest(()), ObjectStoragePath(f"file://{tmp_path}/earlier.jsonl"))
    task = BatchTask(
        f"file://{tmp_path}/night",
        requests=f"file://{tmp_path}/table.jsonl",
        skip_existing=f"file://{tmp_path}/earlier.jsonl",
        arguments_schema=f"file://{tmp_path}/schema.json",
        **MODES["deferrable"],
    )
    read: Any = ObjectStoragePath.read_bytes

    def away(self: ObjectStoragePath) -> bytes:
        if self.name == file:
            raise error
        return bytes(read(self))

    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoragePath, "read_bytes", away)
        with pytest.raises(FalProtocolError) as raised:
            task.operator().execute(task.context)
    assert not isinstance(raised.value, AirflowFailException)
    assert (raised.value.billed, raised.value.may_run, posts(emulator)) == ("no", False, 0)
    with pytest.raises(TaskDeferred) as deferral:
        task.next_try().operator().execute(task.context)
    event = fired(deferral.value)
    with monkeypatch.context() as patch:
        patch.setattr(ObjectStoragePath, "read_bytes", away)
        with pytest.raises(FalProtocolError, match="3 rows were submitted before") as raised:
            task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    assert not isinstance(raised.value, AirflowFailException)
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


def test_a_table_that_is_gone_when_the_task_wakes_is_said_not_to_have_cost_nothing(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(run_seconds=2.0)
    (tmp_path / "table.jsonl").write_text("\n".join(map(json.dumps, table(2))))
    task = BatchTask(
        f"file://{tmp_path}/night", requests=f"file://{tmp_path}/table.jsonl", **MODES["deferrable"]
    )
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    event = fired(deferral.value)
    (tmp_path / "table.jsonl").rename(tmp_path / "elsewhere.jsonl")
    with pytest.raises(FalInputError, match="2 rows were submitted before") as raised:
        task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    (tmp_path / "elsewhere.jsonl").rename(tmp_path / "table.jsonl")
    assert counts(task.next_try(cleared=True).run()) == {"asked": 2, "succeeded": 2}
    assert posts(emulator) == 2


# --- submits that go wrong ----------------------------------------------------------------------------------


def test_a_lost_reply_is_never_posted_again_and_the_others_are_landed(start: Start, anywhere: New) -> None:
    emulator = start(faults=[{"fault": "lost-reply", "on": "submit", "match": f"{PROMPT} 001", "times": 1}])
    task = anywhere(requests=table(3))
    with pytest.raises(FalSubmitOutcomeUnknown):
        task.run()
    assert task.outcomes() == {"row-000": "succeeded", "row-001": "unknown", "row-002": "succeeded"}
    for cleared in (False, True):
        with pytest.raises(FalSubmitOutcomeUnknown):
            task.next_try(cleared=cleared).run()
    assert posts(emulator) == 3
    row = task.manifest()["row-001"]
    assert (row["posts"], row["error"]["may_run"], row["error"]["billed"]) == (1, True, "maybe")


def test_a_lost_reply_is_posted_again_by_the_next_try_if_the_user_says_so(
    start: Start, blocking: New
) -> None:
    emulator = start(faults=[{"fault": "lost-reply", "on": "submit", "match": f"{PROMPT} 001", "times": 1}])
    task = blocking(on_unknown_submit="resubmit")
    with pytest.raises(FalJobFailed):
        task.run()
    assert posts(emulator) == 3
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 4
    assert task.manifest()["row-001"]["posts"] == 2


def test_a_gateway_that_answers_no_submit_costs_one_wave_at_most(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 4)
    emulator = start(faults=["lost-reply on=submit times=4"])
    task = blocking(requests=table(12))
    with pytest.raises(FalJobFailed, match="8 missing"):
        task.run()
    assert posts(emulator) == 4
    with pytest.raises(FalSubmitOutcomeUnknown):
        task.next_try().run()
    assert posts(emulator) == 12
    assert sorted(task.outcomes().values()) == ["succeeded"] * 8 + ["unknown"] * 4


def test_an_account_without_balance_stops_the_submits_and_lands_what_runs(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 2)
    emulator = start()
    emulator.add_fault(
        {"fault": "turned-away", "because": "no-balance", "on": "submit", "match": f"{PROMPT} 002"}
    )
    task = blocking(requests=table(9), max_in_flight=1)
    with pytest.raises(FalBalanceError):
        task.run()
    assert counts({"counts": dict(tally(task))}) == {"succeeded": 2, "missing": 7}
    assert posts(emulator) == 3
    emulator.clear_faults()
    assert counts(task.next_try().run()) == {"asked": 9, "succeeded": 9}
    assert posts(emulator) == 3 + 7


def tally(task: BatchTask) -> dict[str, int]:
    outcomes = list(task.outcomes().values())
    return {outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))}


def test_a_429_slows_all_down_and_costs_nothing(start: Start, blocking: New) -> None:
    emulator = start(faults=["rate-limit on=submit times=1 retry_after=0.4"])
    assert counts(blocking(max_in_flight=3).run()) == {"asked": 3, "succeeded": 3}
    submits = calls(emulator, "submit")
    assert len(submits) == 4
    assert emulator.account()["totals"]["posts_accepted"] == 3


# --- jobs that go wrong -------------------------------------------------------------------------------------


def test_a_gateway_that_takes_no_job_is_said_to_have_billed_nothing_and_when_to_come_again(
    start: Start, new: New
) -> None:
    emulator = start(faults=["rate-limit retry_after=1000"])
    task = new(requests=table(3))
    with pytest.raises(FalJobFailed, match="It was not billed") as raised:
        task.run()
    assert (raised.value.failure.retry_after, raised.value.may_run) == (1000.0, False)
    assert task.xcoms["failure"]["billed"] == "no"
    delay = FalRetryPolicy().evaluate(raised.value, 1, 3).retry_delay
    assert delay == timedelta(seconds=1000)
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_each_row_has_its_own_outcome_and_a_retry_posts_only_what_ended_unbilled(
    start: Start, anywhere: New
) -> None:
    rules: dict[str, dict[str, Any]] = {
        "001": {"failure": "refused"},
        "002": {"failure": "completed-error", "error_type": "runner_disconnected"},
        "003": {"failure": "result-422"},
        "004": {"flagged": True},
    }
    emulator = start(
        faults=[{"fault": "job", "match": f"{PROMPT} {n}", "times": 1, **rule} for n, rule in rules.items()],
        **SHORT,
    )
    task = anywhere(requests=table(6))
    with pytest.raises(FalJobFailed) as raised:
        task.run()
    assert "A retry takes up what runs" in str(raised.value)
    assert list(task.outcomes().values()) == [
        "succeeded",
        "refused",
        "failed",
        "failed",
        "flagged",
        "succeeded",
    ]
    assert posts(emulator) == 6
    with pytest.raises((FalContentRefused, FalInputError)) as again:
        task.next_try().run()
    assert isinstance(again.value, AirflowFailException)
    assert posts(emulator) == 7
    assert list(task.outcomes().values()) == [
        "succeeded",
        "refused",
        "succeeded",
        "failed",
        "flagged",
        "succeeded",
    ]
    assert [row["posts"] for row in task.manifest().values()] == [1, 1, 2, 1, 1, 1]
    made = task.next_try(cleared=True).run()
    assert counts(made) == {"asked": 6, "succeeded": 5, "flagged": 1}
    assert posts(emulator) == 9


@pytest.mark.parametrize(("on_flagged", "fails"), [("keep", False), ("fail", True)])
def test_a_flagged_row_is_landed_and_counts_as_the_policy_says(
    start: Start, blocking: New, on_flagged: str, fails: bool
) -> None:
    start(flagged=True)
    task = blocking(on_flagged=on_flagged)
    if fails:
        with pytest.raises(FalError):
            task.run()
    else:
        task.run()
    assert {row["outcome"] for row in task.manifest().values()} == {"flagged"}
    assert all(row["files"] for row in task.manifest().values())


@pytest.mark.parametrize(("ratio", "fails"), [(0.6, False), (0.7, True)])
def test_the_task_fails_below_the_ratio_of_successes_that_was_asked_for(
    start: Start, blocking: New, ratio: float, fails: bool
) -> None:
    start(faults=[{"fault": "job", "match": f"{PROMPT} 001", "failure": "refused"}])
    task = blocking(min_success_ratio=ratio)
    if fails:
        with pytest.raises(
            FalContentRefused, match=r"Of 3 rows, 2 are a success.*What went wrong with 1 of them: "
        ):
            task.run()
    else:
        assert counts(task.run()) == {"asked": 3, "succeeded": 2, "refused": 1}


def test_a_ratio_is_taken_as_it_is_written() -> None:
    """As binary numbers, 0.55 times 100 is more than 55; and two thirds have no end."""

    def enough(successes: int, rows: int, ratio: float) -> bool:
        made = [
            ManifestRow(
                key=str(n),
                index=n,
                model=MODEL,
                dialect="fal",
                fal_conn_id="fal_default",
                outcome="succeeded" if n < successes else "missing",
                arguments_sha256=None,
            )
            for n in range(rows)
        ]
        policy = {"on_flagged": "keep", "on_unknown_submit": "fail"}
        return shortfall(made, [], min_success_ratio=ratio, stopped=None, **policy) is None

    for successes, rows, ratio in (
        (55, 100, 0.55),
        (7, 25, 0.28),
        (3, 10, 0.1 + 0.2),
        (2, 3, 2 / 3),
        (0, 5, 0),
    ):
        assert enough(successes, rows, ratio), ratio
        assert not enough(successes - 1, rows, ratio) or successes == 0, ratio


FAIL_FAST: dict[str, tuple[dict[str, Any], str, type[FalError], bool]] = {
    "refused": (
        {"fault": "job", "failure": "refused", "run_seconds": 0},
        "refused",
        FalContentRefused,
        False,
    ),
    "failed for a reason that may pass": (
        {
            "fault": "job",
            "failure": "completed-error",
            "error_type": "runner_disconnected",
            "run_seconds": 0,
        },
        "failed",
        FalJobFailed,
        True,
    ),
    "unknown": ({"fault": "lost-reply", "on": "submit"}, "unknown", FalSubmitOutcomeUnknown, False),
}


@pytest.mark.parametrize(("fault", "outcome", "error", "mended"), FAIL_FAST.values(), ids=FAIL_FAST)
def test_failing_fast_posts_nothing_more_until_a_retry_mends_the_row_or_a_clear_asks_for_the_rest(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: dict[str, Any],
    outcome: str,
    error: type[FalError],
    mended: bool,
) -> None:
    monkeypatch.setattr(session, "WAVE", 2)
    emulator = start(faults=[{"match": f"{PROMPT} 001", "times": 1, **fault}], run_seconds=1.0)
    # What the worker submits and the trigger sees fail is known to the next leg of the same try, too.
    task = BatchTask(
        f"file://{tmp_path}/night",
        requests=table(6),
        fail_fast=True,
        max_unfinished=2,
        **MODES["deferrable"],
    )
    with pytest.raises(error):
        task.run()
    assert posts(emulator) == 2
    assert tally(task) == {outcome: 1, "missing": 4, "succeeded": 1}
    if not mended:
        with pytest.raises(error):
            task.next_try().run()
        assert posts(emulator) == 2
    if outcome == "unknown":
        with pytest.raises(FalSubmitOutcomeUnknown):
            task.next_try(cleared=True).run()
        assert posts(emulator) == 6
    else:
        assert counts(task.next_try(cleared=not mended).run()) == {"asked": 6, "succeeded": 6}
        assert posts(emulator) == 7


def test_a_landing_that_fails_fast_holds_up_no_next_try_that_lands_it(start: Start, blocking: New) -> None:
    emulator = start(faults=["html on=media status=200 times=1"], run_seconds=1.0)
    task = blocking(requests=table(4), fail_fast=True, max_unfinished=1)
    with pytest.raises(FalJobFailed):
        task.run()
    assert posts(emulator) < 4
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4


def test_a_job_out_of_time_is_cancelled_and_named_and_the_others_are_landed(start: Start, new: New) -> None:
    emulator = start(**SHORT)
    emulator.add_fault(fault="job", match=f"{PROMPT} 001", stuck=True)
    task = new(requests=table(3), queue_timeout=1.5, timeout=20)
    with pytest.raises(FalJobFailed, match="1 timed_out"):
        task.run()
    row = task.manifest()["row-001"]
    assert (row["outcome"], row["error"]["may_run"], row["error"]["billed"]) == ("timed_out", False, "no")
    assert "queue_timeout" in row["error"]["message"]
    assert len(calls(emulator, "cancel")) == 1
    # It was removed from the queue, so that it is safe to post it again.
    emulator.clear_faults()
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 4


@pytest.mark.parametrize("refused", [2, 0], ids=["among-refused", "alone"])
def test_a_time_out_of_a_job_that_may_run_is_retried_and_the_retry_lands_its_result(
    start: Start, new: New, refused: int
) -> None:
    emulator = start(run_seconds=6.0, cancel="ignored")
    for n in range(refused):
        emulator.add_fault(fault="job", match=f"{PROMPT} 00{n}", failure="refused", run_seconds=0)
    task = new(requests=table(3), timeout=1.0)
    with pytest.raises(FalTimeout, match="A retry takes up what runs") as raised:
        task.run()
    assert not isinstance(raised.value, AirflowFailException)
    assert raised.value.may_run
    if refused:
        with pytest.raises(FalContentRefused, match="1 succeeded, 2 refused"):
            task.next_try().run(timeout=60.0)
    else:
        assert counts(task.next_try().run(timeout=60.0)) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


def failure_of_rows(*failures: Failure, outcome: str = "failed", **policy: Any) -> Failure:
    """Return what becomes of a batch of one row more than failures, which has the outcome."""
    rows = [
        ManifestRow(
            key=str(n),
            index=n,
            model=MODEL,
            dialect="fal",
            fal_conn_id="fal_default",
            outcome=failure.outcome if failure else outcome,
            arguments_sha256=None,
            error=RowError.of(failure) if failure else None,
            posts=1 if failure or outcome != "missing" else 0,
        )
        for n, failure in enumerate([*failures, None])
    ]
    policy = {"on_flagged": "keep", "on_unknown_submit": "fail", "stopped": None, **policy}
    found = shortfall(rows, failures, min_success_ratio=1.0, **policy)
    assert found is not None
    return found


def gone_wrong(kind: FailureKind, **more: Any) -> Failure:
    return Failure(kind, what="It went wrong.", retry_does="does something.", **{"billed": "maybe", **more})


@pytest.mark.parametrize(
    "kind",
    [FailureKind.TIMEOUT, FailureKind.QUEUE_TIMEOUT, FailureKind.JOB_CANCELLED, FailureKind.JOB_FAILED],
)
def test_what_ended_for_good_is_not_said_to_be_made_by_a_retry(kind: FailureKind) -> None:
    failed = failure_of_rows(gone_wrong(kind), outcome="succeeded")
    assert failed.kind is kind
    assert "A retry submits nothing" in str(failed)
    # A retry that mends another row is made for that one.
    other = gone_wrong(FailureKind.JOB_FAILED, transient=True, billed="no")
    assert "A retry takes up what runs" in str(failure_of_rows(gone_wrong(kind), other))


@pytest.mark.parametrize(
    ("failures", "outcome", "billed"),
    [
        ([], "missing", "no"),
        ([{"billed": "no"}], "missing", "no"),
        ([{"billed": "no"}], "flagged", "maybe"),
        ([{"billed": "no"}, {"billed": "maybe"}], "missing", "maybe"),
    ],
)
def test_a_batch_is_said_to_be_unbilled_only_if_none_of_its_rows_may_have_been_billed(
    failures: list[dict[str, Any]], outcome: str, billed: str
) -> None:
    found = [gone_wrong(FailureKind.JOB_FAILED, **each) for each in failures]
    assert failure_of_rows(*found, outcome=outcome, on_flagged="fail").billed == billed


def test_media_that_cannot_be_had_now_are_landed_by_the_next_try_without_a_post(
    start: Start, anywhere: New
) -> None:
    emulator = start(faults=["html on=media status=200 times=1"], **SHORT)
    task = anywhere(requests=table(1))
    with pytest.raises(FalJobFailed):
        task.run()
    assert task.outcomes() == {"row-000": "failed"}
    assert counts(task.next_try().run()) == {"asked": 1, "succeeded": 1}
    assert posts(emulator) == 1


class MediaHost:
    """A host that refuses its files with a status until it is told otherwise, and a job whose result lies there."""

    def __init__(self, emulator: Emulator, status: int) -> None:
        self.status = status
        self.asked = 0
        self.server = ScriptedServer(self._answer)
        emulator.add_fault(
            {"fault": "body", "on": "result", "images": [{"url": f"{self.server.url}/old.png"}]}
        )

    def _answer(self, exchange: Exchange) -> None:
        self.asked += 1
        if self.status == 200 or exchange.path == "/fresh.png":
            exchange.answer(base64.b64decode(PIXEL.partition(",")[2]), "image/png")
        else:
            exchange.answer(b"", "", self.status)


@pytest.fixture
def away(tmp_path: Path, start: Start) -> Iterator[Callable[[int], tuple[BatchTask, Emulator, MediaHost]]]:
    """Return a function that brings a batch of one row to its landing, whose media host refuses the file."""
    with contextlib.ExitStack() as stack:

        def begin(status: int) -> tuple[BatchTask, Emulator, MediaHost]:
            emulator = start()
            host = MediaHost(emulator, status)
            stack.enter_context(host.server)
            task = BatchTask(f"file://{tmp_path}/night", requests=table(1), **MODES["blocking"])
            return task, emulator, host

        yield begin


Away = Callable[[int], "tuple[BatchTask, Emulator, MediaHost]"]


def test_a_file_that_its_host_refuses_with_403_is_landed_by_the_next_try_without_a_post(away: Away) -> None:
    task, emulator, host = away(403)
    with pytest.raises(FalJobFailed, match="HTTP 403"):
        task.run()
    assert host.asked == 2
    host.status = 200
    assert counts(task.next_try().run()) == {"asked": 1, "succeeded": 1}
    assert posts(emulator) == 1


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_where_the_result_said_is_landed_from_its_fresh_address(
    away: Away, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, emulator, host = away(status)
    attempt = media.Lander.attempt

    async def moved(self: media.Lander, result: Any, *args: Any, **more: Any) -> Any:
        landing = await attempt(self, result, *args, **more)
        emulator.clear_faults()
        fresh = [{"url": f"{host.server.url}/fresh.png"}]
        emulator.add_fault({"fault": "body", "on": "result", "images": fresh})
        return landing

    monkeypatch.setattr(media.Lander, "attempt", moved)
    assert counts(task.run()) == {"asked": 1, "succeeded": 1}
    assert len(calls(emulator, "result")) == 2
    assert posts(emulator) == 1


@pytest.mark.parametrize("status", [403, 404])
def test_a_file_is_not_given_up_while_the_gateway_does_not_say_whether_it_has_another_address(
    away: Away, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, emulator, host = away(status)
    attempt = media.Lander.attempt

    async def locked(self: media.Lander, result: Any, *args: Any, **more: Any) -> Any:
        landing = await attempt(self, result, *args, **more)
        emulator.clear_faults()
        emulator.add_fault({"fault": "turned-away", "because": "locked", "on": "result"})
        return landing

    with monkeypatch.context() as patch:
        patch.setattr(media.Lander, "attempt", locked)
        for _ in range(2):
            with pytest.raises(FalJobFailed):
                task.run()
            task.next_try()
    host.status = 200
    assert counts(task.next_try(cleared=True).run()) == {"asked": 1, "succeeded": 1}
    assert posts(emulator) == 1


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 2)])
def test_a_file_that_neither_its_host_nor_the_gateway_has_is_made_anew_by_a_clear_only(
    away: Away, status: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, emulator, host = away(status)

    async def forgotten(self: FalHook, job: Any) -> Any:
        raise FalResultExpired(replace(unknown_outcome("x"), kind=FailureKind.RESULT_EXPIRED, may_run=True))

    with monkeypatch.context() as patch:
        patch.setattr(FalHook, "aresult", forgotten)
        for number in range(1, 4):
            error = FalJobFailed if number < tries else FalResultExpired
            with pytest.raises(error):
                task.run()
            task.next_try()
    assert posts(emulator) == 1
    host.status = 200
    assert counts(task.next_try(cleared=True).run()) == {"asked": 1, "succeeded": 1}
    assert posts(emulator) == 2


def test_storage_that_takes_a_file_not_now_harms_no_other_row_and_the_next_try_lands_it(
    start: Start, new: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SHORT)
    task = new(requests=table(4))

    def away(source: Path, target: ObjectStoragePath) -> None:
        if "row-002" in str(target):
            raise EndpointConnectionError(endpoint_url="http://x")
        storage.put(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(media, "put", away)
        with pytest.raises(FalJobFailed, match="3 succeeded, 1 failed"):
            task.run()
    assert "storage says EndpointConnectionError" in task.manifest()["row-002"]["error"]["message"]
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4


@pytest.mark.parametrize(
    ("template", "length"),
    [("{key}-{request_id}", 190), ("{key}-{seed}", 190), ("{key}-{seed:d}", 7)],
    ids=["id", "seed", "no-seed"],
)
def test_a_name_that_a_result_could_make_impossible_is_refused_before_anything_is_posted(
    start: Start, blocking: New, template: str, length: int
) -> None:
    emulator = start()
    rows = [{**table(1)[0], "key": "k" * length}]
    with pytest.raises(FalInputError, match="name of a landed file"):
        blocking(requests=rows, name_template=template).run()
    assert emulator.requests() == []


@pytest.mark.parametrize("template", ["{request_id}", "x/{request_id}", "{hash}"])
def test_a_file_may_be_named_by_what_only_its_result_knows(
    start: Start, blocking: New, template: str
) -> None:
    emulator = start()
    task = blocking(name_template=template)
    assert counts(task.run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3
    for row in task.manifest().values():
        [file] = row["files"]
        known = {"request_id": row["request_id"], "hash": file["sha256"][:16]}
        assert file["path"].endswith(f"/{template.format(**known)}.jpg")


def test_a_name_that_fails_when_the_job_is_paid_for_is_corrected_by_a_clear_without_a_post(
    start: Start, new: New
) -> None:
    emulator = start(faults=[f"body on=result seed={10**60}"], **SHORT)
    task = new(requests=[{**table(1)[0], "key": "k" * 150}], name_template="{key}-{seed}")
    with pytest.raises(FalInputError):
        task.run()
    [row] = task.manifest().values()
    assert (row["outcome"], row["error"]["billed"]) == ("failed", "maybe")
    assert "no name of a file" in row["error"]["message"]
    assert "Nothing was sent" not in row["error"]["message"]
    assert counts(task.next_try(cleared=True).run(name_template="{key}")) == {"asked": 1, "succeeded": 1}
    assert posts(emulator) == 1


def test_a_landing_that_breaks_lets_the_others_be_written_down(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=2.0)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(4), **MODES["deferrable"])
    with pytest.raises(TaskDeferred) as deferral:
        task.operator().execute(task.context)
    event = fired(deferral.value)
    assert (event["ready"], event["running"]) == (4, 0)
    attempt = media.Lander.attempt

    async def broken(self: media.Lander, result: Any, *args: Any, **more: Any) -> Any:
        if args[1].key == "row-002":
            raise RuntimeError("a defect")
        return await attempt(self, result, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(media.Lander, "attempt", broken)
        with pytest.raises(RuntimeError, match="a defect"):
            task.operator().resume_execution(deferral.value.method_name, {"event": event}, task.context)
    landed = {key for key, state in journal_of(task).rows.items() if state.step is Step.DELIVERED}
    assert landed == {"row-000", "row-001", "row-003"}
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4


def test_a_landing_that_breaks_cuts_off_no_post_that_was_sent(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 2)
    monkeypatch.setattr(session, "LAST_WAVE_SECONDS", 0.0)
    emulator = start(faults=[f"slow on=submit match={n} seconds=3" for n in ("002", "003")])
    task = blocking(requests=table(6))

    async def broken(self: media.Lander, *args: Any, **more: Any) -> Any:
        raise RuntimeError("a defect")

    with monkeypatch.context() as patch:
        patch.setattr(media.Lander, "attempt", broken)
        with pytest.raises(RuntimeError, match="a defect"):
            task.run()
    steps = [state.step for state in journal_of(task).rows.values()]
    assert Step.INTENT not in steps
    assert len(steps) - steps.count(Step.NOT_TAKEN) == posts(emulator)
    assert counts(task.next_try().run()) == {"asked": 6, "succeeded": 6}
    assert posts(emulator) == 6


# --- kills --------------------------------------------------------------------------------------------------


def test_a_try_killed_between_its_posts_and_their_record_leaves_one_wave_unknown_and_posts_the_rest(
    start: Start, blocking_anywhere: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 3)
    emulator = start()
    write = Journal.write

    class Killed(BaseException):
        pass

    def killed(self: Journal, entries: Any) -> None:
        entries = list(entries)
        if self._written >= 3 and entries and entries[0].step is not Step.INTENT:
            raise Killed
        write(self, entries)

    task = blocking_anywhere(requests=table(9))
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "write", killed)
        with pytest.raises(Killed):
            task.run()
    posted = posts(emulator)
    assert posted in (3, 6)
    with pytest.raises(FalSubmitOutcomeUnknown):
        task.next_try().run()
    assert posts(emulator) == 9
    found = tally(task)
    assert found["unknown"] <= 3
    assert found["unknown"] + found["succeeded"] == 9


@pytest.mark.parametrize("forgotten", [1, 2])
def test_a_try_killed_while_landing_lands_the_rest_without_a_post(
    start: Start, anywhere: New, forgotten: int
) -> None:
    emulator = start(**SHORT)
    task = anywhere(requests=table(4))
    task.run()
    before = {key: row["files"] for key, row in task.manifest().items()}
    forget_the_last_segments(task, forgotten)
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4
    assert {key: row["files"] for key, row in task.manifest().items()} == before


def test_the_next_try_re_attaches_to_what_runs(start: Start, anywhere: New) -> None:
    emulator = start(run_seconds=2.0)
    task = anywhere(requests=table(4))
    with pytest.raises(TaskDeferred):
        task.operator(**MODES["deferrable"]).execute(task.context)
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4


def test_a_try_that_was_taken_for_dead_posts_nothing_once_its_retry_has_begun(
    start: Start, blocking_anywhere: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "WAVE", 2)
    emulator = start()
    task = blocking_anywhere(requests=table(6))
    owner = Owner("nights", "night", "batch")
    folder = ObjectStoragePath(f"{task.place}/manifest.journal")
    write = Journal.write
    opened: list[Journal] = []

    def met(self: Journal, entries: Any) -> None:
        entries = list(entries)
        write(self, entries)
        if not opened and entries and entries[0].key == "row-002":
            opened.append(Journal.opened(folder, owner))

    monkeypatch.setattr(Journal, "write", met)
    with pytest.raises(FalProtocolError, match="Another try"):
        task.run()
    assert posts(emulator) == 2
    # What it had meant to post is known not to be posted, and is posted by the one that took over.
    assert counts(task.next_try().run()) == {"asked": 6, "succeeded": 6}
    assert posts(emulator) == 6


@pytest.mark.parametrize(
    ("states", "cancels"),
    [({"running"}, 0), ({"deferred"}, 0), (set(), 0), ({"failed"}, 3), ({"restarting"}, 0)],
)
def test_a_kill_cancels_the_jobs_only_if_a_user_has_marked_the_task(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: set[str], cancels: int
) -> None:
    emulator = start(run_seconds=60.0)
    monkeypatch.setattr(task_states, "states_of", lambda ti: states)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(3), **MODES["deferrable"])
    running = task.operator()
    with pytest.raises(TaskDeferred):
        running.execute(task.context)
    running.on_kill()
    assert len(calls(emulator, "cancel")) == cancels


@pytest.mark.parametrize(
    ("told", "error"), [("Trigger timeout", FalTimeout), ("Trigger failure", FalProtocolError)]
)
def test_a_batch_whose_wait_ends_without_an_event_names_the_fate_and_goes_on_in_the_next_try(
    start: Start, tmp_path: Path, told: str, error: type[FalError]
) -> None:
    emulator = start(run_seconds=1.0)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(3), **MODES["deferrable"])
    with pytest.raises(TaskDeferred):
        task.operator().execute(task.context)
    with pytest.raises(error, match="takes up what runs") as raised:
        task.operator().resume_execution("__fail__", {"error": told}, task.context)
    assert raised.value.may_run
    assert task.xcoms["failure"]["may_run"]
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


@pytest.mark.parametrize("gone", [False, True])
def test_a_cleared_batch_asks_for_the_jobs_that_were_not_found_before_it_pays_for_others(
    start: Start, new: New, gone: bool
) -> None:
    emulator = start(run_seconds=0.5, faults=["server-error on=status status=404"])
    task = new(requests=table(3), poke_interval=0.02)
    with pytest.raises(FalError):
        task.run()
    assert posts(emulator) == 3
    if gone:
        with pytest.raises(FalError):
            task.next_try(cleared=True).run()
    else:
        emulator.clear_faults()
        assert counts(task.next_try(cleared=True).run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == (6 if gone else 3)


Two = tuple["Emulator", "Emulator"]


@pytest.fixture
def two_gateways(start: Start, monkeypatch: pytest.MonkeyPatch) -> Two:
    """Return the gateways of the connections ``fal_default``, where results are long, and ``fal_other``."""
    one = start(run_seconds=0.5, faults=["oversized on=result size=2000000"])
    other = start()
    set_connection(monkeypatch, one.url)
    return one, other


def submitted_with_long_results(task: BatchTask, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a try that is killed when the results are there, which are too long for the journal."""

    async def killed(self: session.Session, keys: Any) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_land", killed)
        with pytest.raises(OSError, match="killed"):
            task.run()
    assert Step.SUCCEEDED in {state.step for state in journal_of(task).rows.values()}


def test_a_try_with_another_connection_fetches_results_through_that_of_their_jobs(
    two_gateways: Two, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_gateways
    task = blocking()
    submitted_with_long_results(task, monkeypatch)
    assert counts(task.next_try().run(fal_conn_id="fal_other")) == {"asked": 3, "succeeded": 3}
    assert (posts(one), other.requests()) == (3, [])
    assert {row["fal_conn_id"] for row in task.manifest().values()} == {"fal_default"}


def test_a_connection_that_is_gone_gives_up_no_result_of_its_jobs(
    two_gateways: Two, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = two_gateways
    task = blocking()
    submitted_with_long_results(task, monkeypatch)
    with monkeypatch.context() as patch:
        patch.delenv("AIRFLOW_CONN_FAL_DEFAULT")
        for cleared in (False, True):
            with pytest.raises(FalError):
                task.next_try(cleared=cleared).run(fal_conn_id="fal_other")
    messages = [row["error"]["message"] for row in task.manifest().values()]
    assert any("The connection 'fal_default'" in message for message in messages)
    assert counts(task.next_try(cleared=True).run(fal_conn_id="fal_other")) == {"asked": 3, "succeeded": 3}
    assert (posts(one), other.requests()) == (3, [])


@pytest.mark.parametrize("readable", [True, False])
def test_a_cleared_batch_with_another_connection_asks_that_of_the_jobs_that_were_not_found(
    two_gateways: Two, blocking: New, monkeypatch: pytest.MonkeyPatch, readable: bool
) -> None:
    one, other = two_gateways
    one.clear_faults()
    one.add_fault("server-error on=status status=404")
    task = blocking(poke_interval=0.02, timeout=5.0)
    with pytest.raises(FalError):
        task.run()
    one.clear_faults()
    with monkeypatch.context() as patch:
        if not readable:
            patch.delenv("AIRFLOW_CONN_FAL_DEFAULT")
        with contextlib.suppress(FalError):
            task.next_try(cleared=True).run(fal_conn_id="fal_other")
    assert (posts(one), other.requests()) == (3, [])
    if readable:
        assert set(task.outcomes().values()) == {"succeeded"}


def test_rows_that_wait_for_room_are_submitted_although_all_that_ran_have_failed(
    start: Start, new: New
) -> None:
    emulator = start(run_seconds=0.3, faults=["job match=lighthouse failure=refused"])
    task = new(requests=table(9), max_unfinished=3, land_after=0.5)
    with pytest.raises(FalContentRefused):
        task.run()
    assert tally(task) == {"refused": 9}
    assert posts(emulator) == 9


def test_a_post_that_was_refused_does_not_hide_an_earlier_one_that_may_be_billed(
    start: Start, blocking: New
) -> None:
    emulator = start(faults=["lost-reply on=submit times=1"])
    task = blocking(requests=table(1), on_unknown_submit="resubmit")
    with pytest.raises(FalError):
        task.run()
    emulator.add_fault("turned-away on=submit because=locked")
    with pytest.raises(FalBalanceError) as raised:
        task.next_try().run()
    assert raised.value.failure.billed == "maybe"
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_a_row_that_an_earlier_manifest_gets_too_takes_no_place_of_the_file_that_the_other_batch_has_landed(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(run_seconds=0.0)

    def batch(name: str, **options: Any) -> BatchTask:
        path = f"file://{tmp_path}/{name}.jsonl"
        place = f"file://{tmp_path}/all"
        return BatchTask(place, run_id=name, manifest_path=path, **{**MODES["blocking"], **options})

    batch("before").run(requests=[{**table(1)[0], "key": "another"}])
    ours = batch("ours", skip_existing=[f"file://{tmp_path}/before.jsonl"])
    emulator.add_fault("server-error on=media status=500")
    with pytest.raises(FalError):
        ours.run(requests=table(1, seed=7))
    emulator.clear_faults()
    batch("theirs").run(requests=table(1))
    # As if the earlier batch had been cleared meanwhile, and had made the same row.
    for suffix in ("jsonl", "summary.json"):
        (tmp_path / f"theirs.{suffix}").replace(tmp_path / f"before.{suffix}")
    [theirs] = json.loads((tmp_path / "before.jsonl").read_text())["files"]
    ours.next_try().run(requests=table(1, seed=7))
    landed = Path(theirs["path"].removeprefix("file://"))
    assert hashlib.sha256(landed.read_bytes()).hexdigest() == theirs["sha256"]
    assert posts(emulator) == 3


def test_a_connection_that_is_gone_keeps_no_job_of_another_one_from_being_cancelled(
    start: Start, new: New
) -> None:
    emulator = start(run_seconds=60.0, obeys_cancel=True)
    task = new(requests=table(2))
    with pytest.raises(TaskDeferred):
        task.operator(**MODES["deferrable"]).execute(task.context)
    running = list(triggers.still_running(journal_of(task)))
    assert running[0].handle is not None
    lost = replace(running[0], handle=replace(running[0].handle, fal_conn_id="fal_gone"))
    said: list[str] = []
    triggers.cancel_all([lost, *running], said.append)
    cancels = [request for request in emulator.requests() if request["operation"] == "cancel"]
    assert len(cancels) == 2
    assert f"Request {running[0].handle.request_id} may still be running: not asked" in "\n".join(said)


def test_what_a_mark_has_cancelled_is_said_to_be_so_by_a_clear_and_made_anew_by_the_next(
    start: Start, new: New
) -> None:
    emulator = start(run_seconds=60.0, obeys_cancel=True)
    task = new(requests=table(3), timeout=20.0)
    with pytest.raises(TaskDeferred):
        task.operator(**MODES["deferrable"]).execute(task.context)
    said: list[str] = []
    triggers.cancel_all(triggers.still_running(journal_of(task)), said.append)
    assert said
    with pytest.raises(FalJobCancelled, match=r"A retry submits nothing: .*\. Once cleared"):
        task.next_try(cleared=True).run()
    assert tally(task) == {"cancelled": 3}
    with pytest.raises(FalJobCancelled):
        task.next_try().run()
    assert posts(emulator) == 3
    emulator.add_fault(fault="job", run_seconds=0)
    assert counts(task.next_try(cleared=True).run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 6


def test_a_flagged_row_that_is_no_success_is_made_again_only_if_a_clear_makes_all(
    start: Start, blocking: New
) -> None:
    emulator = start(faults=[f'job match="{PROMPT} 001" flagged=true times=1'])
    task = blocking(on_flagged="fail")
    for cleared in (False, True):
        with pytest.raises(FalJobFailed, match=r"A retry submits nothing.*on_clear='all'"):
            task.next_try(cleared=cleared).run()
    assert posts(emulator) == 3
    assert counts(task.next_try(cleared=True).run(on_clear="all")) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 6


def test_a_store_that_fails_before_the_posts_leaves_nothing_unknown(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    task = blocking()

    def away(self: Journal) -> None:
        raise OSError("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "stop_if_superseded", away)
        with pytest.raises(OSError, match="away"):
            task.run()
    assert posts(emulator) == 0
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


@pytest.fixture
def failing_store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that lets the store fail at segments with a step in them; before it has written, or after."""
    put = journals._put
    monkeypatch.setattr(journals, "backoff", lambda attempt, jitter: 0.0)

    def fails(step: Step | None, times: int, *, has_written: bool) -> None:
        failed: list[str] = []

        def away(content: bytes, target: ObjectStoragePath) -> None:
            told = step is None or f'"step": "{step.value}"'.encode() in content
            fails = target.parent.name == "segments" and told and len(failed) < times
            if not fails or has_written:
                put(content, target)
            if fails:
                failed.append(target.name)
                raise EndpointConnectionError(endpoint_url="http://x")

        monkeypatch.setattr(journals, "_put", away)

    return fails


@pytest.mark.parametrize("has_written", [False, True])
@pytest.mark.parametrize("step", [Step.INTENT, Step.SUBMITTED, Step.SUCCEEDED, Step.DELIVERED])
def test_a_store_that_fails_for_a_while_costs_a_batch_nothing(
    start: Start, blocking: New, failing_store: Callable[..., None], step: Step, has_written: bool
) -> None:
    emulator = start()
    failing_store(step, journals.WRITE_ATTEMPTS - 1, has_written=has_written)
    task = blocking()
    assert counts(task.run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


@pytest.mark.parametrize("has_written", [False, True])
def test_intents_that_the_store_does_not_take_are_known_not_to_be_sent(
    start: Start, blocking_anywhere: New, failing_store: Callable[..., None], has_written: bool
) -> None:
    emulator = start()
    failing_store(Step.INTENT, journals.WRITE_ATTEMPTS, has_written=has_written)
    task = blocking_anywhere()
    with pytest.raises(EndpointConnectionError):
        task.run()
    assert posts(emulator) == 0
    assert {state.step for state in journal_of(task).rows.values()} == {Step.NOT_TAKEN}
    assert counts(task.next_try().run()) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3


def test_the_jobs_that_the_store_does_not_take_are_named_in_the_log_and_not_posted_again(
    start: Start, blocking: New, failing_store: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(FalBatchOperator, "_say", lambda self, line: said.append(line))
    emulator = start()
    task = blocking()
    failing_store(Step.SUBMITTED, 10**6, has_written=False)
    with pytest.raises(EndpointConnectionError):
        task.run()
    jobs = [job["request_id"] for job in emulator.account()["jobs"]]
    assert len(jobs) == 3
    for job in jobs:
        assert sum(f"was accepted as request {job}, which may be billed" in line for line in said) == 1
    failing_store(None, 0, has_written=True)
    with pytest.raises(FalSubmitOutcomeUnknown):
        task.next_try().run()
    assert posts(emulator) == 3


@pytest.mark.parametrize("ask_every", [submit_pace.ASK_EVERY, 60.0], ids=["asked", "cut off"])
def test_what_the_gateway_told_to_wait_is_not_sent_when_the_try_is_broken_off(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch, ask_every: float
) -> None:
    """Whether it asks while it waits, or is cut off in its pause."""
    monkeypatch.setattr(submit_pace, "ASK_EVERY", ask_every)
    monkeypatch.setattr(session, "LAST_WAVE_SECONDS", 0.0)
    emulator = start(faults=["rate-limit retry_after=60"])
    set_connection(monkeypatch, emulator.url, connect_timeout=1, read_timeout=1)
    told = told_to_wait(monkeypatch)

    def broken(self: session.Session) -> None:
        if len(told) == 2:
            raise TimeoutError("execution_timeout")

    task = blocking(requests=table(4), max_in_flight=2)
    with monkeypatch.context() as patch:
        patch.setattr(session.Session, "_say_how_far", broken)
        with pytest.raises(TimeoutError):
            task.run()
    assert posts(emulator) == 2
    assert {state.step for state in journal_of(task).rows.values()} == {Step.NOT_TAKEN}
    emulator.clear_faults()
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 2 + 4


def told_to_wait(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return a list that gets the pause of each submit that the gateway tells to wait."""
    told: list[float] = []
    pause = SubmitPace.pause

    def noted(self: SubmitPace, seconds: float) -> None:
        told.append(seconds)
        pause(self, seconds)

    monkeypatch.setattr(SubmitPace, "pause", noted)
    return told


def test_a_kill_ends_the_pauses_that_the_gateway_asked_for_and_leaves_nothing_unknown(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_states, "states_of", lambda ti: {"running"})
    emulator = start(faults=["rate-limit retry_after=60"])
    told = told_to_wait(monkeypatch)
    task = blocking(requests=table(4), max_in_flight=2)
    running = task.operator()

    def kill() -> None:
        wait_until(lambda: len(told) == 2)
        running.on_kill()

    killer = threading.Thread(target=kill)
    killer.start()
    begun = time.monotonic()
    with pytest.raises(FalProtocolError, match="interrupted"):
        running.execute(task.context)
    killer.join()
    assert time.monotonic() - begun < 50
    assert posts(emulator) == 2
    assert {state.step for state in journal_of(task).rows.values()} == {Step.NOT_TAKEN}
    emulator.clear_faults()
    assert counts(task.next_try().run()) == {"asked": 4, "succeeded": 4}


def test_a_kill_posts_nothing_more(start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "WAVE", 2)
    monkeypatch.setattr(task_states, "states_of", lambda ti: {"running"})
    emulator = start()
    task = blocking(requests=table(6))
    running = task.operator()
    write = Journal.write

    def met(self: Journal, entries: Any) -> None:
        entries = list(entries)
        write(self, entries)
        if entries and entries[0].step is Step.SUBMITTED:
            running.on_kill()

    monkeypatch.setattr(Journal, "write", met)
    with pytest.raises(FalProtocolError, match="interrupted"):
        running.execute(task.context)
    assert posts(emulator) == 2
    assert counts(task.next_try().run()) == {"asked": 6, "succeeded": 6}
    assert posts(emulator) == 6


# --- a table that changes -----------------------------------------------------------------------------------


def test_a_row_that_is_gone_from_the_table_while_its_job_runs_is_refused(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(run_seconds=60.0)
    task = BatchTask(f"file://{tmp_path}/night", requests=table(3), **MODES["deferrable"])
    with pytest.raises(TaskDeferred):
        task.operator().execute(task.context)
    with pytest.raises(FalInputError, match="'row-002': it is in the table no more") as raised:
        task.next_try().run(requests=table(2))
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    assert "3 rows were submitted before" in str(raised.value)
    assert posts(emulator) == 3


@pytest.mark.parametrize(("policy", "more"), [("reattach", 0), ("resubmit", 1), ("fail", 0)])
def test_a_row_that_asks_for_something_else_follows_the_policy(
    start: Start, blocking: New, policy: str, more: int
) -> None:
    emulator = start()
    task = blocking(on_changed_arguments=policy)
    task.run()
    rows = table(3)
    rows[1]["arguments"]["prompt"] = "something else"
    if policy == "fail":
        with pytest.raises(FalInputError, match="'row-001'"):
            task.next_try().run(requests=rows)
    else:
        assert counts(task.next_try().run(requests=rows)) == {"asked": 3, "succeeded": 3}
    assert posts(emulator) == 3 + more


def test_the_log_names_some_of_many_rows_and_counts_the_others(
    start: Start, blocking: New, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(batches, "MAX_NAMED", 2)
    monkeypatch.setattr(FalBatchOperator, "_say", lambda self, line: said.append(line))
    start()
    task = blocking(requests=table(5))
    task.run()
    said.clear()
    task.next_try().run(requests=table(5, seed=8))
    assert sum("asks for something else" in line for line in said) == 2
    assert sum("3 more rows" in line for line in said) == 1


def test_rows_without_keys_are_known_by_their_place_and_must_stay_in_it(start: Start, blocking: New) -> None:
    emulator = start()
    rows = [{"arguments": row["arguments"]} for row in table(3)]
    task = blocking(requests=rows)
    task.run()
    assert list(task.outcomes()) == ["0", "1", "2"]
    with pytest.raises(FalInputError, match="known by its place only"):
        task.next_try().run(requests=[rows[1], rows[0], rows[2]])
    assert posts(emulator) == 3


# --- lineage ------------------------------------------------------------------------------------------------


def test_lineage_leads_from_the_table_to_the_folder_and_the_manifest(
    start: Start, place: str, tmp_path: Path
) -> None:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    start()
    earlier = BatchTask(f"{place}/earlier", requests=table(2), deferrable=False).run()["manifest_path"]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table(5)))
    task = BatchTask(
        f"{place}/night",
        requests=(tmp_path / "table.jsonl").as_uri(),
        skip_existing=earlier,
        run_id="another",
        deferrable=False,
    )
    operator = task.operator()
    assert operator.get_openlineage_facets_on_complete(None) is None, "nothing was landed"
    made = operator.execute(task.context)
    lineage = DefaultExtractor(operator).extract_on_complete(None)
    assert lineage is not None
    if place.startswith("file://"):
        bucket, folder = "file", place.removeprefix("file://") + "/"
    else:
        bucket, folder = f"s3://{place.partition('@')[2]}", ""
    assert [(each.namespace, each.name) for each in lineage.inputs] == [
        ("file", str(tmp_path / "table.jsonl")),
        (bucket, f"{folder}earlier/manifest.jsonl"),
    ]
    night, manifest = lineage.outputs
    assert (night.namespace, night.name) == (bucket, f"{folder}night")
    assert (manifest.namespace, manifest.name) == (bucket, f"{folder}night/manifest.jsonl")
    rows = [json.loads(line) for line in ObjectStoragePath(made["manifest_path"]).read_text().splitlines()]
    # Two rows were landed by the earlier batch: their files are its, not this one's.
    landed = [file for row in rows if row["posts"] for file in row["files"]]
    statistics = night.outputFacets["outputStatistics"]
    assert (statistics.fileCount, statistics.size) == (3, sum(file["bytes"] for file in landed))
    assert PROMPT not in str(lineage)
    assert KEY not in str(lineage)


def test_a_batch_that_failed_has_the_lineage_of_what_it_landed(start: Start, blocking: New) -> None:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    start(faults=["job match=000 failure=refused"])
    operator = (task := blocking()).operator()
    with pytest.raises(FalContentRefused):
        operator.execute(task.context)
    lineage = DefaultExtractor(operator).extract_on_failure(None)
    assert lineage is not None
    assert lineage.inputs == []
    assert lineage.outputs[0].outputFacets["outputStatistics"].fileCount == 2
