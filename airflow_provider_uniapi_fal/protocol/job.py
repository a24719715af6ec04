"""A job as values: its handle, its status, its result and the media files in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from sys import intern
from typing import Any

from airflow_provider_uniapi_fal.protocol.checking import check_fields
from airflow_provider_uniapi_fal.protocol.origin import is_request_id, is_safe_path

SCHEMA_VERSION = 1


class JobState(str, Enum):
    """Where a job stands. ``UNKNOWN`` is a word of the server's that this version does not know."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class JobHandle:
    """
    What a submit returns: enough to watch the job from any process.

    It holds paths and no origin, because the key goes to the configured gateway only, whatever host a
    reply names.

    :param dialect: the wire protocol, such as ``fal``
    :param model: what it was submitted to, as the dialect writes it: a model id of fal's is without ``fal-ai/``
    :param request_id: the server's id for the job
    :param status_path: path of the status below the family's prefix
    :param response_path: path of the result below the family's prefix
    :param cancel_path: path of the cancellation, or None where the server gave none
    :param fal_conn_id: the Airflow connection that submitted it
    :param submitted_at: seconds since the epoch
    """

    dialect: str
    model: str
    request_id: str
    status_path: str
    response_path: str
    cancel_path: str | None
    fal_conn_id: str
    submitted_at: float

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values, for XCom, trigger arguments and the ledger."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, data: Any) -> JobHandle:
        """
        Read what :meth:`to_json` wrote; fields of a later version are passed over.

        :raises ValueError: if it is no handle, naming the field
        """
        if not isinstance(data, Mapping):
            raise ValueError(
                f"a handle is a mapping as FalSubmitOperator returns it, not {type(data).__name__}"
            )
        values: dict[str, Any] = {name: data.get(name) for name in cls.__dataclass_fields__}
        for name, value in values.items():
            if not _fits(name, value):
                raise ValueError(f"the handle's field {name!r} is missing or wrong")
        # Thousands of jobs share these words.
        return cls(
            **{**values, **{name: intern(str(values[name])) for name in ("dialect", "model", "fal_conn_id")}}
        )


def _fits(field: str, value: Any) -> bool:
    """Whether a value may be a handle's field: handles come back from XCom, which others can write, too."""
    if field == "submitted_at":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if field == "request_id":
        return is_request_id(value)
    if field.endswith("_path"):
        return is_safe_path(value) if isinstance(value, str) else value is None and field == "cancel_path"
    return isinstance(value, str)


@dataclass(frozen=True)
class LogLine:
    """
    One line that the model wrote while it ran.

    :param message: its text
    :param level: such as ``INFO``, where the model says so
    :param timestamp: when it was written, in the server's own form
    """

    message: str
    level: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class JobStatus:
    """
    One answer to "how is it going?".

    ``SUCCEEDED`` is provisional: success is proven only by the result itself, because a failed job, too,
    may be reported as completed.

    :param state: where the job stands
    :param word: the server's own word
    :param queue_position: number of requests ahead, while pending
    :param logs: the model's log lines so far
    :param error: the server's text, if it failed
    :param error_type: the server's machine-readable word for the error
    :param inference_time: seconds that the model ran, once completed
    """

    state: JobState
    word: str
    queue_position: int | None = None
    logs: tuple[LogLine, ...] = ()
    error: str | None = None
    error_type: str | None = None
    inference_time: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the job has ended, in whichever way."""
        return self.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True)
class MediaFile:
    """
    One file in a result.

    :param where: its place in the model's answer, such as ``images[0]``
    :param url: address to fetch it from without credentials; a data URI while in memory; None for a data
        URI that was left out of the JSON form
    :param content_type: as the server says
    :param file_name: as the server says
    :param file_size: bytes, as the server says
    :param width: pixels, as the server says
    :param height: pixels, as the server says
    :param flagged: the server marked it as unsafe; it is then usually a black picture
    """

    where: str
    url: str | None
    content_type: str | None = None
    file_name: str | None = None
    file_size: int | None = None
    width: int | None = None
    height: int | None = None
    flagged: bool = False

    @property
    def inline(self) -> bool:
        """Whether the bytes are (or were) in the result itself, as a data URI."""
        return self.url is None or self.url.startswith("data:")


@dataclass(frozen=True)
class JobResult:
    """
    What the model answered, proven a success.

    :param handle: the job
    :param data: the model's own answer
    :param media: the media files in it
    :param seed: the seed that the model says it has used
    :param billable_units: what the server says was charged, as it wrote it
    :param seconds_queued: time from submit to the first sight of it running
    :param seconds_running: the server's own figure, or else what was observed
    """

    handle: JobHandle
    data: Any
    media: tuple[MediaFile, ...] = ()
    seed: int | None = None
    billable_units: str | None = None
    seconds_queued: float | None = None
    seconds_running: float | None = None

    @property
    def flagged(self) -> bool:
        """Whether any file in it was marked as unsafe."""
        return any(file.flagged for file in self.media)

    def to_json(self, *, whole: bool = False) -> dict[str, Any]:
        """
        Return it as JSON values, without the bytes of data URIs: those never enter an event or an XCom.

        :param whole: with the bytes, for a file in storage
        """
        media = [replace(file, url=None) if file.inline and not whole else file for file in self.media]
        return {
            "schema_version": SCHEMA_VERSION,
            "handle": self.handle.to_json(),
            "data": self.data if whole else without_data_uris(self.data),
            "media": [dict(vars(file)) for file in media],  # asdict() takes twenty times as long
            "seed": self.seed,
            "billable_units": self.billable_units,
            "seconds_queued": self.seconds_queued,
            "seconds_running": self.seconds_running,
        }

    @classmethod
    def from_json(cls, data: Any) -> JobResult:
        """
        Read what :meth:`to_json` wrote; fields of a later version are passed over.

        :raises ValueError: if it is no result, saying why
        """
        files = data.get("media") if isinstance(data, Mapping) else None
        if not isinstance(files, list) or not all(_is_media_file(file) for file in files):
            given = "one without its media" if isinstance(data, Mapping) else type(data).__name__
            raise ValueError(f"a result is a mapping as FalQueueSensor returns it, not {given}")
        fields = MediaFile.__dataclass_fields__
        media = tuple(
            MediaFile(**{name: value for name, value in file.items() if name in fields}) for file in files
        )
        result = cls(
            handle=JobHandle.from_json(data.get("handle")),
            data=data.get("data"),
            media=media,
            seed=data.get("seed"),
            billable_units=data.get("billable_units"),
            seconds_queued=data.get("seconds_queued"),
            seconds_running=data.get("seconds_running"),
        )
        for part in (result, *media):
            check_fields(part)
        return result


def _is_media_file(value: Any) -> bool:
    return isinstance(value, Mapping) and {"where", "url"} <= value.keys()


def without_data_uris(value: Any) -> Any:
    """Return a copy of a JSON value in which each data URI is replaced by a note of its size."""
    if isinstance(value, dict):
        return {key: without_data_uris(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_data_uris(item) for item in value]
    if isinstance(value, str) and value.startswith("data:"):
        kind = value[5:60].partition(";")[0].partition(",")[0]
        return f"data:{kind},[{len(value)} characters left out; land them by the handle]"
    return value
