from __future__ import annotations

import json
from typing import Any

import pytest

from airflow_provider_uniapi_fal.emulator.command_line import as_arguments, parser, read_settings
from airflow_provider_uniapi_fal.emulator.faults import FAULTS, Rule, RuleBook
from airflow_provider_uniapi_fal.emulator.settings import Settings


def test_a_rule_reads_the_same_from_words_from_json_and_from_a_mapping() -> None:
    mapping = {"fault": "slow", "on": "status", "match": "storm at sea", "times": 2, "seconds": 0.5}
    words = 'slow on=status match="storm at sea" times=2 seconds=0.5'
    assert Rule.read(words) == Rule.read(json.dumps(mapping)) == Rule.read(mapping)
    assert Rule.read(mapping).as_mapping() == mapping


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_is_a_rule_by_its_name_alone(name: str) -> None:
    assert Rule.read(name) == Rule(name)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "There is no fault"),
        ("lost-rply", "There is no fault 'lost-rply'"),
        ({"on": "submit"}, "names its fault"),
        ({"fault": ["slow"]}, "There is no fault"),
        ("slow on=everything", "'on' is one of"),
        ("slow times=0", "'times' is a whole number from 1"),
        ("slow times=true", "'times' is a whole number from 1"),
        ("slow seconds=long", "seconds of slow is like 5.0"),
        ("slow seconds=-1", "seconds of slow is like 5.0"),
        ('{"fault": "slow", "seconds": Infinity}', "seconds of slow is like 5.0"),
        ("slow minutes=1", "slow has no option 'minutes'"),
        ("lost-reply now", "is not of the form name=value"),
        ("server-error status=99", "status of server-error"),
        ("rate-limit form=fax", "form of rate-limit"),
        ("heartbeat beats=1.5", "beats of heartbeat"),
        ("turned-away because=mood", "because of turned-away is one of"),
        ("truncated share=1", "share of truncated is less than 1"),
        ("trickle pieces=0", "pieces of trickle"),
        ("lost-reply reset=1", "reset of lost-reply is like False"),
        ("[1]", "There is no fault"),
        ('{"fault": "slow"', "Expecting"),
    ],
)
def test_a_wrong_rule_says_what_is_wrong(written: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        Rule.read(written)


def test_a_rule_strikes_as_often_as_it_says_and_where_it_says() -> None:
    book = RuleBook((Rule("slow", on="status", match="storm", times=2),))
    assert book.strike("submit", b"storm") is None
    assert book.strike("status", b"calm") is None
    assert book.strike("status", b"a storm") is not None
    assert book.strike("status", b"a storm") is not None
    assert book.strike("status", b"a storm") is None
    assert book.all() == []


def test_a_rule_without_times_strikes_for_ever() -> None:
    book = RuleBook((Rule("empty", on="status"),))
    assert all(book.strike("status", b"") for _ in range(100))


def test_the_first_of_two_rules_is_used_up_before_the_second() -> None:
    book = RuleBook((Rule("empty", times=1), Rule("bom", times=1)))
    struck = [book.strike("submit", b"{}") for _ in range(3)]
    assert [rule.fault if rule else None for rule in struck] == ["empty", "bom", None]


@pytest.mark.parametrize("body", ['{"prompt": "暴风雨 \\"x\\""}', json.dumps({"prompt": '暴风雨 "x"'})])
def test_a_match_is_found_however_json_writes_it(body: str) -> None:
    assert Rule("empty", match='暴风雨 "x"').matches(body.encode())
    assert not Rule("empty", match="晴天").matches(body.encode())


def test_rules_change_jobs_and_later_ones_weigh_more() -> None:
    first = Rule.read("job match=cat failure=refused run_seconds=1")
    second = Rule.read("job match=cat failure=result-500 times=1")
    book = RuleBook((first, second))
    assert book.changes(b"a dog") == {}
    assert book.changes(b"a cat") == {"failure": "result-500", "run_seconds": 1}
    assert book.changes(b"a cat") == {"failure": "refused", "run_seconds": 1}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"urls": "mine"}, "urls is one of"),
        ({"pending_code": 500}, "pending_code is one of 202, 200"),
        ({"run_seconds": -1}, "run_seconds is a number"),
        ({"run_seconds": float("inf")}, "run_seconds is a number"),
        ({"run_seconds": "2"}, "run_seconds is a number"),
        ({"port": 1.5}, "port is a whole number"),
        ({"flagged": "yes"}, "flagged is true or false"),
        ({"key": 5}, "key is a text"),
        ({"base_prefix": None}, "base_prefix is a text"),
        ({"model_seconds": {"video": -2}}, "model_seconds of video"),
        ({"faults": "slow"}, "faults is a list"),
        ({"faults": ["job failure=odd"]}, "failure is one of"),
        ({"faults": ["job port=1"]}, "A job has no port"),
        ({"time_scale": 0.0}, "time_scale is more than 0"),
        ({"tls_cert": "cert.pem"}, "tls_cert and tls_key are given together"),
        ({"tls": True, "tls_cert": "cert.pem", "tls_key": "key.pem"}, "no tls_cert beside it"),
        ({"ca_file": "ca.pem"}, "ca_file is written for tls only"),
    ],
)
def test_a_wrong_setting_says_what_is_wrong(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**settings)


def test_a_models_own_time_counts_unless_a_rule_says_otherwise() -> None:
    settings = Settings(run_seconds=1.0, model_seconds={"kling-video": 4})
    assert settings.behaviour_of("flux/dev", {}).run_seconds == 1.0
    assert settings.behaviour_of("kling-video/v2", {}).run_seconds == 4
    assert settings.behaviour_of("kling-video/v2", {"run_seconds": 9}).run_seconds == 9


def test_the_command_line_says_every_setting() -> None:
    settings: dict[str, Any] = {
        "queue_seconds": 0.25,
        "stuck": True,
        "flagged": False,
        "urls": "gateway",
        "pending_code": 200,
        "base_prefix": "gw/",
        "concurrency": 3,
        "time_scale": 60.0,
        "tls": True,
        "ca_file": "ca.pem",
        "state": "state file.jsonl",
        "model_seconds": {"kling=video": 4.0},
        "faults": ['lost-reply match="a storm" times=1', {"fault": "job", "failure": "refused"}],
    }
    read = read_settings(parser().parse_args(as_arguments(settings)))
    assert read == Settings(**settings)
    assert read.base_prefix == "/gw"
    assert read_settings(parser().parse_args([])) == Settings()


def test_a_scale_changes_the_times_of_a_rule_and_nothing_else() -> None:
    assert Rule.read("rate-limit retry_after=60").on_scale(60).option("retry_after") == 1
    assert Rule.read("slow").on_scale(10).option("seconds") == 0.5
    for words in ("body seconds=60", "oversized size=60", "truncated share=0.5"):
        assert Rule.read(words).on_scale(60) == Rule.read(words)
