"""What all dialects read in the same way: errors in their many shapes, refusals, and media files."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from airflow_provider_uniapi_fal.protocol.dialects.base import LookAgain
from airflow_provider_uniapi_fal.protocol.errors import Billed, Failure, FailureKind, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobHandle, MediaFile
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, Unreadable, excerpt
from airflow_provider_uniapi_fal.protocol.retrying import look_again_after, retry_after

#: UniAPI's text for a model that the key's group has no channel for: a refusal, whatever its status code.
NO_CHANNEL = "没有可用渠道"

REFUSED_TYPES = {"content_policy_violation"}

LOOKS_AGAIN = "of a wait looks again and will find the same."

MEDIA_KEYS = ("images", "image", "videos", "video", "audio", "audios", "files", "file")


@dataclass(frozen=True)
class Refusal:
    """
    What a vendor's own error code stands for.

    :param stands_for: the HTTP status that says the same, whatever status the code came under
    :param content: the content was refused
    """

    stands_for: int
    content: bool = False


@dataclass(frozen=True)
class Detail:
    """
    The server's word and text for an error, from whichever of its shapes.

    ``detail`` is a list (of the model), a text (of the platform) or a mapping; ``error`` a text or a mapping
    (of gateways in OpenAI's style); ``message`` stands alone in others. Of a list only place, type and message
    are taken: its ``input`` is the user's own input and stays out of messages.
    """

    type: str | None
    text: str | None

    @property
    def words(self) -> str:
        """Return it in brackets, to be put into a sentence; empty if nothing was said."""
        said = ": ".join(part for part in (self.type, self.text) if part)
        return f" ({said})" if said else ""

    @classmethod
    def of(cls, body: Any, said_before: str | None = None) -> Detail:
        """
        Read a body.

        :param said_before: the type that a header has named already
        """
        if isinstance(body, Unreadable):
            return cls(said_before, body.excerpt or None)
        if not isinstance(body, dict):
            return cls(said_before, None)
        kind = body.get("error_type") or said_before
        texts: list[str] = []
        for item in (body.get("detail"), body.get("error"), body.get("message")):
            for part in item if isinstance(item, list) else [item]:
                if isinstance(part, str):
                    texts.append(part)
                elif isinstance(part, dict):
                    kind = kind or part.get("type") or part.get("code")
                    steps = part.get("loc")
                    place = ".".join(str(step) for step in steps) if isinstance(steps, list) else ""
                    said = str(part.get("msg") or part.get("message") or part.get("type") or "")
                    texts.append(": ".join(word for word in (place, said) if word))
        return cls(excerpt(str(kind)) if kind else None, excerpt("; ".join(t for t in texts if t)) or None)


def page_instead(reply: HttpReply, body: Any, now: float) -> LookAgain | None:
    """
    Read an error whose body is not JSON; None if it is.

    A proxy, a firewall or a router has said it, and says nothing of the job, the key or the account, whatever its
    code. Under a 404 it may be that of a path which the gateway does not have.
    """
    if not isinstance(body, Unreadable):
        return None
    return LookAgain(
        f"HTTP {reply.status} without an answer in JSON{quoted(body)}",
        look_again_after(reply, now),
        not_found=reply.status == 404,
        key_refused=reply.status == 401,
    )


def refused_read(
    handle: JobHandle,
    reply: HttpReply,
    body: Any,
    detail: Detail,
    now: float,
    *,
    may_run: bool,
    code: Refusal | None = None,
) -> LookAgain | Failure:
    """
    Read a status or result that came back as something else than 2xx, the job itself not being the cause.

    :param body: what was read of the reply
    :param code: the vendor's own code, which counts more than the HTTP status
    """
    status = reply.status if code is None else code.stands_for
    if 300 <= status < 400:
        return LookAgain("the gateway answered with a redirect, which is not followed", bounded=True)
    page = page_instead(reply, body, now)
    if page is not None:
        return page
    if status in (401, 402, 403):
        auth = status == 401
        return Failure(
            FailureKind.AUTH if auth else FailureKind.BALANCE,
            what=(
                f"The gateway refused the key when asked for the job{detail.words}."
                if auth
                else f"The gateway refused the account when asked for the job{detail.words}."
            ),
            retry_does="is not made; a clear looks at the same job again.",
            advice=(
                "Correct the connection's key; the job itself is not affected."
                if auth
                else "See to the account's balance; the job itself is not affected."
            ),
            billed="maybe",
            may_run=may_run,
            error_type=detail.type,
            http_status=reply.status,
            request_id=handle.request_id,
        )
    if status == 404:
        return LookAgain("the gateway does not know the job under this path", bounded=True, not_found=True)
    passing = status >= 500 or status in (408, 425, 429)
    return LookAgain(f"HTTP {reply.status}{detail.words}", look_again_after(reply, now), bounded=not passing)


def refused_submit(
    reply: HttpReply,
    detail: Detail,
    now: float,
    *,
    code: Refusal | None = None,
    billed: Billed | None = None,
) -> Failure:
    """
    Read a submit that was refused for a reason, or that has an outcome which nobody knows.

    :param code: the vendor's own code, which counts more than the HTTP status
    :param billed: what the server itself says of the bill
    """
    status = reply.status if code is None else code.stands_for

    def refused(
        kind: FailureKind, what: str, advice: str, *, billed: Billed = "no", passes: bool = False
    ) -> Failure:
        return Failure(
            kind,
            what=f"{what}{detail.words}. Nothing was accepted.",
            retry_does="submits." if passes else "would be refused in the same way.",
            advice=advice,
            billed=billed,
            error_type=detail.type,
            http_status=reply.status,
            retry_after=retry_after(reply, now),
        )

    if NO_CHANNEL in (detail.text or ""):
        return refused(
            FailureKind.INPUT,
            "The gateway has no channel for this model in the key's group",
            "Choose another model, or have the key's group changed.",
        )
    if status == 429:
        return refused(
            FailureKind.RATE_LIMITED,
            "The gateway takes no more jobs at the moment",
            "Lower the number of tasks that submit at once.",
            passes=True,
        )
    if status == 401:
        return refused(FailureKind.AUTH, "The gateway refused the key", "Correct the key in the connection.")
    if status in (402, 403):
        return refused(
            FailureKind.BALANCE,
            "The gateway refused the account",
            f"HTTP {reply.status} here means an exhausted balance or a locked account: see to the account.",
        )
    if status in (400, 404, 405, 410, 413, 415, 422):
        return refused(
            FailureKind.CONTENT_REFUSED
            if detail.type in REFUSED_TYPES or (code is not None and code.content)
            else FailureKind.INPUT,
            f"The gateway refused the submit with HTTP {reply.status}",
            "Correct model or arguments; for a 404 look at the connection's host, too.",
            billed=billed or ("maybe" if status == 422 else "no"),
        )
    if 300 <= status < 400:
        return refused(
            FailureKind.PROTOCOL,
            "The gateway answered the submit with a redirect, which is not followed, because the key goes to the "
            "configured address only",
            "Give the final address as the connection's host.",
            passes=True,
        )
    return unknown_outcome(f"the gateway answered with HTTP {reply.status}{detail.words}", reply.status)


def failed_submit(reply: HttpReply, detail: Detail, request_id: str | None = None) -> Failure:
    """Return the failure for a submit that was answered with 2xx, and with an error in the body."""
    return Failure(
        FailureKind.JOB_FAILED,
        what=f"The gateway answered the submit with a failure{detail.words}.",
        retry_does="fails at once without a submit; clear the task to submit again.",
        billed="maybe",
        error_type=detail.type,
        http_status=reply.status,
        request_id=request_id,
    )


def files_below(value: Any, where: str) -> Iterator[MediaFile]:
    """Find the media files in an answer, each with its place in it: every mapping with a URL, wherever it is."""
    if isinstance(value, dict):
        if is_media_url(value.get("url")):
            yield MediaFile(
                where=where or "url",
                url=value["url"],
                content_type=text_or_none(value.get("content_type")),
                file_name=text_or_none(value.get("file_name")),
                file_size=whole_or_none(value.get("file_size")),
                width=whole_or_none(value.get("width")),
                height=whole_or_none(value.get("height")),
            )
            return
        for key, item in value.items():
            inner = f"{where}.{key}" if where else key
            if not where and (key.endswith("_url") or key in MEDIA_KEYS) and is_media_url(item):
                yield MediaFile(inner, item)
            else:
                yield from files_below(item, inner)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            inner = f"{where}[{index}]"
            if where in MEDIA_KEYS and is_media_url(item):
                yield MediaFile(inner, item)
            else:
                yield from files_below(item, inner)


def is_media_url(value: object) -> bool:
    """Whether a value is an address of a media file, or the file itself as a data URI."""
    return isinstance(value, str) and value.startswith(("http://", "https://", "data:"))


def number(value: object) -> float | None:
    """Return a finite number as a float, None for anything else."""
    try:
        found = float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def whole_or_none(value: object) -> int | None:
    """Return a whole number, None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def text_or_none(value: object) -> str | None:
    """Return a text, None for anything else."""
    return value if isinstance(value, str) else None


def quoted(body: object) -> str:
    """Return the beginning of a body that is not JSON, to be put after a sentence."""
    return f": {body.excerpt!r}" if isinstance(body, Unreadable) and body.excerpt else ""


def no_media(handle: JobHandle, why: str, billed: Billed = "maybe") -> Failure:
    """Return the failure of a job that ended well by its own word, and brought nothing."""
    return Failure(
        FailureKind.JOB_FAILED,
        what=f"The job is completed, but its result has no media: {why}.",
        retry_does=LOOKS_AGAIN,
        billed=billed,
        error_type="no_media_generated",
        request_id=handle.request_id,
    )
