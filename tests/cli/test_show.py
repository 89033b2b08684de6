"""``vllm-ext show``: one plugin in full."""

from __future__ import annotations

import sys

import pytest
from support.plugins import write_distribution

GENERAL = "vllm.general_plugins"


@pytest.fixture
def acme(plugins):
    code = (
        "def good(): print('hello')\ndef bad(): raise OSError('no licence')\n"
        "def twin(): ...\ndef leaves(config): import os; os.environ['X_LEFT'] = config['token']\n"
    )
    lines = [f"{name} = acme:{name}" for name in ("good", "bad", "twin", "leaves")]
    plugins.distribution("acme", {GENERAL: lines}, {"acme.py": code})
    plugins.distribution("zeta", {GENERAL: ["twin = acme:twin"]}, {})


def test_it_has_the_record_and_the_decision(acme, vllm_ext, plugins):
    code, shown, err = vllm_ext("show", "good", "-f", "json")

    assert (code, err) == (0, "")
    assert shown == {
        "name": "good",
        "group": GENERAL,
        "kind": "general",
        "value": "acme:good",
        "distribution": "acme",
        "version": "0.1",
        "location": str(plugins.site / "acme-0.1.dist-info"),
        "editable": False,
        "requires": [],
        "status": "selected",
        "reason": "plugins.general.enabled is all",
        "origin": "default",
        "named": False,
        "notes": [],
        "options": {},
    }


def test_the_setting_that_decided_is_the_origin(acme, vllm_ext, monkeypatch):
    monkeypatch.setenv("VLLM_EXT_PLUGINS__GENERAL__DISABLED", "good")

    shown = vllm_ext("show", "good", "-f", "json").out

    assert (shown["status"], shown["origin"]) == ("disabled", "environment (VLLM_EXT_PLUGINS__GENERAL__DISABLED)")


def test_with_load_it_has_what_became_of_it(acme, vllm_ext):
    code, shown, _ = vllm_ext("show", "good", "--load", "-f", "json")

    assert code == 0
    assert (shown["outcome"], shown["output"], shown["traceback"], shown["effects"]) == ("active", "hello\n", "", [])
    assert shown["seconds"] >= shown["call_seconds"]
    assert shown["imports_torch"] is False


def test_of_one_that_fails_it_has_the_whole_traceback_and_the_exit_code_is_1(acme, vllm_ext):
    code, shown, _ = vllm_ext("show", "bad", "--load", "-f", "json")

    assert code == 1
    assert (shown["outcome"], shown["detail"]) == ("failed", "OSError: no licence")
    assert "acme.py" in shown["traceback"]
    assert shown["traceback"].endswith("OSError: no licence\n")


def test_secret_options_are_not_shown(acme, vllm_ext):
    arguments = ("show", "leaves", "--load", "-f", "json", "--set", "options.leaves={token: abc123, size: 4}")

    code, shown, _ = vllm_ext(*arguments)

    assert code == 0
    assert shown["options"] == {"token": "********", "size": 4}
    assert shown["effects"] == ["changes environment variables: X_LEFT"]


def test_a_name_that_several_have_is_told_apart(acme, vllm_ext):
    code, _, err = vllm_ext("show", "twin")

    assert code == 2
    assert "2 plugins have the name 'twin'; tell them apart by --group, or as distribution:name:" in err
    assert "  vllm.general_plugins: zeta:twin (acme:twin, duplicate)" in err
    assert vllm_ext("show", "zeta:twin", "-f", "json").out["distribution"] == "zeta"


def test_a_name_that_nothing_has_is_an_error_with_the_closest(acme, vllm_ext):
    code, _, err = vllm_ext("show", "goood")

    assert code == 2
    assert "no plugin 'goood' is installed (did you mean 'good'?); installed: bad, cpu, good," in err


def test_a_group_that_nothing_has_is_an_error_with_the_closest(acme, vllm_ext):
    code, _, err = vllm_ext("show", "good", "--group", "vllm.general_plugin")

    assert code == 2
    assert "no entry-point group 'vllm.general_plugin' (did you mean 'vllm.general_plugins'?)" in err


def test_one_that_is_named_and_missing_is_shown_as_such(vllm_ext):
    shown = vllm_ext("show", "ghost", "-f", "json", "--set", "plugins.general.enabled=[ghost]").out

    assert shown["status"] == "missing"


def test_a_hidden_copy_is_a_note_and_no_rival(acme, vllm_ext, tmp_path, monkeypatch):
    write_distribution(tmp_path / "old", "acme", {GENERAL: ["good = acme:good"]}, {}, "0.0.1")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "old")])

    code, shown, _ = vllm_ext("show", "good", "-f", "json")

    assert (code, shown["version"]) == (0, "0.1")
    (note,) = shown["notes"]
    assert note.startswith(f"{tmp_path}/old/acme-0.0.1.dist-info declares it as well, and is hidden by ")


def test_a_distribution_may_be_spelt_as_its_author_does(acme, vllm_ext):
    assert vllm_ext("show", "Acme:good", "-f", "json").out["name"] == "good"


def test_what_is_turned_off_is_not_loaded(acme, vllm_ext):
    code, _, err = vllm_ext("show", "good", "--load", "--set", "plugins.general.disabled=[good]")

    assert code == 2
    assert "'good' of acme 0.1 is not loaded, since it is disabled: disabled by plugins.general.disabled" in err


@pytest.mark.parametrize("formatter", ["table", "yaml", "value", "shell"])
def test_other_formats(acme, vllm_ext, formatter):
    assert "acme:good" in vllm_ext("show", "good", "-f", formatter).out


def test_a_misspelt_column_is_an_error_with_the_closest(acme, vllm_ext):
    code, _, err = vllm_ext("show", "good", "-c", "statsu")

    assert code == 2
    assert "no column 'statsu' (did you mean 'status'?)" in err


def test_a_name_that_is_in_another_group_is_pointed_out(acme, vllm_ext):
    code, _, err = vllm_ext("show", "good", "--group", "vllm.platform_plugins")

    assert code == 2
    assert "no plugin 'good' is installed in group 'vllm.platform_plugins'; installed: none. It is in group" in err
    assert "did you mean" not in err


def test_the_closest_name_is_found_whatever_the_case(acme, vllm_ext):
    assert "(did you mean 'good'?)" in vllm_ext("show", "GOOD").err
