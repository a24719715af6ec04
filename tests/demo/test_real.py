"""A night that costs money: only after a yes, at a terminal, and never in CI."""

from __future__ import annotations

import io
import signal
from pathlib import Path

import pytest
from rich.console import Console

from airflow_provider_uniapi_fal.emulator.running import running_emulator
from demo.__main__ import PROJECT, main
from demo.local_airflow import LocalAirflowTimeout
from demo.real import NIGHT, Gateway, agreed, gateway_of, run_real

GATEWAY = Gateway("https://gateway.example", "sk-a-real-key")


def asked(answer: str, *, terminal: bool = True) -> tuple[bool, str]:
    output = io.StringIO()

    def ask() -> str:
        assert terminal, "nobody is there to be asked"
        if answer == "EOF":
            raise EOFError
        return answer

    return agreed(GATEWAY, Console(file=output, width=170), ask, terminal=terminal), output.getvalue()


@pytest.mark.parametrize("answer", ["yes", " YES "])
def test_a_yes_is_a_yes_after_the_number_of_paid_jobs_was_said(answer: str) -> None:
    agrees, text = asked(answer)
    assert agrees
    assert f"{len(NIGHT)} paid jobs" in text
    assert GATEWAY.host in text
    assert "flux/schnell" in text
    assert GATEWAY.key not in text


@pytest.mark.parametrize("answer", ["", "y", "no", "yes please", "ja", "EOF"])
def test_anything_else_is_a_no(answer: str) -> None:
    agrees, text = asked(answer)
    assert not agrees
    assert "Nothing is paid" in text


def test_without_a_terminal_nothing_is_asked_and_nothing_is_paid() -> None:
    agrees, text = asked("yes", terminal=False)
    assert not agrees
    assert "nothing is paid" in text


def test_without_a_key_and_in_ci_there_is_no_real_gateway() -> None:
    key = {"UNIAPI_KEY": "sk-a-real-key"}
    assert gateway_of({}) is None
    assert gateway_of({"UNIAPI_KEY": " "}) is None
    for ci in ("1", "true", "github"):
        assert gateway_of({**key, "CI": ci}) is None
    assert gateway_of({**key, "CI": "false"}) == Gateway("https://api.uniapi.io", "sk-a-real-key")
    assert gateway_of({**key, "UNIAPI_HOST": "hk.example"}) == Gateway("hk.example", "sk-a-real-key")
    assert "sk-a-real-key" not in repr(GATEWAY)


def test_the_readme_says_what_the_night_is() -> None:
    assert len(NIGHT) == 3
    assert "With a key in `UNIAPI_KEY`" in (PROJECT / "README.md").read_text()
    assert "three paid pictures" in (PROJECT / "README.md").read_text()
    assert "`UNIAPI_KEY`" in (PROJECT / "README.zh.md").read_text()


class InterruptedAirflow:
    """Stands for an Airflow in which a night was begun, until something ended the wait for it."""

    def __init__(self, folder: Path, error: BaseException, *, posted: bool) -> None:
        self.media = folder.parent / "media"
        self.error = error
        self.posted = posted
        self.stopped = False

    def __enter__(self) -> InterruptedAirflow:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True

    def wait_for_dag(self, dag_id: str) -> None:
        return

    def trigger(self, dag_id: str, conf: dict[str, str]) -> str:
        if self.posted:
            (self.media / "20261130T020000" / "manifest.journal").mkdir(parents=True)
        return "run"

    def wait_for_run(self, *_: object) -> str:
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), LocalAirflowTimeout("gave up"), SystemExit(143)])
@pytest.mark.parametrize("posted", [True, False])
def test_a_paid_night_that_is_broken_off_says_how_to_find_its_jobs(
    error: BaseException,
    posted: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(
        "demo.real.LocalAirflow", lambda folder, **_: InterruptedAirflow(folder, error, posted=posted)
    )
    monkeypatch.setattr("demo.__main__.agreed", lambda *_, **__: True)
    monkeypatch.setattr("demo.__main__.gateway_of", lambda _: GATEWAY)
    code: object
    try:
        code = main(["--folder", str(tmp_path / "night")])
    except SystemExit as end:
        code = end.code
    assert code != 0
    said = capsys.readouterr().out
    manifest = tmp_path / "night" / "media" / "20261130T020000" / "manifest.jsonl"
    assert (f"fal jobs --all --manifest {manifest}" in said) is posted
    assert ("may be billed" in said) is posted
    assert ("nothing was posted" in said) is not posted
    assert "nothing is left running." not in said
    assert GATEWAY.key not in said


@pytest.mark.system
@pytest.mark.long
def test_the_small_night_is_as_many_jobs_as_was_said(tmp_path: Path) -> None:
    output = io.StringIO()
    with running_emulator(queue_seconds=0.5, run_seconds=1, key="sk-a-real-key") as emulator:
        gateway = Gateway(emulator.url, "sk-a-real-key", media_hosts=("127.0.0.1",))
        succeeded = run_real(tmp_path, Console(file=output, width=170), gateway)
        totals = emulator.account()["totals"]
    assert succeeded, output.getvalue()
    assert totals["posts_accepted"] == len(NIGHT)
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and b"sk-a-real-key" in path.read_bytes()
    ]
    assert written == []
