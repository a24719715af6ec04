from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalInputError
from airflow_provider_uniapi_fal.landing.inputs import with_files
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
