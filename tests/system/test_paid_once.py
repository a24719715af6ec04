"""Promise 1 and 4 on a real scheduler, triggerer and LocalExecutor, counted at the emulator."""

from __future__ import annotations

import json
import os
import re
import signal
from typing import TYPE_CHECKING

import pytest

from tests.system.waiting import eventually

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def posts_for(emulator: Emulator, prompt: str) -> int:
    """Count the accepted posts of one prompt."""
    groups = emulator.account()["posts_by_arguments"].values()
    return sum(group["posts"] for group in groups if group["prompt"] == prompt)


def lines_with(log: str, text: str) -> list[str]:
    return [line for line in log.splitlines() if text in line]


def test_a_task_killed_after_its_post_returns_the_same_xcoms_and_posts_nothing(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    prompt, dag_id = "killed after the post", "killed_after_the_post"
    airflow.wait_for_dag(dag_id)
    run_id = airflow.trigger(dag_id, conf={"prompt": prompt})
    airflow.wait_for_task(dag_id, run_id, "submit", "running")

    def xcoms() -> dict[str, str]:
        return {entry.key: entry.value for entry in airflow.xcom_entries(dag_id, run_id)}

    eventually(lambda: "response_url" in xcoms(), 60)
    before = xcoms()
    os.kill(airflow.pid_of_task(dag_id, run_id, "submit"), signal.SIGKILL)

    assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
    assert airflow.task_instance(dag_id, run_id, "submit").try_number == 2
    assert posts_for(emulator, prompt) == 1
    handle = airflow.xcom(dag_id, run_id, "submit")
    assert handle["request_id"] == json.loads(before["request_id"])
    assert before.items() <= xcoms().items()
    assert "Re-attaching to request" in airflow.task_log(dag_id, run_id, "submit", try_number=2)
    assert airflow.xcom(dag_id, run_id, "wait")["handle"]["request_id"] == handle["request_id"]


def test_a_lost_reply_is_one_post_and_a_failed_task_that_says_unknown(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    prompt, dag_id = "the reply is lost", "one_job"
    airflow.wait_for_dag(dag_id)
    emulator.add_fault(fault="lost-reply", on="submit", match=prompt, times=1)
    run_id = airflow.trigger(dag_id, conf={"prompt": prompt})

    assert airflow.wait_for_run(dag_id, run_id, 120) == "failed"
    assert posts_for(emulator, prompt) == 1
    submit = airflow.task_instance(dag_id, run_id, "submit")
    assert (submit.state, submit.try_number) == ("failed", 1)
    log = airflow.task_log(dag_id, run_id, "submit")
    assert "FalSubmitOutcomeUnknown" in log
    assert "The outcome of the submit is unknown" in log
    assert airflow.xcom(dag_id, run_id, "submit", key="failure")["outcome"] == "unknown"

    airflow.clear(dag_id, run_id, ["submit"])
    assert airflow.wait_for_run(dag_id, run_id, 120) == "failed"
    assert posts_for(emulator, prompt) == 1


def test_each_mode_of_waiting_brings_the_same_result_and_says_each_thing_once(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    prompt, dag_id = "all ways of waiting", "one_job"
    airflow.wait_for_dag(dag_id)
    # Long enough that all are waiting before it is done.
    emulator.add_fault(fault="job", match=prompt, queue_seconds=10, run_seconds=15)
    run_id = airflow.trigger(dag_id, conf={"prompt": prompt})
    assert airflow.wait_for_run(dag_id, run_id, 180) == "success"
    assert posts_for(emulator, prompt) == 1

    results = {
        task: airflow.xcom(dag_id, run_id, task) for task in ("poke", "reschedule", "deferred", "by_url")
    }
    assert len({result["data"]["images"][0]["url"] for result in results.values()}) == 1
    assert all(result["seconds_running"] == pytest.approx(15, abs=0.5) for result in results.values())
    for task in ("poke", "reschedule", "deferred"):
        log = airflow.task_log(dag_id, run_id, task)
        said = re.findall(r"Request [0-9a-f-]+ \| [^{]+", log)
        assert len(said) == len(set(said)) >= 3, f"{task}: {said}"
        assert lines_with(log, "is running (queued for"), task
        assert lines_with(log, "has succeeded: 1 media files"), task
    assert "Pausing task as DEFERRED" in airflow.task_log(dag_id, run_id, "deferred")

    impatient = airflow.task_instance(dag_id, run_id, "impatient")
    assert impatient.state == "skipped"
    failure = airflow.xcom(dag_id, run_id, "impatient", key="failure")
    assert (failure["outcome"], failure["may_run"]) == ("timed_out", True)
