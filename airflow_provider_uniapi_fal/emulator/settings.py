"""
Everything that can be set, with its default and its explanation.

``Behaviour`` is how one job goes and how the gateway speaks of it. ``Settings`` adds what belongs to the server as a
whole, and is at the same time the behaviour of every job that no rule singles out. The command line is built from
these fields, so a setting is written down once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from airflow_provider_uniapi_fal.emulator.faults import Rule

FAILURES = {
    "none": "the job succeeds",
    "completed-error": "COMPLETED with error and error_type; the result repeats them",
    "result-422": "COMPLETED; the result is a 422 that echoes the input",
    "result-500": "COMPLETED; the result is a 500",
    "result-failure": 'COMPLETED; the result is a 200 with {"status": "FAILURE"}',
    "result-error": 'COMPLETED; the result is a 200 with {"error": {...}}',
    "status-failure": 'the status itself says "FAILURE", under 200; so does the result',
    "refused": "COMPLETED; the result is a 422 of type content_policy_violation",
    "no-media": "COMPLETED; the result is a 200 with no images in it, or no video",
}


def _setting(default: Any, help_text: str, choices: tuple[Any, ...] = ()) -> Any:
    return field(default=default, metadata={"help": help_text, "choices": choices})


def _shown(name: str, default: str, *, help_text: str | None = None) -> Any:
    return _setting(default, help_text or f"{name} in replies", ("present", "null", "missing"))


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """How one job goes, and how the gateway speaks of it."""

    queue_seconds: float = _setting(0.5, "least time in the queue")
    run_seconds: float = _setting(1.0, "time a job runs")
    spread: float = _setting(0.0, "vary both times by up to this share of them (0.2 = 20 percent)")
    stuck: bool = _setting(False, "jobs stay in the queue for ever")
    requeues: int = _setting(0, "a running job falls back into the queue this often, half way through")
    failure: str = _setting("none", "how jobs end", tuple(FAILURES))
    error_type: str = _setting("internal_error", "error_type of completed-error")
    flagged: bool = _setting(False, "pictures are flagged as unsafe and replaced by black ones")
    urls: str = _setting(
        "fal",
        "URLs in replies: fal's own host (as the gateway documents), the gateway's, none, or a foreign host",
        ("fal", "gateway", "missing", "foreign"),
    )
    foreign_origin: str = _setting("https://elsewhere.invalid", "the host of foreign URLs")
    url_path: str = _setting(
        "app",
        "model in URLs: its owner and app, or the whole id (and /response after a result's), as fal's guide has it",
        ("app", "whole"),
    )
    found_at: str = _setting(
        "both", "model in the paths that find a job; others answer 404", ("both", "app", "whole")
    )
    pending_code: int = _setting(202, "HTTP code of a status before the end", (202, 200))
    cancel_url: str = _shown("cancel_url", "missing")
    queue_position: str = _shown("queue_position", "present")
    logs: str = _shown("logs", "present", help_text="logs in a status that asked for them")
    metrics: str = _shown("metrics", "present")
    gateway_request_id: str = _setting(
        "missing",
        "gateway_request_id in replies: none, the request_id, or another",
        ("missing", "same", "different"),
    )
    cancel: str = _setting(
        "honest",
        "answer to a cancel: honest (removed 200, signalled 202, finished 400), or always this one; ignored is a 202 "
        "without any effect",
        ("honest", "requested", "removed", "ignored", "already-completed", "not-found", "not-allowed"),
    )
    cancel_words: str = _setting(
        "status",
        "words of a cancel's answer: a status, a detail (of a finished job only), or success as true or false",
        ("status", "detail", "success"),
    )
    obeys_cancel: bool = _setting(False, "a running job stops when it is signalled; else it runs to its end")
    stream: str = _setting(
        "missing",
        "the status stream: offered; missing (404) or not-allowed (405); buffered by a proxy until the job's end; silent "
        "after the first event; cut off after it; or without comments",
        ("offered", "missing", "not-allowed", "buffered", "silent", "cut", "no-comments"),
    )
    comment_seconds: float = _setting(15.0, "time between the comments that keep a stream open")
    early_result_code: int = _setting(400, "HTTP code of a result asked for before the end", (400, 202, 404))
    result_seconds: float = _setting(3600.0, "a result is kept this long, then answers 404")
    large_result_seconds: float = _setting(360.0, "a result of 10 KB or more is kept this long")
    media_seconds: float = _setting(7 * 86400.0, "a media file is kept this long")
    data_uris: bool = _setting(False, "media are data URIs in the result, whether asked for or not")
    video_seconds: float = _setting(2.5, "length of rendered videos")
    media_side: int = _setting(0, "longest side of rendered pictures and videos; 0 leaves them as asked")
    same_media: bool = _setting(
        False, "the same picture and video for every prompt, rendered once: for tests of many jobs"
    )
    failure_message: str = _setting("", "what Kling and Luma say of a failed job, instead of their own words")
    expired_code: int = _setting(404, "HTTP code of a media file that is no longer kept", (404, 403, 410))
    kling_submit: str = _setting(
        "official",
        "Kling's answer to a submit: the vendor's envelope, an OpenAI video object, or the bare data of the envelope",
        ("official", "openai-video", "bare"),
    )
    kling_task: str = _setting(
        "official",
        'Kling\'s answer to a query: the vendor\'s envelope, or {"code": "success"} with status and url',
        ("official", "code-success"),
    )
    kling_success: str = _setting(
        "succeed", "Kling's word for success", ("succeed", "succeeded", "completed")
    )
    kling_external_id: str = _setting(
        "honoured",
        "Kling's external_task_id: unique, echoed and good for queries, or as if it had not been sent",
        ("honoured", "ignored"),
    )
    kling_watermark_url: str = _shown(
        "watermark_url", "missing", help_text="Kling's watermark_url of each file"
    )
    kling_units: str = _shown("units", "missing", help_text="Kling's final_unit_deduction")
    kling_media_seconds: float = _setting(30 * 86400.0, "Kling's media files are kept this long")
    luma_submit: str = _setting(
        "task",
        'Luma\'s answer to a submit: the whole task, {"id"}, {"task_id"}, or the task in {"code", "message", "data"}',
        ("task", "id", "task_id", "wrapped"),
    )
    luma_task: str = _setting(
        "task",
        'Luma\'s answer to a query: the task, or the task in {"code", "message", "data"}',
        ("task", "wrapped"),
    )
    luma_words: str = _setting(
        "gateway",
        "Luma's states before the end: pending and processing, or queued and dreaming",
        ("gateway", "official"),
    )
    luma_shape: str = _setting(
        "gateway",
        "where Luma's video is: video.url, or assets.video as the vendor has it",
        ("gateway", "official"),
    )
    luma_download_url: str = _setting(
        "present",
        "Luma's video.download_url, without watermark",
        ("present", "empty", "null", "missing"),
    )
    luma_link_seconds: float = _setting(600.0, "Luma's download links hold this long")
    luma_link: str = _setting(
        "url",
        'Luma\'s answer to download_video_url: {"url"}, {"download_url"}, or {"code", "message", "data"} around the url',
        ("url", "download_url", "wrapped"),
    )
    openai_format: str = _setting(
        "asked",
        "OpenAI images come as response_format asks (as url if it does not), or always so",
        ("asked", "url", "b64_json"),
    )
    openai_count: str = _setting(
        "num_images",
        "what counts when an OpenAI-images request has both",
        ("num_images", "n", "larger"),
    )

    def __post_init__(self) -> None:
        for each in dataclasses.fields(self):
            _check(each, getattr(self, each.name))

    def changed(self, changes: Mapping[str, Any]) -> Behaviour:
        """Return the behaviour with some of its fields changed."""
        return dataclasses.replace(self, **changes)

    @cached_property
    def unusual(self) -> Mapping[str, Any]:
        """What is other than usual: enough to have it again."""
        return {name: getattr(self, name) for name in USUAL if getattr(self, name) != USUAL[name]}


@dataclass(frozen=True, kw_only=True)
class Settings(Behaviour):
    """One emulator: where it listens, whom it lets in, and how jobs go unless a rule says otherwise."""

    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(0, "port to listen on; 0 takes a free one")
    base_prefix: str = _setting("", "path before every route of the gateway, such as /gw")
    tls: bool = _setting(False, "serve https, with a certificate made for localhost and 127.0.0.1")
    ca_file: str = _setting("", "where to write what clients must trust (default: a temporary file)")
    tls_cert: str = _setting("", "serve https, with the certificate in this PEM file")
    tls_key: str = _setting("", "the PEM file with the key of that certificate")
    state: str = _setting("", "a file in which jobs, counts and rules survive a restart; it holds prompts")
    time_scale: float = _setting(
        1.0, "emulated seconds pass so many times as fast, Retry-After's and expiry's too"
    )
    latency: float = _setting(0.0, "real seconds by which the way to the gateway delays every answer")
    latency_spread: float = _setting(0.0, "vary the latency by up to this share of it")
    key: str = _setting("", "the accepted key; without it every key is accepted, but not none")
    seed: int = _setting(0, "starts the random numbers of durations and pictures")
    concurrency: int = _setting(0, "jobs that run at once; 0 is without limit")
    calls_a_second: float = _setting(
        0.0,
        "calls that the account may make in an emulated second, as many of them at once; then 429, without "
        "Retry-After; 0 is without limit",
    )
    kling_slots: int = _setting(
        0, "unfinished videos, try-ons and pictures of Kling at once, then 1303; 0 is without limit"
    )
    kling_http: str = _setting(
        "own", "Kling's errors come under their own HTTP code, or all under 200", ("own", "200")
    )
    gateway_errors: str = _setting(
        "openai",
        'how the gateway itself refuses Kling and Luma calls: {"error": {...}}, or {"code", "message", "data": null}',
        ("openai", "task"),
    )
    render_threads: int = _setting(2, "pictures and videos rendered at once")
    model_seconds: Mapping[str, float] = field(default_factory=dict)
    faults: tuple[Rule, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.time_scale:
            raise ValueError("time_scale is more than 0.")
        prefix = self.base_prefix.strip("/")
        object.__setattr__(self, "base_prefix", f"/{prefix}" if prefix else "")
        if isinstance(self.faults, (str, Mapping)):
            raise ValueError("faults is a list of rules, not a single one.")
        object.__setattr__(self, "faults", tuple(Rule.read(rule) for rule in self.faults))
        for rule in self.faults:
            self.check_rule(rule)
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("tls_cert and tls_key are given together.")
        if self.tls and self.tls_cert:
            raise ValueError("tls makes a certificate, so there is no tls_cert beside it.")
        if self.ca_file and not self.tls:
            raise ValueError("ca_file is written for tls only.")
        for model, seconds in self.model_seconds.items():
            _check_number(f"model_seconds of {model}", seconds)

    def behaviour_of(self, model: str, changes: Mapping[str, Any]) -> Behaviour:
        """
        Return how a job of this model goes, in real seconds.

        What a rule says of it weighs more than the model's own time.
        """
        own = [seconds for part, seconds in self.model_seconds.items() if part in model]
        changes = {**({"run_seconds": own[-1]} if own else {}), **changes}
        return self._scaled(changes) if changes else self._common_behaviour

    @cached_property
    def _common_behaviour(self) -> Behaviour:
        """How most jobs go; made once, because a batch has many."""
        return self._scaled({})

    def _scaled(self, changes: Mapping[str, Any]) -> Behaviour:
        common = {name: getattr(self, name) for name in BEHAVIOUR_FIELDS}
        behaviour = Behaviour(**{**common, **changes})
        return behaviour.changed({name: getattr(behaviour, name) / self.time_scale for name in DURATIONS})

    def check_rule(self, rule: Rule) -> None:
        """Raise ValueError if a rule would change a job in a way that does not exist."""
        if rule.fault == "job":
            unknown = set(rule.options) - set(BEHAVIOUR_FIELDS)
            if unknown:
                raise ValueError(
                    f"A job has no {', '.join(sorted(unknown))}; it has {', '.join(BEHAVIOUR_FIELDS)}."
                )
            self.behaviour_of("", rule.options)


# What a time scale shortens: all times but the length of a video.
DURATIONS = (
    "queue_seconds",
    "run_seconds",
    "comment_seconds",
    "result_seconds",
    "large_result_seconds",
    "media_seconds",
    "kling_media_seconds",
    "luma_link_seconds",
)
USUAL = {each.name: each.default for each in dataclasses.fields(Behaviour)}
BEHAVIOUR_FIELDS = tuple(each.name for each in dataclasses.fields(Behaviour))


def _check(each: dataclasses.Field[Any], value: Any) -> None:
    choices = each.metadata.get("choices")
    if choices:
        if isinstance(value, bool) or value not in choices:
            raise ValueError(f"{each.name} is one of {', '.join(map(str, choices))}, not {value!r}.")
    elif isinstance(each.default, bool):
        if not isinstance(value, bool):
            raise ValueError(f"{each.name} is true or false, not {value!r}.")
    elif isinstance(each.default, int):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{each.name} is a whole number, not {value!r}.")
    elif isinstance(each.default, float):
        _check_number(each.name, value)
    elif isinstance(each.default, str) and not isinstance(value, str):
        raise ValueError(f"{each.name} is a text, not {value!r}.")


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ValueError(f"{name} is a number, not {value!r}.")
