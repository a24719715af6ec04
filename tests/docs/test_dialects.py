"""The contract page says what the code does, call by call and word by word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.operators import fal as fal_operators
from airflow_provider_uniapi_fal.operators import kling as kling_operators
from airflow_provider_uniapi_fal.operators import luma as luma_operators
from airflow_provider_uniapi_fal.operators import openai_images as openai_operators
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS, fal, kling, luma, openai_images
from airflow_provider_uniapi_fal.protocol.dialects.tasks import GATEWAY_STATES
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.messages import HttpRequest
from airflow_provider_uniapi_fal.protocol.origin import AUTH_SCHEMES, FAMILY_PATHS
from airflow_provider_uniapi_fal.protocol.schemas import shipped
from tests.protocol.values import account, reply

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.dialects.reading import Refusal

PAGE = (Path(__file__).parents[2] / "docs" / "dialects.md").read_text(encoding="utf-8")
MARKS = ("gateway", "vendor", "peer", "inferred", "recorded by users")


def table(*columns: str) -> list[dict[str, str]]:
    """Return the rows of the table that has these columns first."""
    head = "| " + " | ".join(columns) + " |"
    lines = PAGE.splitlines()
    [start] = [
        number for number, line in enumerate(lines) if line == head or line.startswith(head[:-1] + "| ")
    ]
    names = [name.strip() for name in lines[start].strip("|").split("|")]
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append(dict(zip(names, (cell.strip() for cell in line.strip("|").split("|")), strict=True)))
    return rows


def bare(cell: str) -> str:
    return cell.strip("`")


def test_every_fact_has_a_mark() -> None:
    for columns in (("Dialect", "Call"), ("Dialect", "Word"), ("Word", "State"), ("Dialect", "Code")):
        rows = table(*columns)
        assert len(rows) > 10
        for row in rows:
            assert any(mark in row["Mark"] for mark in MARKS), row


def called(name: str, model: str, arguments: Any) -> set[tuple[str, str, str, str]]:
    """Return the calls that the code makes for a job, as the page writes them."""
    dialect = DIALECTS[name]
    made: dict[str, list[str]] = {}

    def write(call: str, request: object) -> None:
        if isinstance(request, HttpRequest):
            path = FAMILY_PATHS[request.family] + request.path
            text = path.replace("flux/dev", "{model}").replace("/flux/", "/{app}/").replace("r-1", "{id}")
            made.setdefault(f"{request.method} {text}", []).append(call)

    submit = dialect.submit_request(model, arguments, {})
    assert isinstance(submit, HttpRequest), str(submit)
    write("submit", submit)
    handle = dialect.handle_of("r-1", model, fal_conn_id="c", now=0.0)
    if isinstance(handle, JobHandle):
        write("status", dialect.status_request(handle, logs=False))
        write("result", dialect.result_request(handle))
        write("cancel", dialect.cancel_request(handle))
        write("landing", dialect.landing_request(JobResult(handle, {})))
    return {
        (name, ", ".join(calls), request, AUTH_SCHEMES[dialect.family]) for request, calls in made.items()
    }


PROMPT = {"prompt": "p"}
JOBS: list[tuple[str, str, Any]] = [
    ("fal", "flux/dev", PROMPT),
    ("kling", kling.IMAGE_GENERATION, PROMPT),
    ("kling", kling.TEXT_TO_VIDEO, PROMPT),
    ("kling", kling.IMAGE_TO_VIDEO, {"image": "https://m/a.png"}),
    ("kling", kling.VIRTUAL_TRY_ON, {"human_image": "https://m/a.png", "cloth_image": "https://m/a.png"}),
    ("luma", luma.GENERATE, {"user_prompt": "p"}),
    ("luma", luma.extend("r-1"), {"user_prompt": "p"}),
    ("openai_images", "flux/dev", PROMPT),
]


def test_the_page_has_every_call_and_no_other() -> None:
    written = {
        (bare(row["Dialect"]), row["Call"], bare(row["Request"]), bare(row["Authorization"]))
        for row in table("Dialect", "Call")
    }
    assert written == set().union(*(called(*job) for job in JOBS))
    assert {name for name, _, _ in JOBS} == set(DIALECTS)
    assert {model for name, model, _ in JOBS if name == "kling"} == set(kling.MODELS)


def test_the_page_has_every_word_for_a_state() -> None:
    written = {
        (bare(row["Dialect"]), bare(row["Word"]), row["State"]) for row in table("Dialect", "Word", "State")
    }
    own = {
        **{("kling", word): state for word, state in kling.STATES.items()},
        **{("luma", word): state for word, state in luma.STATES.items()},
        **{
            ("fal", word): state
            for word, state in fal.STATES.items()
            if word not in GATEWAY_STATES or word in ("IN_PROGRESS", "COMPLETED")
        },
    }
    assert written == {(name, word, state.value) for (name, word), state in own.items()}
    of_gateways = {bare(row["Word"]): row["State"] for row in table("Word", "State")}
    assert of_gateways == {word: state.value for word, state in GATEWAY_STATES.items()}
    assert fal.STATES.items() >= GATEWAY_STATES.items()


def test_the_page_tells_what_each_status_of_a_submit_means() -> None:
    rows = table("HTTP", "What it means here")
    seen = set()
    for row in rows:
        texts = re.findall(r"\dxx|\d{3}", row["HTTP"])
        [error] = re.findall(r"`(Fal\w+)`", row["What it means here"])
        for text in texts:
            for status in (int(text.replace("xx", "00")), int(text.replace("xx", "07"))):
                seen.add(text)
                for name, model, _ in JOBS:
                    found = DIALECTS[name].read_submit(
                        reply({"detail": "no"}, status),
                        model=model,
                        fal_conn_id="c",
                        account=account(),
                        now=0.0,
                    )
                    assert isinstance(found, Failure)
                    assert type(error_of(found)).__name__ == error, (name, status)
                    accepted = "unknown" if found.may_run else "no"
                    assert row["Accepted, billed"].startswith(accepted)
                    assert (
                        ("perhaps billed" in row["Accepted, billed"])
                        or found.billed != "maybe"
                        or found.may_run
                    )
    assert len(seen) == 13


def test_the_page_has_every_code() -> None:
    def stands_for(refusal: Refusal) -> str:
        return f"{refusal.stands_for}, content" if refusal.content else str(refusal.stands_for)

    written = {
        (bare(row["Dialect"]), bare(row["Code"])): row["Stands for"] for row in table("Dialect", "Code")
    }
    assert written == {
        **{("kling", str(code)): stands_for(refusal) for code, refusal in kling.CODES.items()},
        **{("openai_images", code): stands_for(refusal) for code, refusal in openai_images.CODES.items()},
    }


def test_the_page_has_every_place_of_a_file() -> None:
    written = {bare(row["Dialect"]): row for row in table("Dialect", "Arguments")}
    assert set(written) == set(DIALECTS)
    for name, row in written.items():
        inputs = DIALECTS[name].media_inputs
        places = {*inputs.keys, *(f"…{ending}" for ending in inputs.endings)}
        assert set(re.findall(r"`(.+?)`", row["Arguments"])) == places
        assert row["Form"] == ("base64" if inputs.bare else "data URI")
        assert row["At most (bytes)"] == str(inputs.max_bytes)
        assert tuple(re.findall(r"`(.+?)`", row["Types"])) == inputs.kinds


def test_the_page_has_every_schema_and_every_keeping() -> None:
    assert tuple(bare(row["Shipped schema"]) for row in table("Shipped schema")) == shipped()
    kept = re.search(r"## How long results last\n(.+?)\n## ", PAGE, re.DOTALL)
    assert kept is not None
    for name, dialect in DIALECTS.items():
        assert f"| `{name}` | {dialect.keeps} |" in kept[1]


OPERATORS = {
    name: operator
    for module in (fal_operators, kling_operators, luma_operators, openai_operators)
    for name, operator in vars(module).items()
    if name.endswith("Operator") and operator.__module__ == module.__name__
}


def test_the_page_has_every_operator() -> None:
    written = {
        name: bare(row["`dialect`"])
        for row in table("Job", "Operator")
        for name in re.findall(r"`(\w+)`", row["Operator"])
    }
    assert written == {
        name: operator.dialect for name, operator in OPERATORS.items() if name != "KlingOperator"
    }


@pytest.mark.parametrize("file", ["recovery.md"])
def test_links_lead_somewhere(file: str) -> None:
    assert f"({file})" in PAGE
    assert (Path(__file__).parents[2] / "docs" / file).is_file()
