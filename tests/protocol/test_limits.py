"""What vendors document as limits is checked before anything is paid, and one error names every wrong field."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from PIL import Image

from airflow_provider_uniapi_fal.protocol import schemas
from airflow_provider_uniapi_fal.protocol.arguments import schema_problems
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.messages import HttpRequest
from airflow_provider_uniapi_fal.protocol.pictures import pixels
from airflow_provider_uniapi_fal.protocol.schemas import schema_in, shipped, shipped_schema

IMAGES, TEXT, IMAGE, TRY_ON = (
    "images/generations",
    "videos/text2video",
    "videos/image2video",
    "images/kolors-virtual-try-on",
)
URL = "https://example.com/a.png"


def picture(width: int, height: int, file_format: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(target, file_format)
    return target.getvalue()


def bare(width: int = 320, height: int = 400, file_format: str = "PNG") -> str:
    return base64.b64encode(picture(width, height, file_format)).decode()


def asked(dialect: str, model: str, arguments: Any, **options: Any) -> HttpRequest | Failure:
    return dialect_named(dialect).submit_request(model, arguments, options)


SIMPLE = {"type": "simple", "config": {"zoom": 3}}
LINE = [{"x": 1, "y": 2}, {"x": 3, "y": 4}]

ACCEPTED: list[tuple[str, str, dict[str, Any]]] = [
    ("kling", IMAGES, {"prompt": "p" * 2500, "n": 9, "aspect_ratio": "21:9", "resolution": "2k"}),
    ("kling", IMAGES, {"prompt": "p", "image": URL, "image_reference": "face", "image_fidelity": 0.5}),
    ("kling", IMAGES, {"prompt": "p", "image": bare(300, 750, "JPEG")}),
    (
        "kling",
        TEXT,
        {"prompt": "p", "duration": "10", "mode": "pro", "cfg_scale": 1, "camera_control": SIMPLE},
    ),
    ("kling", TEXT, {"prompt": "p", "camera_control": {"type": "down_back"}}),
    ("kling", TEXT, {"prompt": "p", "model_name": "kling-v2-master"}),
    ("kling", IMAGE, {"image": "s3://bucket/a.png"}),
    ("kling", IMAGE, {"image_tail": URL}),
    ("kling", IMAGE, {"image": URL, "image_tail": URL}),
    (
        "kling",
        IMAGE,
        {"image": URL, "dynamic_masks": [{"mask": URL, "trajectories": LINE}], "static_mask": URL},
    ),
    (
        "kling",
        TRY_ON,
        {"human_image": URL, "cloth_image": bare(), "model_name": "kolors-virtual-try-on-v1-5"},
    ),
    ("luma", "generations", {"user_prompt": "p", "loop": True, "aspect_ratio": "16:9", "duration": "9s"}),
    ("luma", "generations/t-1/extend", {"user_prompt": "p", "image_end_url": URL}),
    (
        "openai_images",
        "gpt-image-1",
        {"prompt": "p", "n": 10, "size": "1024x1024", "response_format": "b64_json"},
    ),
]


@pytest.mark.parametrize(("dialect", "model", "arguments"), ACCEPTED)
def test_what_the_vendor_takes_is_sent_as_it_stands(dialect: str, model: str, arguments: Any) -> None:
    request = asked(dialect, model, arguments)
    assert isinstance(request, HttpRequest), str(request)
    own = {"model": model} if dialect == "openai_images" else {}
    assert request.json == {**own, **arguments}


REFUSED: list[tuple[str, str, dict[str, Any], str]] = [
    ("kling", IMAGES, {}, "arguments.prompt: is needed"),
    ("kling", IMAGES, {"prompt": "p" * 2501}, "arguments.prompt: at most 2500 characters"),
    ("kling", IMAGES, {"prompt": "p", "n": 10}, "arguments.n: 9 or less"),
    ("kling", IMAGES, {"prompt": "p", "n": True}, "arguments.n: a whole number"),
    (
        "kling",
        IMAGES,
        {"prompt": "p", "image": URL, "negative_prompt": "q"},
        "negative_prompt does not go with image",
    ),
    ("kling", IMAGES, {"prompt": "p", "image_fidelity": 0.5}, "arguments.image: is needed"),
    ("kling", IMAGES, {"prompt": "p", "image": f"data:image/png;base64,{bare()}"}, "without the beginning"),
    ("kling", IMAGES, {"prompt": "p", "image": "no picture!"}, "neither an address nor base64"),
    ("kling", IMAGES, {"prompt": "p", "image": "AAAA"}, "a JPEG or PNG picture"),
    ("kling", IMAGES, {"prompt": "p", "image": bare(299, 400)}, "at least 300 pixels"),
    ("kling", IMAGES, {"prompt": "p", "image": bare(300, 751)}, "2.5 to 1"),
    ("kling", TEXT, {"prompt": "p", "duration": 5}, "arguments.duration: one of '5', '10' is needed"),
    ("kling", TEXT, {"prompt": "p", "mode": "turbo"}, "arguments.mode: one of 'std', 'pro'"),
    ("kling", TEXT, {"prompt": "p", "cfg_scale": 1.5}, "arguments.cfg_scale: 1 or less"),
    (
        "kling",
        TEXT,
        {"prompt": "p", "cfg_scale": 0.5, "model_name": "kling-v2-1-master"},
        "cfg_scale is not taken",
    ),
    (
        "kling",
        TEXT,
        {"prompt": "p", "camera_control": {"type": "simple"}},
        "camera_control.config: is needed",
    ),
    (
        "kling",
        TEXT,
        {"prompt": "p", "camera_control": {"type": "down_back", "config": {"zoom": 1}}},
        "'simple' only",
    ),
    (
        "kling",
        TEXT,
        {"prompt": "p", "camera_control": {"type": "simple", "config": {"zoom": 1, "pan": 1}}},
        "one axis",
    ),
    ("kling", TEXT, {"prompt": "p", "camera_control": {"type": "simple", "config": {"zoom": 0}}}, "one axis"),
    (
        "kling",
        TEXT,
        {"prompt": "p", "camera_control": {"type": "simple", "config": {"zoom": 11}}},
        "zoom: 10 or less",
    ),
    ("kling", IMAGE, {"prompt": "p"}, "image or image_tail is needed"),
    (
        "kling",
        IMAGE,
        {"image": URL, "image_tail": URL, "camera_control": SIMPLE},
        "image_tail does not go with camera",
    ),
    (
        "kling",
        IMAGE,
        {"image": URL, "image_tail": URL, "static_mask": URL},
        "image_tail does not go with static_mask",
    ),
    (
        "kling",
        IMAGE,
        {"image": URL, "static_mask": URL, "camera_control": SIMPLE},
        "static_mask does not go with cam",
    ),
    (
        "kling",
        IMAGE,
        {"image": URL, "dynamic_masks": [{"mask": URL, "trajectories": LINE[:1]}]},
        "at least 2 of them",
    ),
    (
        "kling",
        IMAGE,
        {"image": URL, "dynamic_masks": [{"mask": "data:x,", "trajectories": LINE}]},
        "[0].mask: base64",
    ),
    ("kling", TRY_ON, {"human_image": URL}, "arguments.cloth_image: is needed"),
    ("luma", "generations", {"user_prompt": ""}, "arguments.user_prompt: at least 1 characters"),
    ("luma", "generations", {"user_prompt": "p", "duration": 5}, "arguments.duration: one of '5s', '9s'"),
    ("luma", "generations", {"user_prompt": "p", "loop": "yes"}, "arguments.loop: true or false"),
    ("openai_images", "m", {"prompt": "p", "n": 11}, "arguments.n: 10 or less"),
    ("openai_images", "m", {"prompt": "p", "response_format": "png"}, "arguments.response_format: one of"),
    ("openai_images", "m", {"prompt": "p", "model": "other"}, "arguments.model"),
    ("openai_images", "https://x", {"prompt": "p"}, "model:"),
]


@pytest.mark.parametrize(("dialect", "model", "arguments", "says"), REFUSED)
def test_what_the_vendor_would_refuse_is_refused_by_name(
    dialect: str, model: str, arguments: Any, says: str
) -> None:
    found = asked(dialect, model, arguments)
    assert isinstance(found, Failure)
    assert says in found.what
    assert (found.billed, found.may_run) == ("no", False)


def test_one_error_names_every_wrong_field_and_tells_nothing_of_what_was_given() -> None:
    wrong = {
        "prompt": "a secret fox" * 500,
        "n": 0,
        "aspect_ratio": "secret",
        "image": "secret!",
        "resolution": 1,
    }
    found = asked("kling", IMAGES, wrong, colour="red")
    assert isinstance(found, Failure)
    for name in ("colour", "prompt", "n", "aspect_ratio", "image", "resolution"):
        assert re.search(rf"\b{name}:", found.what), name
    assert "secret" not in str(found)


def test_the_limits_can_be_passed_over_and_then_only_they() -> None:
    assert isinstance(
        asked("kling", TEXT, {"prompt": "p", "duration": "15"}, check_limits=False), HttpRequest
    )
    found = asked("kling", IMAGE, {"image": "data:x,"}, check_limits=False)
    assert isinstance(found, Failure)


# --- the seeds' own examples --------------------------------------------------------------------------------

#: The bodies of the two pages that the project began with.
FLUX = {
    "guidance_scale": 1,
    "num_images": 1,
    "safety_tolerance": "2",
    "output_format": "jpeg",
    "aspect_ratio": "9:21",
    "prompt": "a tiger's eye",
}
VIDEO = {
    "prompt": "waves",
    "image_url": "https://v3.fal.media/files/panda/a.webp",
    "duration": "5",
    "aspect_ratio": "16:9",
    "negative_prompt": "blur, distort, and low quality",
    "cfg_scale": 0.5,
}
AT_ONCE = {
    "model": "flux-pro/kontext/text-to-image",
    "prompt": "a tiger's eye",
    "guidance_scale": 1,
    "n": 1,
    "num_images": 2,
    "safety_tolerance": "2",
    "output_format": "jpeg",
    "aspect_ratio": "1:1",
}


@pytest.mark.parametrize(
    ("model", "arguments"),
    [("flux-pro/kontext/text-to-image", FLUX), ("kling-video/v2.1/standard/image-to-video", VIDEO)],
)
def test_the_gateways_own_examples_fit_the_shipped_schemas(model: str, arguments: Any) -> None:
    assert isinstance(asked("fal", model, arguments), HttpRequest)
    assert schema_problems(shipped_schema(f"fal/{model}"), arguments) == []
    misspelt = {**arguments, "aspectratio": "1:1"}
    assert len(schema_problems(shipped_schema(f"fal/{model}"), misspelt)) == 1


def test_n_beside_num_images_is_taken_with_a_warning_of_what_may_be_billed() -> None:
    model = AT_ONCE["model"]
    request = asked("openai_images", str(model), AT_ONCE)
    assert isinstance(request, HttpRequest), str(request)
    assert request.json == AT_ONCE
    [remark] = dialect_named("openai_images").remarks(str(model), AT_ONCE)
    assert "up to 2 pictures may be made and billed" in remark
    assert dialect_named("openai_images").remarks(str(model), {"prompt": "p", "n": 2}) == []


# --- schemas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_schema_is_one(name: str) -> None:
    schema = shipped_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema_in(schema) == schema
    assert schema["$id"] == name


@pytest.mark.parametrize("name", ["", "fal/no/such", "fal/../kling/images", "kling", "../x"])
def test_there_is_no_other(name: str) -> None:
    with pytest.raises(KeyError):
        shipped_schema(name)


#: As fal publishes one for each model.
OPENAPI: dict[str, Any] = {
    "openapi": "3.0.4",
    "info": {"title": "Queue OpenAPI for flux/dev", "version": "1.0.0"},
    "components": {
        "schemas": {
            "FluxDevInput": {
                "type": "object",
                "x-fal-order-properties": ["prompt", "image_size", "seed", "strength"],
                "properties": {
                    "prompt": {"type": "string", "title": "Prompt"},
                    "image_size": {
                        "anyOf": [{"$ref": "#/components/schemas/ImageSize"}, {"enum": ["square"]}]
                    },
                    "seed": {"type": "integer", "nullable": True},
                    "strength": {"type": "number", "minimum": 0, "exclusiveMinimum": True, "maximum": 1},
                },
                "required": ["prompt"],
            },
            "ImageSize": {
                "type": "object",
                "properties": {"width": {"type": "integer", "exclusiveMinimum": 0, "maximum": 14142}},
            },
        }
    },
    "paths": {
        "/fal-ai/flux/dev/requests/{request_id}/status": {"get": {"responses": {}}},
        "/fal-ai/flux/dev/requests/{request_id}/cancel": {"put": {"responses": {}}},
        "/fal-ai/flux/dev": {
            "post": {
                "requestBody": {
                    "required": True,
                    "content": {
                        "application/json": {"schema": {"$ref": "#/components/schemas/FluxDevInput"}}
                    },
                }
            }
        },
    },
}


def test_a_models_openapi_file_is_a_schema_of_its_arguments() -> None:
    schema = schema_in(json.loads(json.dumps(OPENAPI)))
    good = {"prompt": "p", "seed": None, "strength": 0.5, "image_size": {"width": 64}}
    assert schema_problems(schema, good) == []
    bad = {"seed": "1", "strength": 0, "image_size": {"width": 0}}
    said = schema_problems(schema, bad)
    assert [text.partition(":")[0] for text in said] == [
        "arguments.prompt",
        "arguments.image_size",
        "arguments.seed",
        "arguments.strength",
    ]


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"openapi": "3.0.4", "paths": {}}, "no post with a JSON body"),
        ({"openapi": "3.0.4"}, "no post with a JSON body"),
        ({"type": "no such type"}, "no valid JSON Schema"),
        ([], "a mapping is needed"),
        (None, "a mapping is needed"),
    ],
)
def test_a_document_without_a_schema_is_refused(document: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        schema_in(document)


@given(st.dictionaries(st.sampled_from(["prompt", "n", "image", "mode"]), st.text(min_size=20, max_size=40)))
def test_no_message_quotes_what_was_given(arguments: dict[str, str]) -> None:
    for name in shipped():
        for text in schema_problems(shipped_schema(name), arguments):
            assert not any(value in text for value in arguments.values())


# --- pictures -----------------------------------------------------------------------------------------------


@given(st.integers(1, 400), st.integers(1, 400), st.sampled_from(["PNG", "JPEG"]))
def test_the_size_of_a_picture_is_told_from_its_bytes(width: int, height: int, file_format: str) -> None:
    assert pixels(picture(width, height, file_format)) == (width, height)


def test_a_progressive_picture_with_a_thumbnail_inside_tells_its_own_size() -> None:
    target = io.BytesIO()
    exif = Image.Exif()
    exif[0x010E] = "a description"
    Image.new("RGB", (640, 320)).save(target, "JPEG", progressive=True, exif=exif, icc_profile=b"x" * 70000)
    assert pixels(target.getvalue()) == (640, 320)


def test_tables_before_the_frame_are_passed_over() -> None:
    content = picture(640, 320, "JPEG")
    table = b"\xff\xc4\x00\x08\x00\x01\x00\x01\x00\x01"
    assert pixels(content[:2] + table + b"\xff" + content[2:]) == (640, 320)


@given(st.binary(max_size=80) | st.binary(max_size=80).map(lambda tail: b"\xff\xd8" + tail))
def test_no_bytes_break_the_telling(content: bytes) -> None:
    found = pixels(content)
    assert found is None or len(found) == 2


def test_every_schema_is_of_a_dialect_and_nothing_else_lies_there() -> None:
    folder = Path(str(schemas.__file__)).parent
    files = {path.relative_to(folder).as_posix() for path in folder.glob("*/*.json")}
    assert files == {
        f"{name.partition('/')[0]}/{name.partition('/')[2].replace('/', '.')}.json" for name in shipped()
    }
