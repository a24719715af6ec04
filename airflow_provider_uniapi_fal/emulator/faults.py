"""
Rules: which call goes wrong how, and which jobs differ from the rest.

A rule is written as a mapping, ``{"fault": "lost-reply", "on": "submit", "match": "storm", "times": 1}``, or in
words, ``lost-reply on=submit match=storm times=1``. ``match`` is a part of the raw body of the submit; for later calls
it is looked for in the body of the submit that began the job. ``family=kling`` narrows a rule to one family. The fault
``job`` changes no call but the behaviour of
the jobs it matches: ``job match=storm failure=refused``. A request may also bring rules for itself alone, in the
header ``X-Emulator-Fault``.
"""

from __future__ import annotations

import asyncio
import json
import math
import shlex
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime
from typing import Any

from airflow_provider_uniapi_fal.emulator.refusals import REASONS, Manners
from airflow_provider_uniapi_fal.emulator.reply import HangUp, Journey, Reply

OPERATIONS = ("submit", "status", "stream", "result", "cancel", "list", "media", "probe")
FAMILIES = ("fal", "kling", "luma", "openai-images")
WORDED_REASONS = tuple(reason for reason in REASONS if not reason.startswith("kling-"))


@dataclass(frozen=True)
class Fault:
    """One kind of fault: what it does, and its options with their defaults; None takes options of any name."""

    says: str
    options: Mapping[str, Any] | None = field(default_factory=dict)


FAULTS = {
    "lost-reply": Fault(
        "the call is carried out, then the connection is closed (or reset) without an answer",
        {"reset": False},
    ),
    "lost-request": Fault(
        "the connection is closed (or reset) before the call is carried out", {"reset": False}
    ),
    "turned-away": Fault(
        f"the call is answered, but not carried out, because of {', '.join(WORDED_REASONS)}, "
        "or kling-N, which is Kling's error N",
        {"because": "locked"},
    ),
    "rate-limit": Fault(
        "429 with Retry-After, in seconds or as a date", {"retry_after": 1.0, "form": "seconds"}
    ),
    "server-error": Fault(
        "a 5xx; with accepted=true the call is carried out first", {"status": 503, "accepted": False}
    ),
    "html": Fault("a proxy's HTML page instead of JSON", {"status": 502, "accepted": False}),
    "redirect": Fault(
        "a redirect to another host; to='' leads back here",
        {"to": "https://elsewhere.invalid", "status": 307},
    ),
    "slow": Fault("the call is carried out, the answer comes later", {"seconds": 5.0}),
    "trickle": Fault(
        "the answer begins at once, its body comes in pieces over a time", {"seconds": 5.0, "pieces": 20}
    ),
    "truncated": Fault(
        "Content-Length is right, but only a share of the body comes", {"share": 0.5, "reset": False}
    ),
    "oversized": Fault(
        "the body is padded to a size in bytes, with or without Content-Length",
        {"size": 64 * 1024 * 1024, "announced": True},
    ),
    "heartbeat": Fault("a 200 at once, blank lines, then the real body", {"beats": 3, "seconds": 0.05}),
    "bom": Fault("a byte order mark before the body"),
    "empty": Fault("an answer without a body"),
    "not-utf8": Fault("a body in Latin-1"),
    "content-type": Fault("a body under another content type", {"type": "application/octet-stream"}),
    "body": Fault(
        "sets fields of a JSON body, such as status=PAUSED data.task_status=odd; =missing takes one out", None
    ),
    "job": Fault(
        "changes the jobs it matches: any setting of a job, such as failure=refused or run_seconds=9", None
    ),
}
# These options are times, and pass faster on a faster scale.
TIMES = ("seconds", "retry_after")


@dataclass(frozen=True)
class Rule:
    """One fault, the calls it strikes, and how often."""

    fault: str
    on: str = "submit"
    match: str = ""
    times: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""

    def __post_init__(self) -> None:
        if self.family not in ("", *FAMILIES):
            raise ValueError(f"'family' is one of {', '.join(FAMILIES)}, not {self.family!r}.")
        if not isinstance(self.fault, str) or self.fault not in FAULTS:
            raise ValueError(f"There is no fault {self.fault!r}; there are {', '.join(FAULTS)}.")
        if self.on not in OPERATIONS:
            raise ValueError(f"'on' is one of {', '.join(OPERATIONS)}, not {self.on!r}.")
        if self.times is not None and (type(self.times) is not int or self.times < 1):
            raise ValueError(f"'times' is a whole number from 1, or null for every time; not {self.times!r}.")
        known = FAULTS[self.fault].options
        if known is not None:
            self._check_options(known)

    def _check_options(self, known: Mapping[str, Any]) -> None:
        for name, value in self.options.items():
            if name not in known:
                has = ", ".join(known) or "none"
                raise ValueError(f"{self.fault} has no option {name!r}; its options: {has}.")
            kind = type(known[name])
            right = type(value) is kind or (kind is float and type(value) is int)
            if not right or (kind in (int, float) and not 0 <= value < math.inf):
                raise ValueError(f"{name} of {self.fault} is like {known[name]!r}, not {value!r}.")
        if not 200 <= self.option("status", 500) <= 599:
            raise ValueError(f"status of {self.fault} is an HTTP code from 200 to 599.")
        if self.option("form", "seconds") not in ("seconds", "date"):
            raise ValueError("form of rate-limit is seconds or date.")
        if self.option("because", "locked") not in REASONS:
            raise ValueError(f"because of turned-away is one of {', '.join(REASONS)}.")
        if self.option("share", 0) >= 1:
            raise ValueError("share of truncated is less than 1.")
        if self.option("pieces", 1) < 1:
            raise ValueError("pieces of trickle is a whole number from 1.")

    @classmethod
    def read(cls, written: str | Mapping[str, Any] | Rule) -> Rule:
        """Read a rule from a mapping, from JSON, or from words."""
        if isinstance(written, Rule):
            return written
        fields = dict(_read_text(written)) if isinstance(written, str) else dict(written)
        own = {
            name: fields.pop(name) for name in ("fault", "on", "match", "times", "family") if name in fields
        }
        if "fault" not in own:
            raise ValueError("A rule names its fault.")
        own["match"] = str(own.get("match", ""))
        return cls(**own, options=fields)

    def as_mapping(self) -> dict[str, Any]:
        """Return the mapping that reads back as this rule."""
        family = {"family": self.family} if self.family else {}
        return {
            "fault": self.fault,
            "on": self.on,
            "match": self.match,
            "times": self.times,
            **family,
            **self.options,
        }

    def matches(self, submitted: bytes) -> bool:
        """Tell whether a submit's body has the text in it, as it is or the way JSON may write it."""
        written = (json.dumps(self.match, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
        return any(form.encode("utf-8", "replace") in submitted for form in (self.match, *written))

    def option(self, name: str, default: Any = None) -> Any:
        """Return one option, or its default."""
        return self.options.get(name, (FAULTS[self.fault].options or {}).get(name, default))

    def on_scale(self, time_scale: float) -> Rule:
        """Return the rule with its times divided by a time scale."""
        known = FAULTS[self.fault].options or {}
        times = {name: self.option(name) / time_scale for name in TIMES if name in known}
        return replace(self, options={**self.options, **times}) if times else self


def _read_text(text: str) -> Mapping[str, Any]:
    if text.lstrip().startswith("{"):
        fields = json.loads(text)
        return fields if isinstance(fields, dict) else {}
    name, *rest = shlex.split(text) or [""]
    pairs = [part.partition("=") for part in rest]
    for key, equals, _ in pairs:
        if not equals:
            raise ValueError(f"{key!r} in the rule is not of the form name=value.")
    return {"fault": name, **{key: _read_value(value) for key, _, value in pairs}}


def _read_value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value


class RuleBook:
    """The rules in force, each with the number of times it may still strike; every change of them is told."""

    def __init__(self, rules: Iterable[Rule] = (), changed: Callable[[], None] = lambda: None) -> None:
        self._rules = list(rules)
        self._changed = changed

    def add(self, rule: Rule) -> None:
        """Put a rule in force, after those that are."""
        self._rules.append(rule)
        self._changed()

    def clear(self) -> None:
        """Take all rules out of force."""
        self._rules.clear()
        self._changed()

    def all(self) -> list[Rule]:
        """Return the rules in force."""
        return list(self._rules)

    def strike(self, operation: str, submitted: bytes, family: str = "fal") -> Rule | None:
        """Return the first rule that strikes this call, and count it."""
        for index, rule in enumerate(self._rules):
            if (
                rule.fault != "job"
                and rule.on == operation
                and rule.family in ("", family)
                and rule.matches(submitted)
            ):
                self._count(index)
                return rule
        return None

    def changes(self, submitted: bytes, family: str = "fal") -> dict[str, Any]:
        """Return what the rules change in a job that begins, and count them; later rules weigh more."""
        changes: dict[str, Any] = {}
        for index in reversed(range(len(self._rules))):
            rule = self._rules[index]
            if rule.fault == "job" and rule.family in ("", family) and rule.matches(submitted):
                self._count(index)
                changes = {**rule.options, **changes}
        return changes

    def _count(self, index: int) -> None:
        rule = self._rules[index]
        if rule.times is None:
            return
        if rule.times <= 1:
            del self._rules[index]
        else:
            self._rules[index] = replace(rule, times=rule.times - 1)
        self._changed()


class Allowance:
    """
    Calls that may be made: so many in a second, and, after a pause, as many as a second brings at once.

    :param per_second: 0 is without limit
    """

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._most = max(per_second, 1.0)
        self._left = self._most
        self._counted_at: float | None = None

    def take(self, now: float) -> bool:
        """Make a call, if one may be made now."""
        if not self._per_second:
            return True
        since = now - (now if self._counted_at is None else self._counted_at)
        self._counted_at = now
        self._left = min(self._left + since * self._per_second, self._most)
        if self._left < 1:
            return False
        self._left -= 1
        return True


def read_header(lines: Iterable[str], operation: str) -> RuleBook:
    """Read the rules that a request brings for itself."""
    rules = [Rule.read({"on": operation, **_read_text(line)}) for line in lines]
    for rule in rules:
        if rule.on != operation:
            raise ValueError(f"A request's own rule holds for it alone, a {operation}; not on={rule.on}.")
        if rule.fault == "job" and operation != "submit":
            raise ValueError(f"A {operation} begins no job to change.")
    return RuleBook(rules)


async def carry_out(
    rule: Rule, proceed: Callable[[], Awaitable[Reply]], path: str, manners: Manners
) -> Reply | HangUp:
    """Answer a call the way the rule says, or not at all; refusals are in the words of the call's family."""
    if rule.fault == "lost-request":
        return HangUp(rule.option("reset"))
    if rule.fault == "turned-away":
        return manners.refusal(rule.option("because"))
    if rule.fault == "rate-limit":
        headers = {"Retry-After": _retry_after(rule.option("retry_after"), rule.option("form"))}
        return replace(manners.rate_limit(), headers=headers)
    if rule.fault == "redirect":
        return Reply.json({}, rule.option("status"), {"Location": rule.option("to").rstrip("/") + path})
    if rule.fault in ("server-error", "html"):
        if rule.option("accepted"):
            await proceed()
        status = rule.option("status")
        return (
            Reply.html(status) if rule.fault == "html" else manners.error(status, "The service is not well.")
        )
    return await _dressed(rule, await proceed())


async def _dressed(rule: Rule, reply: Reply) -> Reply | HangUp:
    if rule.fault == "lost-reply":
        return HangUp(rule.option("reset"))
    if rule.fault == "slow":
        await asyncio.sleep(rule.option("seconds"))
        return reply
    if rule.fault == "heartbeat":
        journey = Journey(beats=rule.option("beats"), pause=rule.option("seconds"), announced=False)
        return replace(reply, status=200, journey=journey)
    if rule.fault == "trickle":
        pieces = rule.option("pieces")
        pause = rule.option("seconds") / max(1, pieces - 1)
        return replace(reply, journey=Journey(pieces=pieces, pause=pause))
    if rule.fault == "truncated":
        return replace(reply, journey=Journey(share=rule.option("share"), reset=rule.option("reset")))
    if rule.fault == "oversized":
        padding = max(0, rule.option("size") - len(reply.body))
        return replace(reply, journey=Journey(padding=padding, announced=rule.option("announced")))
    if rule.fault == "content-type":
        return replace(reply, content_type=rule.option("type"))
    if rule.fault == "bom":
        return replace(reply, body=b"\xef\xbb\xbf" + reply.body)
    if rule.fault == "empty":
        return replace(reply, body=b"")
    if reply.content_type != "application/json":
        return reply
    payload = json.loads(reply.body)
    if not isinstance(payload, dict):
        return reply
    if rule.fault == "body":
        for path, value in rule.options.items():
            _put(payload, path.split("."), value)
        return replace(reply, body=_written(payload))
    # A note with an accent makes sure that the bytes are no valid UTF-8, whatever the reply said.
    return replace(reply, body=_written({**payload, "note": "servi à la volée"}, "latin-1"))


def _put(payload: dict[str, Any], path: list[str], value: Any) -> None:
    """Set the field that a path leads to, or take it out; what is on the way and no object is replaced by one."""
    *parents, name = path
    for each in parents:
        if not isinstance(payload.get(each), dict):
            payload[each] = {}
        payload = payload[each]
    if value == "missing":
        payload.pop(name, None)
    else:
        payload[name] = value


def _written(payload: Any, encoding: str = "utf-8") -> bytes:
    # Half of a surrogate pair has no place in UTF-8, but JSON can write it.
    unfit = "backslashreplace" if encoding == "utf-8" else "replace"
    return json.dumps(payload, ensure_ascii=False).encode(encoding, unfit)


def _retry_after(seconds: float, form: str) -> str:
    if form == "seconds":
        return str(math.ceil(seconds))
    # A date has whole seconds; rounded up, so that it is never earlier than asked.
    when = datetime.now(timezone.utc) + timedelta(seconds=seconds)
    if when.microsecond:
        when = when.replace(microsecond=0) + timedelta(seconds=1)
    return format_datetime(when, usegmt=True)
