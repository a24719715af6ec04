"""The account: every request seen, every job, and how often each was paid for."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, deque
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.jobs import Job

KEPT_REQUESTS = 200_000
LABEL_LENGTH = 120
# A header without a scheme holds the bare key: only known schemes are ever written down.
KNOWN_SCHEMES = {"key": "Key", "bearer": "Bearer", "basic": "Basic"}


@dataclass(slots=True)
class SeenRequest:
    """One request, without its key and without its body."""

    number: int
    time: float
    method: str
    host: str
    path: str
    query: str
    has_authorization: bool
    scheme: str | None
    key_matched: bool = False
    operation: str | None = None
    request_id: str | None = None
    fault: str | None = None
    status: int | None = None
    """None when the connection was closed without an answer."""
    fal_headers: dict[str, str] = field(default_factory=dict)

    def as_mapping(self) -> dict[str, Any]:
        """Return all there is to know of it."""
        return {name: getattr(self, name) for name in REQUEST_FIELDS}


REQUEST_FIELDS = tuple(each.name for each in fields(SeenRequest))


@dataclass(slots=True)
class _Entry:
    job: Job
    arguments_hash: str
    prompt: str
    calls: Counter[str] = field(default_factory=Counter)


class Account:
    """What has been asked of the emulator since it started or was reset."""

    def __init__(self) -> None:
        self._requests: deque[SeenRequest] = deque(maxlen=KEPT_REQUESTS)
        self._entries: dict[str, _Entry] = {}
        self._posts_received = 0
        self._replies: Counter[str] = Counter()

    def see(self, request: SeenRequest) -> None:
        """Write a request down as it arrives."""
        self._requests.append(request)

    def called(self, request: SeenRequest) -> None:
        """Count a request whose operation and job are known."""
        if request.operation == "submit":
            self._posts_received += 1
        entry = self._entries.get(request.request_id or "")
        if entry is not None and request.operation is not None:
            entry.calls[request.operation] += 1

    def answered(self, request: SeenRequest, status: int | None) -> None:
        """Write down how a request was answered."""
        request.status = status
        self._replies["closed" if status is None else str(status)] += 1

    def accept(self, job: Job) -> None:
        """Write down a job, which is a post that was accepted."""
        self._entries[job.request_id] = _Entry(job, *_identity(job))

    def requests(self) -> list[dict[str, Any]]:
        """Return the requests seen, oldest first."""
        return [request.as_mapping() for request in self._requests]

    def report(self) -> dict[str, Any]:
        """Return the account of all jobs, as they stand."""
        groups: dict[str, dict[str, Any]] = {}
        for entry in self._entries.values():
            about = {"model": entry.job.model, "family": entry.job.family, "endpoint": entry.job.endpoint}
            new = {"posts": 0, **about, "prompt": entry.prompt, "request_ids": []}
            group = groups.setdefault(entry.arguments_hash, new)
            group["posts"] += 1
            group["request_ids"].append(entry.job.request_id)
        return {
            "totals": {
                "posts_received": self._posts_received,
                "posts_accepted": len(self._entries),
                "jobs_by_state": dict(Counter(entry.job.phase.value for entry in self._entries.values())),
                "replies_by_status": dict(self._replies),
            },
            "posts_by_arguments": groups,
            "jobs": [_job_report(entry) for entry in self._entries.values()],
        }


def _identity(job: Job) -> tuple[str, str]:
    """Return a hash of all that was asked for, which the order of keys does not change, and the prompt's beginning."""
    arguments = job.arguments
    asked = [job.family, job.endpoint, job.source, job.model, arguments]
    canonical = json.dumps(asked, sort_keys=True).encode()
    prompt = None
    if isinstance(arguments, dict):
        prompt = arguments.get("prompt", arguments.get("user_prompt"))
    label = prompt[:LABEL_LENGTH] if isinstance(prompt, str) else ""
    return hashlib.sha256(canonical).hexdigest(), label


def read_authorization(header: str | None) -> tuple[str | None, str]:
    """Return the scheme of an Authorization header, if it is a known one, and its credentials."""
    if header is None:
        return None, ""
    word, _, credentials = header.partition(" ")
    scheme = KNOWN_SCHEMES.get(word.lower())
    return (scheme, credentials.strip()) if scheme else (None, header)


def _job_report(entry: _Entry) -> dict[str, Any]:
    job = entry.job
    return {
        "request_id": job.request_id,
        "model": job.model,
        "family": job.family,
        "endpoint": job.endpoint,
        "prompt": entry.prompt,
        "arguments_hash": entry.arguments_hash,
        "accepted_posts": 1,
        "calls": {name: entry.calls[name] for name in ("status", "result", "cancel", "media")},
        "state": job.phase.value,
        "cancelled": job.cancelled,
        "cancel_requested": job.cancel_requested,
        "submitted_at": job.submitted_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "fal_headers": job.headers,
    }
