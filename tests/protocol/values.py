"""Short ways to write accounts, handles, replies and whole conversations in tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from airflow_provider_uniapi_fal.protocol.dialects.fal import FalDialect
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.protocol.messages import Flow, HttpReply, HttpRequest, Send, Sent
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount, read_account

KEY = "sk-test-0123456789"
BASE = "https://api.uniapi.io"
NOW = 1_700_000_000.0
DIALECT = FalDialect()
HANDLE = JobHandle(
    dialect="fal",
    model="flux/dev",
    request_id="r-1",
    status_path="/flux/requests/r-1/status",
    response_path="/flux/requests/r-1",
    cancel_path="/flux/requests/r-1/cancel",
    fal_conn_id="fal_default",
    submitted_at=NOW,
)

T = TypeVar("T")


def account(base_url: str = BASE, **changes: Any) -> GatewayAccount:
    return GatewayAccount(base_url=base_url, key=KEY, **changes)


def read(
    host: str | None = None,
    port: int | None = None,
    schema: str | None = None,
    key: str | None = KEY,
    **extra: Any,
) -> GatewayAccount | Failure:
    return read_account(host=host, port=port, schema=schema, key=key, extra=extra)


def reply(body: Any = None, status: int = 200, **headers: str) -> HttpReply:
    """Return a reply; bytes are sent as they are, everything else as JSON."""
    written = body if isinstance(body, bytes) else json.dumps(body).encode()
    return HttpReply(status, {name.replace("_", "-"): value for name, value in headers.items()}, written)


def failure(value: object) -> Failure:
    assert isinstance(value, Failure), f"no failure but {value!r}"
    return value


@dataclass
class Conversation:
    """Drives a flow with scripted answers and a clock that only sleeping (and ``lag``) moves."""

    answers: Sequence[Sent]
    now: float = NOW
    lag: float = 0.0
    sent: list[HttpRequest] = field(default_factory=list)
    slept: list[float] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def run(self, flow: Flow[T]) -> T:
        answer: Sent | None = None
        while True:
            try:
                effect = flow.send(answer)
            except StopIteration as end:
                value: T = end.value
                return value
            if isinstance(effect, Send):
                assert len(self.sent) < len(self.answers), f"unexpected request: {effect.request}"
                answer = self.answers[len(self.sent)]
                self.sent.append(effect.request)
                self.now += self.lag
            else:
                answer = None
                self.slept.append(effect.seconds)
                self.now += effect.seconds

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.sent]


def converse(make: Callable[[Conversation], Flow[T]], *answers: Sent) -> tuple[T, Conversation]:
    """Run a flow against the answers, all of which it must ask for."""
    conversation = Conversation(answers)
    value = conversation.run(make(conversation))
    assert len(conversation.sent) == len(answers), "fewer requests than answers"
    return value, conversation


def handle(**changes: Any) -> JobHandle:
    return replace(HANDLE, **changes)
