"""``vllm-ext plan``: the decisions as data."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from vllm_ext.plan import Plan, plan_from_dict

GENERAL = "vllm.general_plugins"


@pytest.fixture
def acme(plugins):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {"acme.py": "raise RuntimeError('was imported')"})


def test_it_is_the_plan_with_its_schema_version(acme, vllm_ext):
    code, values, err = vllm_ext("plan", "-f", "json")

    plan = plan_from_dict(values, Plan)
    assert (code, err, values["schema_version"]) == (0, "", 1)
    assert [decision.name for decision in plan.selected("general")] == ["a"]
    assert plan.settings.engine.executor == "uniproc"


def test_json_is_the_format_where_none_is_given(vllm_ext):
    assert vllm_ext("plan").out.lstrip().startswith("{")


def test_what_cannot_be_followed_is_in_it_and_is_the_exit_code(vllm_ext):
    code, values, err = vllm_ext("plan", "-f", "json", "--platform", "npu")

    assert code == 2
    assert values["errors"][0]["type"] == "PluginNotFound"
    assert "no platform plugin 'npu' is installed" in err


def test_secrets_are_redacted(acme, vllm_ext):
    _, values, _ = vllm_ext("plan", "-f", "json", "--set", "options.a={api_key: abc123}")

    assert "abc123" not in str(values)
    assert values["settings"]["options"] == {"a": {"api_key": "********"}}


def test_bound_it_has_outcomes_and_the_fingerprint(vllm_ext):
    code, values, _ = vllm_ext("plan", "--bind", "-f", "json", "--platform", "cpu")

    assert code == 0
    assert len(values["fingerprint"]) == 64
    assert values["platform"]["name"] == "cpu"
    assert [outcome["state"] for outcome in values["outcomes"]] == ["active"]


def test_bound_secrets_are_redacted_too(vllm_ext):
    _, values, _ = vllm_ext("plan", "--bind", "-f", "json", "--set", "options.cpu={api_key: abc123}")

    assert "abc123" not in str(values)
    assert values["plan"]["settings"]["options"] == {"cpu": {"api_key": "********"}}


def test_what_a_plugin_writes_is_no_part_of_it(plugins):
    """Whatever writes: Python, the system's own calls, or C's buffered ones."""
    code = """
import ctypes, os
print("from python")
os.write(1, b"from the system")
ctypes.CDLL(None).printf(b"from C")
def register(): return None
"""
    plugins.distribution("loud", {"vllm.platform_plugins": ["loud = loud:register"]}, {"loud.py": code})
    for command in (["plan", "--bind"], ["explain", "platform"]):
        done = subprocess.run(
            [sys.executable, "-m", "vllm_ext.cli.main", *command, "-f", "json"],
            env={**os.environ, "PYTHONPATH": str(plugins.site)},
            capture_output=True,
            text=True,
            check=True,
        )

        assert json.loads(done.stdout)
        assert [text in done.stderr for text in ("from python", "from the system", "from C")] == [True] * 3


def test_bound_the_fingerprint_is_the_same_each_time(vllm_ext):
    one, other = (vllm_ext("plan", "--bind", "-f", "json").out["fingerprint"] for _ in range(2))

    assert one == other
