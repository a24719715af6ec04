"""What a release holds: everything the provider needs, and nothing of the workshop."""

from __future__ import annotations

import email
import tarfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import parse_sdist_filename, parse_wheel_filename

from airflow_provider_uniapi_fal import __version__
from tests.packaging.test_pythons import PYTHONS

if TYPE_CHECKING:
    from tests.packaging.conftest import Distributions

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

PROJECT = Path(__file__).resolve().parents[2]
DIST_INFO = f"airflow_provider_uniapi_fal-{__version__}.dist-info"


@pytest.fixture(scope="session")
def wheel_files(distributions: Distributions) -> dict[str, bytes]:
    with zipfile.ZipFile(distributions.wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="session")
def metadata(wheel_files: dict[str, bytes]) -> Metadata:
    """Return the wheel's metadata, read by the rules that a package index holds an upload to."""
    return Metadata.from_email(wheel_files[f"{DIST_INFO}/METADATA"], validate=True)


def test_the_wheel_holds_exactly_the_package(wheel_files: dict[str, bytes]) -> None:
    package = PROJECT / "airflow_provider_uniapi_fal"
    sources = {
        path.relative_to(PROJECT).as_posix(): path.read_bytes()
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert "airflow_provider_uniapi_fal/py.typed" in sources
    shipped = {name: body for name, body in wheel_files.items() if not name.startswith(DIST_INFO)}
    assert sorted(shipped) == sorted(sources)
    assert shipped == sources


def test_the_wheel_carries_its_licence(wheel_files: dict[str, bytes], metadata: Metadata) -> None:
    assert metadata.license_expression == "Apache-2.0"
    assert metadata.license_files == ["LICENSE", "NOTICE"]
    for name in metadata.license_files:
        assert wheel_files[f"{DIST_INFO}/licenses/{name}"] == (PROJECT / name).read_bytes()


def test_airflow_finds_the_provider_through_its_entry_point(wheel_files: dict[str, bytes]) -> None:
    assert wheel_files[f"{DIST_INFO}/entry_points.txt"].decode().split() == [
        "[airflow.plugins]",
        *("uniapi_fal", "=", "airflow_provider_uniapi_fal.plugins.uniapi_fal:UniapiFalPlugin"),
        "[apache_airflow_provider]",
        *("provider_info", "=", "airflow_provider_uniapi_fal:get_provider_info"),
    ]


def test_the_wheel_runs_on_every_supported_python_and_platform(
    distributions: Distributions, metadata: Metadata
) -> None:
    name, version, build, tags = parse_wheel_filename(distributions.wheel.name)
    assert (name, str(version), build) == ("airflow-provider-uniapi-fal", __version__, ())
    assert [str(tag) for tag in tags] == ["py3-none-any"]
    assert metadata.requires_python is not None
    minors = [minor for minor in range(40) if f"3.{minor}" in metadata.requires_python]
    assert minors == list(range(10, minors[-1] + 1))
    pythons = [f"3.{minor}" for minor in minors]
    classifier = "Programming Language :: Python :: 3."
    named = [
        "3." + name.removeprefix(classifier) for name in metadata.classifiers or [] if classifier in name
    ]
    assert named == pythons
    assert list(PYTHONS) == pythons


def test_one_range_of_pythons_is_named_everywhere(metadata: Metadata) -> None:
    assert metadata.requires_python is not None
    last = max(minor for minor in range(40) if f"3.{minor}" in metadata.requires_python)
    for page in ("README.md", "CONTRIBUTING.md", "docs/tutorial.md", "docs/compatibility.md", "Makefile"):
        text = (PROJECT / page).read_text()
        assert f"3.10 to 3.{last}" in text, page
    assert f"3.10 到 3.{last}" in (PROJECT / "README.zh.md").read_text()
    assert f"(3, 10) <= sys.version_info < (3, {last + 1})" in (PROJECT / "Makefile").read_text()


def test_addresses_are_named_once_there_are_any(metadata: Metadata) -> None:
    without = "[project.urls]" in (PROJECT / "CONTRIBUTING.md").read_text()
    assert without is not bool(metadata.project_urls)


def test_the_wheel_asks_for_airflow_from_3_3_to_before_4(metadata: Metadata) -> None:
    needed = {each.name: each.specifier for each in metadata.requires_dist or [] if each.marker is None}
    assert needed.keys() == {
        "aiohttp",
        "apache-airflow",
        "certifi",
        "jsonschema",
        "pendulum",
        "puremagic",
        "requests",
        "rich",
        "urllib3",
        "yarl",
    }
    accepted = [version for version in ("2.11.0", "3.2.2", "3.3.0", "3.3.2", "3.9.9", "4.0.0")
                if version in needed["apache-airflow"]]  # fmt: skip
    assert accepted == ["3.3.0", "3.3.2", "3.9.9"]


def test_only_the_emulator_extra_asks_for_what_renders_media(metadata: Metadata) -> None:
    extras: dict[str, set[str]] = {extra: set() for extra in metadata.provides_extra or []}
    for requirement in metadata.requires_dist or []:
        for extra in extras:
            if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
                extras[extra].add(requirement.name)
    assert extras["emulator"] == {"av", "cryptography", "pillow", "pylopdf-fonts-zh-cn"}


def test_an_index_can_show_the_description(wheel_files: dict[str, bytes], metadata: Metadata) -> None:
    assert metadata.summary
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description == (PROJECT / "README.md").read_text(encoding="utf-8")
    assert not email.message_from_bytes(wheel_files[f"{DIST_INFO}/METADATA"]).defects


def test_the_sdist_holds_what_builds_tests_and_explains_the_project(distributions: Distributions) -> None:
    name, version = parse_sdist_filename(distributions.sdist.name)
    assert (name, str(version)) == ("airflow-provider-uniapi-fal", __version__)
    with tarfile.open(distributions.sdist) as archive:
        paths = [Path(member.name).parts[1:] for member in archive.getmembers() if member.isfile()]
    wanted = {
        "airflow_provider_uniapi_fal",
        "benchmarks",
        "dags_examples",
        "demo",
        "tests",
        "pyproject.toml",
        "constraints.txt",
    }
    wanted |= {
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        "Makefile",
        "NOTICE",
        "README.md",
        "README.zh.md",
    }
    there = {parts[0] for parts in paths}
    assert wanted <= there
    assert there <= wanted | {".gitignore", "PKG-INFO", "docs"}
    assert not [parts for parts in paths if "__pycache__" in parts]


def test_a_dependency_on_airflow_itself_is_stated_once(metadata: Metadata) -> None:
    # The extra for development asks for other providers as well; what users install does not.
    stated = [
        each
        for each in metadata.requires_dist or []
        if each.name.startswith("apache-airflow") and "dev" not in str(each.marker)
    ]
    assert stated == [Requirement("apache-airflow>=3.3,<4")]
