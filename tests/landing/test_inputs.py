from __future__ import annotations

import base64
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from botocore.exceptions import EndpointConnectionError  # type: ignore[import-untyped]
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalInputError, FalProtocolError
from airflow_provider_uniapi_fal.landing.inputs import schema_of, with_files
from airflow_provider_uniapi_fal.protocol.dialects.base import MediaInputs

if TYPE_CHECKING:
    from pathlib import Path


def picture(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, file_format)
    return buffer.getvalue()


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp", "gif"])
def test_a_picture_becomes_a_data_uri_of_its_own_type(tmp_path: Path, file_format: str) -> None:
    path = tmp_path / "picture.any"
    path.write_bytes(picture(file_format))
    [uri] = with_data_uris({"image_url": path.as_uri()}).values()
    header, _, payload = uri.partition(",")
    assert header == f"data:image/{file_format};base64"
    assert base64.b64decode(payload) == path.read_bytes()


def test_any_object_storage_and_any_depth_will_do() -> None:
    attach("memory", fs=MemoryFileSystem())
    with ObjectStoragePath("memory://inputs/a.png").open("wb") as writer:
        writer.write(picture("png"))
    address = "memory://inputs/a.png"
    found = with_data_uris({"frames": [{"mask_urls": (address, address)}], "image_url": address})
    converted = [*found["frames"][0]["mask_urls"], found["image_url"]]
    assert len(converted) == 3
    assert all(each.startswith("data:image/png;base64,") for each in converted)


def test_all_else_stays_as_it_is() -> None:
    arguments: dict[str, Any] = {
        "prompt": "file:///etc/passwd",
        "url": "s3://not/looked-at",
        "image_url": "https://example.com/a.png",
        "mask_url": "data:image/png;base64,AAAA",
        "end_url": None,
        "loras": [{"path": "file:///etc/passwd", "scale": 1}],
    }
    assert with_data_uris(arguments) == arguments


def with_data_uris(arguments: dict[str, Any]) -> dict[str, Any]:
    return with_files(arguments, MediaInputs())


TEXTS = {
    "a text": b"the password is swordfish",
    "one that begins like a bitmap": b"BM_PASSWORD=swordfish\n",
    "one that begins like a module": b"if [ -r ~/.secrets ]; then . ~/.secrets; fi\n",
    "one that begins like a portable map": b"P1 password\nP2 swordfish\n",
    "one that begins like an MP3": b"ID3 notes and passwords",
    "a C header": b"#define PASSWORD swordfish\n",
    "a page": b"<!doctype html><title>x</title>",
    "nothing": b"",
    "a database": b"SQLite format 3\x00\x10\x00",
    "an archive": b"PK\x03\x04\x14\x00\x00\x00\x08\x00",
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS)
def test_a_file_that_is_no_media_is_never_sent(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)
    with pytest.raises(FalInputError, match=r"arguments\.image_url names a file that is no picture"):
        with_data_uris({"image_url": path.as_uri()})


def test_a_file_too_large_is_refused_and_one_of_the_limit_is_not(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(picture("png"))
    size = path.stat().st_size
    arguments = {"image_url": path.as_uri()}
    assert with_files(arguments, MediaInputs(max_bytes=size))
    with pytest.raises(
        FalInputError, match=rf"arguments\.image_url names a file of more than the {size - 1}"
    ):
        with_files(arguments, MediaInputs(max_bytes=size - 1))


def test_a_device_without_an_end_does_not_fill_the_memory() -> None:
    with pytest.raises(FalInputError, match="more than"):
        with_data_uris({"image_url": "file:///dev/zero"})


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("file:///nowhere/a.png", "cannot be read"),
        ("file:///", "cannot be read"),
        ("odd://bucket/a.png", "cannot be read"),
        ("/data/a.png", "neither an address on the web nor one in storage"),
        ("a.png", "neither an address on the web nor one in storage"),
        ("", "neither an address on the web nor one in storage"),
    ],
)
def test_an_address_that_leads_to_no_file_is_refused_by_its_place(address: str, says: str) -> None:
    with pytest.raises(FalInputError, match=rf"arguments\.shots\[1\]\.image_url .*{says}"):
        with_data_uris({"shots": [{}, {"image_url": address}]})


@pytest.mark.parametrize("error", [OSError("SlowDown"), EndpointConnectionError(endpoint_url="http://x")])
def test_a_file_that_storage_does_not_give_now_is_no_wrong_input(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise error

    for reading in ("open", "read_bytes"):
        monkeypatch.setattr(ObjectStoragePath, reading, away)
    with pytest.raises(
        FalProtocolError, match=r"arguments\.image_url names a file that cannot be read"
    ) as raised:
        with_data_uris({"image_url": "file:///in/a.png"})
    assert (raised.value.billed, raised.value.may_run) == ("no", False)
    with pytest.raises(FalProtocolError, match="arguments_schema cannot be read"):
        schema_of("file:///in/schema.json")


def test_a_vendor_gets_a_file_in_its_own_form_and_of_its_own_types(tmp_path: Path) -> None:
    rule = MediaInputs(keys=("image", "mask"), endings=(), bare=True, kinds=("image/png",))
    path = tmp_path / "a.png"
    path.write_bytes(picture("png"))
    address = path.as_uri()
    found = with_files({"image": address, "masks": [{"mask": address}], "image_url": address}, rule)
    encoded = base64.b64encode(path.read_bytes()).decode()
    assert found == {"image": encoded, "masks": [{"mask": encoded}], "image_url": address}
    assert with_files({"image": encoded}, rule) == {"image": encoded}
    path.write_bytes(picture("jpeg"))
    with pytest.raises(FalInputError, match=r"arguments\.image names a file of the type image/jpeg"):
        with_files({"image": address}, rule)


# --- schemas ------------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "required": ["prompt"]}
OPENAPI = {
    "openapi": "3.0.4",
    "paths": {"/m": {"post": {"requestBody": {"content": {"application/json": {"schema": SCHEMA}}}}}},
}


def test_a_schema_comes_from_a_mapping_a_name_or_a_file(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(SCHEMA))
    assert schema_of(SCHEMA) == schema_of(str(path)) == schema_of(path.as_uri()) == SCHEMA
    assert schema_of("kling/videos/text2video")["required"] == ["prompt"]


def test_a_models_openapi_file_that_a_user_saved_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "openapi.json"
    path.write_text(json.dumps(OPENAPI))
    assert schema_of(path.as_uri())["required"] == ["prompt"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("no/such/schema", "cannot be read"),
        ("file:///nowhere.json", "shipped are fal/flux-pro"),
        ("odd://bucket/schema.json", "arguments_schema"),
        ({"type": 5}, "holds no schema"),
        ([SCHEMA], "holds no schema"),
        (5, "holds no schema"),
    ],
)
def test_what_is_no_schema_is_refused_by_name(given: Any, says: str) -> None:
    with pytest.raises(FalInputError, match=says):
        schema_of(given)


def test_a_file_that_is_no_json_is_no_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text("{")
    with pytest.raises(FalInputError, match="holds no schema"):
        schema_of(path.as_uri())
