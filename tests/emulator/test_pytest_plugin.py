"""The plug-in as a user loads it: each test here runs a test file of its own in a pytest of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., pytest.RunResult]

pytest_plugins = ["pytester"]
PLUGIN = "airflow_provider_uniapi_fal.emulator.pytest_plugin"

SUBMIT = """
import json, os, ssl
import urllib.request
import pytest

def submit(prompt="a fox"):
    connection = json.loads(os.environ["AIRFLOW_CONN_FAL_DEFAULT"])
    request = urllib.request.Request(
        connection["host"] + "/fal-ai/flux/dev",
        data=json.dumps({"prompt": prompt}).encode(),
        headers={"Authorization": "Key " + connection["password"]},
    )
    trust = ssl.create_default_context(cafile=connection["extra"].get("ca_bundle"))
    with urllib.request.urlopen(request, context=trust, timeout=20) as reply:
        return json.load(reply)
"""


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Run a test file with the plug-in, named in a conftest or with -p, and expect its outcome."""

    def go(code: str, *options: str, conftest: str = "", passed: int) -> pytest.RunResult:
        pytester.makeini("[pytest]\naddopts = -p no:cacheprovider\n")
        pytester.makeconftest(conftest)
        pytester.makepyfile(SUBMIT + code)
        result = pytester.runpytest_subprocess(*options, timeout=60)
        result.assert_outcomes(passed=passed)
        return result

    return go


BASIC = """
def test_one(fal_connection, fal_emulator):
    assert fal_connection == "fal_default"
    fal_emulator.add_fault("html on=status")
    submit()
    assert fal_emulator.account()["totals"]["posts_accepted"] == 1

def test_another_sees_nothing_of_it(fal_emulator, fal_connection):
    assert fal_emulator.account()["totals"]["posts_accepted"] == 0
    assert fal_emulator.requests() == []
    assert submit()["status"] == "COMPLETED"

def test_without(request):
    assert "AIRFLOW_CONN_FAL_DEFAULT" not in os.environ
"""


def test_it_can_be_named_in_a_conftest(run: Run) -> None:
    run(BASIC, conftest=f"pytest_plugins = [{PLUGIN!r}]", passed=3)


def test_it_can_be_named_on_the_command_line(run: Run) -> None:
    run(BASIC, "-p", PLUGIN, passed=3)


def test_settings_can_be_overridden_for_all_for_a_class_and_for_a_test(run: Run) -> None:
    code = """
@pytest.fixture(scope="module")
def fal_emulator_settings():
    return {"key": "k", "base_prefix": "gw", "faults": ["html times=1"]}

@pytest.mark.parametrize("number", range(2))
def test_a_rule_of_the_settings_holds_for_each_test(fal_connection, number):
    with pytest.raises(urllib.error.HTTPError):
        submit()
    assert submit()["status"] == "IN_QUEUE"

class TestOthers:
    @pytest.fixture
    def fal_emulator_settings(self):
        return {"tls": True, "run_seconds": 60.0, "queue_seconds": 0.0}

    def test_https(self, fal_emulator, fal_connection):
        assert fal_emulator.url.startswith("https://")
        assert submit()["status"] == "IN_PROGRESS"
"""
    run(code, "-p", PLUGIN, passed=3)


def test_one_emulator_serves_all_tests_of_the_same_settings(run: Run) -> None:
    code = """
urls = set()

@pytest.mark.parametrize("number", range(3))
def test_same(fal_emulator, number):
    urls.add(fal_emulator.url)

def test_once(fal_emulator):
    assert urls == {fal_emulator.url}
"""
    run(code, "-p", PLUGIN, passed=4)


def test_a_wrong_setting_fails_the_test_with_its_reason(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def fal_emulator_settings():
            return {"urls": "odd"}

        def test_it(fal_emulator): ...
        """
    )
    result = pytester.runpytest_subprocess("-p", PLUGIN, timeout=60)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*ValueError: urls is one of*"])


def test_every_fixture_explains_itself(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_subprocess("-p", PLUGIN, "--fixtures", timeout=60)
    for line in (
        "fal_emulator -- *",
        "    Return an emulator with these settings*",
        "fal_emulator_settings -- *",
        "    Return the settings of the emulator*",
        "fal_connection -- *",
        "    Let Airflow's connection*",
    ):
        result.stdout.fnmatch_lines([line])
