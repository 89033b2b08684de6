"""``vllm-ext doctor``: what is wrong, how bad it is, and what to do."""

from __future__ import annotations

import pytest
from support.distributions import write_egg_info

GENERAL = "vllm.general_plugins"


@pytest.fixture
def doctor(vllm_ext, plugins):
    """Findings on what the test installed: ``(severity, subject, finding, remedy)`` each."""
    known = {tuple(row.values()) for row in vllm_ext("doctor", "-f", "json").out}

    def doctor(*arguments):
        done = vllm_ext("doctor", "-f", "json", *arguments)
        return done.code, [tuple(row.values()) for row in done.out if tuple(row.values()) not in known]

    return doctor


def test_a_sound_installation_has_no_findings(doctor, plugins):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {"acme.py": "def run(): ..."})

    assert doctor()[1] == []


def test_where_nothing_is_found_the_table_says_so(vllm_ext, monkeypatch):
    monkeypatch.setattr("vllm_ext.cli.doctor.examine", list)

    assert vllm_ext("doctor")[:2] == (0, "\nNothing looks wrong.\n")


@pytest.mark.parametrize("setting", ["allow_distributions: []", "plugins: {general: {disabled: [a]}}"])
def test_with_a_mistake_in_the_settings_nothing_is_loaded(doctor, plugins, tmp_path, setting):
    """What the settings forbid is not known then."""
    canary = tmp_path / "canary"
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {"acme.py": f"open({str(canary)!r}, 'w')"})
    file = tmp_path / "settings.yaml"
    file.write_text(f"{setting}\nmistake: 1\n")

    code, found = doctor("--time", "--config-file", file)

    assert code == 1
    assert [row[0] for row in found] == ["error", "note"]
    assert "no plugin was loaded to be timed" in found[1][2]
    assert not canary.exists()


def test_safe_mode_holds_where_the_settings_have_a_mistake(doctor, plugins, monkeypatch, tmp_path):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {})
    monkeypatch.setenv("VLLM_EXT_SAFE_MODE", "1")

    code, found = doctor("--set", "mistake=1")

    assert (code, [row[0] for row in found]) == (1, ["error"])


def test_a_missing_name_is_an_error_with_its_remedy(doctor):
    code, ((severity, subject, text, remedy),) = doctor("--platform", "npu")

    assert (code, severity, subject) == (1, "error", "npu")
    assert "no platform plugin 'npu' is installed" in text
    assert remedy == "Install what provides it, or correct the name where it is written."


def test_each_mistake_in_the_settings_is_an_error_and_the_rest_is_looked_at(doctor, tmp_path, plugins):
    file = tmp_path / "settings.yaml"
    file.write_text("platfrom: {}\nengine: {sed: 1}\n")
    plugins.distribution("acme", {"vllm.general_plugin": ["a = acme:run"]}, {})

    code, found = doctor("--config-file", file)

    assert code == 1
    assert [row[0] for row in found] == ["error", "error", "warning"]
    assert f"file {file} line 1: platfrom: unknown key (did you mean 'platform'?)" in found[0][2] + found[1][2]


def test_a_misspelt_group_is_a_warning_with_the_right_one(doctor, plugins):
    plugins.distribution("acme", {"vllm.general_plugin": ["a = acme:run"]}, {})

    code, ((severity, _, text, remedy),) = doctor()

    assert (code, severity) == (1, "warning")
    assert "'vllm.general_plugin'" in text
    assert "vllm.general_plugins" in text + remedy


def test_blanks_in_vllm_plugins_are_a_warning_with_the_right_text(doctor, plugins, monkeypatch):
    plugins.distribution("acme", {GENERAL: ["a = acme:run", "b = acme:run2"]}, {})
    monkeypatch.setenv("VLLM_PLUGINS", "a, b")

    _, ((severity, subject, text, remedy),) = doctor()

    assert (severity, subject) == ("warning", "VLLM_PLUGINS")
    assert text == (
        "VLLM_PLUGINS has blanks around ' b'; vllm-ext takes them off, vLLM does not, and finds no plugin of that name"
    )
    assert remedy == "Write VLLM_PLUGINS=a,b."


def test_an_empty_vllm_plugins_is_a_note_and_no_failure(doctor, monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "")

    code, ((severity, _, text, _),) = doctor()

    assert (code, severity) == (0, "note")
    assert text == "VLLM_PLUGINS is set and empty, so no out-of-tree plugin of any group is used"


def test_an_incompatible_plugin_is_a_warning(doctor, plugins):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {})
    metadata = plugins.site / "acme-0.1.dist-info" / "METADATA"
    metadata.write_text(metadata.read_text() + "Requires-Dist: vllm-ext>=99\n")

    code, ((severity, subject, text, _),) = doctor()

    assert (code, severity, subject) == (1, "warning", "acme:a")
    assert "plugin 'a' of acme 0.1 is not used, since acme requires vllm-ext>=99" in text


def test_a_name_of_two_distributions_is_one_warning(doctor, plugins):
    for name in ("acme", "zeta"):
        plugins.distribution(name, {GENERAL: [f"a = {name}:run"]}, {})

    _, found = doctor()

    assert [row[0] for row in found] == ["warning"]
    assert "acme:a" in str(found)


def test_a_stale_egg_info_in_front_is_a_warning(doctor, plugins, tmp_path, monkeypatch):
    plugins.distribution("acme", {GENERAL: ["a = acme:run", "b = acme:b"]}, {})
    stale = tmp_path / "stale"
    write_egg_info(stale, "acme", {GENERAL: ["a = acme:run"]}, "0.0.9")
    monkeypatch.syspath_prepend(str(stale))

    _, found = doctor()

    assert {row[0] for row in found} == {"warning"}
    assert str(stale / "acme.egg-info") in str(found)


def test_nothing_is_imported_without_time(doctor, plugins, tmp_path):
    canary = tmp_path / "canary"
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {"acme.py": f"open({str(canary)!r}, 'w')"})

    doctor()

    assert not canary.exists()


def test_time_adds_the_seconds_of_each_plugin_and_what_fails(vllm_ext, plugins):
    code = "import time\ndef slow(): time.sleep(0.3)\ndef bad(): raise OSError('no licence')\n"
    plugins.distribution("acme", {GENERAL: ["slow = acme:slow", "bad = acme:bad"]}, {"acme.py": code})

    done = vllm_ext("doctor", "--time", "-f", "json")

    times = {row["subject"]: row["seconds"] for row in done.out if row["severity"] == "time"}
    assert times["acme:slow"] >= 0.3
    assert {"acme:bad", "vllm-ext:cpu"} < set(times)
    failed = next(row for row in done.out if row["subject"] == "acme:bad" and row["severity"] == "warning")
    assert failed["finding"] == "general plugin 'bad' of acme 0.1 fails: OSError: no licence"
    assert done.code == 1
