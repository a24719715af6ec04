"""Where the buttons of a task lead, before it waits and after, and what they cannot do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
from airflow.sdk import BaseOperatorLink
from airflow.sdk.exceptions import TaskDeferred

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.links.fal import links_are_stored, push_links
from airflow_provider_uniapi_fal.links.templates import filled
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import ARGUMENTS, MODEL, Task, fired

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import Start

TI = SimpleNamespace(
    dag_id="night", run_id="scheduled__2026-11-25T02:00:00+00:00", task_id="g.make", map_index=3
)
RUN = "http://airflow.example/team/fal-media/dags/night/runs/scheduled__2026-11-25T02%3A00%3A00%2B00%3A00"
TEMPLATE = "https://gateway.example/jobs/{request_id}?model={model}"


@pytest.fixture(autouse=True)
def configured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "http://airflow.example/team/")
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__JOB_URL_TEMPLATE", TEMPLATE)


def pulling(monkeypatch: pytest.MonkeyPatch, xcoms: dict[str, Any]) -> None:
    monkeypatch.setattr(
        "airflow_provider_uniapi_fal.links.fal.XCom.get_value", lambda *, ti_key, key: xcoms.get(key)
    )


def of(operator: Any) -> dict[str, str]:
    return {link.name: link.get_link(operator, ti_key=TI) for link in operator.operator_extra_links}


def test_a_task_with_a_job_leads_to_its_row_and_to_the_users_own_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulling(monkeypatch, {"request_id": "req-1"})
    operator = FalGenerateOperator(task_id="make", model="fal-ai/flux/dev", arguments={})
    assert of(operator) == {
        "Media": f"{RUN}?text=req-1",
        "Job": "https://gateway.example/jobs/req-1?model=fal-ai/flux/dev",
    }


def test_a_task_with_a_manifest_leads_to_all_of_its_media_and_to_the_manifest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pulling(monkeypatch, {"manifest_path": "s3://bucket/m.jsonl"})
    operator = FalToObjectStorageOperator(task_id="land", result={}, destination="s3://bucket")
    assert of(operator) == {
        "Media": f"{RUN}/tasks/g.make/3",
        "Manifest": f"{RUN}/tasks/g.make/3/manifest",
    }


def test_a_task_that_has_pushed_nothing_has_no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    pulling(monkeypatch, {})
    operator = FalSubmitOperator(task_id="submit", model=MODEL, arguments={})
    assert set(of(operator).values()) == {""}


def test_without_a_template_there_is_no_page_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__UNIAPI_FAL__JOB_URL_TEMPLATE")
    pulling(monkeypatch, {"request_id": "req-1"})
    assert of(FalSubmitOperator(task_id="submit", model=MODEL, arguments={}))["Job"] == ""


class UsersLink(BaseOperatorLink):
    name = "Bill"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:
        return "https://gateway.example/bill"


class UsersOperator(FalGenerateOperator):
    operator_extra_links: Any = (*FalGenerateOperator.operator_extra_links, UsersLink())


def names(operator: Any) -> list[str]:
    return [link.name for link in operator.operator_extra_links]


def test_what_a_leg_has_stored_airflow_does_not_store_again_but_a_users_own_link_it_does() -> None:
    operator = UsersOperator(task_id="make", model=MODEL, arguments={})
    running = operator.prepare_for_execution()
    pushed: dict[str, str] = {}
    ti: Any = SimpleNamespace(**vars(TI), xcom_push=lambda key, value: pushed.update({key: value}))
    push_links(running, ti, request_id="req-1")
    assert pushed == {
        "_link_FalGalleryLink": f"{RUN}?text=req-1",
        "_link_FalJobLink": f"https://gateway.example/jobs/req-1?model={quote(MODEL)}",
    }
    assert names(running) == ["Bill"]
    # The same task again, with another job: whatever Airflow had to store is stored.
    push_links(running, ti, request_id="req-2")
    assert pushed["_link_FalGalleryLink"] == f"{RUN}?text=req-2"
    assert names(operator) == names(UsersOperator) == ["Media", "Job", "Bill"]


def test_links_that_are_a_property_of_a_users_own_class_are_left_to_airflow(start: Start) -> None:
    class Own(FalSubmitOperator):
        @property
        def operator_extra_links(self) -> Any:  # type: ignore[override]
            return [UsersLink()]

    start()
    operator = Own(task_id="submit", model=MODEL, arguments=ARGUMENTS)
    assert operator.execute(Task().context)
    links_are_stored(operator)
    assert names(operator) == ["Bill"]


def test_links_that_could_not_be_stored_are_left_to_airflow() -> None:
    def refuse(key: str, value: str) -> None:
        raise RuntimeError("no room")

    operator = FalSubmitOperator(task_id="submit", model=MODEL, arguments={})
    push_links(operator, SimpleNamespace(**vars(TI), xcom_push=refuse), request_id="req-1")
    assert names(operator) == ["Media", "Job"]


def test_a_leg_after_a_wait_stores_no_link_for_they_last_from_leg_to_leg(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_uniapi_fal.operators.generating.RACE_SECONDS", 0.0)
    start(run_seconds=0.1)
    task = Task()
    with pytest.raises(TaskDeferred) as deferral:
        FalGenerateOperator(task_id="t", model=MODEL, arguments=ARGUMENTS, defer_after=0).execute(
            task.context
        )
    stored, task.ti.links = task.ti.links, {}
    resumed = FalGenerateOperator(task_id="t", model=MODEL, arguments=ARGUMENTS)
    resumed.resume_execution("execute_complete", {"event": fired(deferral.value)}, task.context)
    assert stored
    assert (task.ti.links, names(resumed)) == ({}, [])


@pytest.mark.parametrize("operator", [FalSubmitOperator, FalGenerateOperator])
def test_the_links_are_there_before_the_wait_begins(
    start: Start, operator: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    task = Task()
    if operator is FalGenerateOperator:

        def watched(*_: Any) -> None:
            assert task.ti.links
            raise KeyboardInterrupt

        monkeypatch.setattr("airflow_provider_uniapi_fal.hooks.fal.FalHook.watch_for", watched)
        with pytest.raises(KeyboardInterrupt):
            operator(task_id="t", model=MODEL, arguments=ARGUMENTS).execute(task.context)
    else:
        operator(task_id="t", model=MODEL, arguments=ARGUMENTS).execute(task.context)
    request_id = task.xcoms["request_id"]
    assert task.ti.links == {
        "_link_FalGalleryLink": f"http://airflow.example/team/fal-media/dags/night/runs/a%20run?text={request_id}",
        "_link_FalJobLink": f"https://gateway.example/jobs/{request_id}?model={quote(MODEL)}",
    }


def test_a_landing_has_its_links_before_its_files(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    hook, task = FalHook(), Task()
    submitted = hook.submit(MODEL, ARGUMENTS)
    assert isinstance(submitted, Submitted)
    seen: list[dict[str, str]] = []

    def landed(*_: Any) -> None:
        seen.append(dict(task.ti.links))
        raise KeyboardInterrupt

    monkeypatch.setattr(FalToObjectStorageOperator, "_landed", landed)
    land = FalToObjectStorageOperator(
        task_id="land",
        result=submitted.handle.to_json(),
        destination=tmp_path.as_uri(),
        manifest_path=(tmp_path / "manifest.jsonl").as_uri(),
    )
    with pytest.raises(KeyboardInterrupt):
        land.execute(task.context)
    run = "http://airflow.example/team/fal-media/dags/night/runs/a%20run"
    assert seen == [
        {
            "_link_FalGalleryLink": f"{run}/tasks/submit/-1",
            "_link_FalManifestLink": f"{run}/tasks/submit/-1/manifest",
        }
    ]


def test_a_link_that_cannot_be_stored_fails_no_paid_job(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    task = Task()
    push = task.ti.xcom_push

    def refuse_links(key: str, value: Any) -> None:
        if key.startswith("_link_"):
            raise RuntimeError("no room")
        push(key, value)

    monkeypatch.setattr(task.ti, "xcom_push", refuse_links)
    assert FalSubmitOperator(task_id="t", model=MODEL, arguments=ARGUMENTS).execute(task.context)


@pytest.mark.parametrize(
    "template",
    [
        "javascript:alert({request_id})",
        "/jobs/{request_id}",
        "https://{request_id}/",
        "https://example.com/{request_id.__class__}",
        "https://example.com/{key}",
        "https://example.com/{}",
        "https://example.com/{request_id!r}",
        "https://example.com/{request_id:>99999999}",
        "https://example.com/{",
    ],
)
def test_a_template_that_is_no_address_makes_no_link(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r".+"):
        filled(template, request_id="r", model="m")
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__JOB_URL_TEMPLATE", template)
    pulling(monkeypatch, {"request_id": "req-1"})
    assert of(FalSubmitOperator(task_id="submit", model=MODEL, arguments={}))["Job"] == ""


def test_an_id_cannot_change_where_a_template_leads() -> None:
    assert filled("https://a.example/{request_id}", request_id="../?x=1#y", model="") == (
        "https://a.example/..%2F%3Fx%3D1%23y"
    )
