"""``vllm-ext list``: what is there, without running any of it."""

import json
import subprocess
import sys

import pytest

from vllm_ext.cli.main import main

GENERAL = "vllm.general_plugins"


def rows(capsys, *arguments):
    code = main(["list", "-f", "json", *arguments])
    captured = capsys.readouterr()
    return code, json.loads(captured.out), captured.err


def test_it_shows_group_name_distribution_version_status_and_reason(capsys):
    code, listed, err = rows(capsys, "--group", "vllm_ext.platforms")

    assert (code, err) == (0, "")
    assert listed == [
        {
            "group": "vllm_ext.platforms",
            "name": "cpu",
            "distribution": "vllm-ext",
            "version": listed[0]["version"],
            "status": "candidate",
            "reason": "platform.driver is auto",
        }
    ]


def test_it_neither_imports_torch_nor_a_plugin(tmp_path, plugins):
    canary = tmp_path / "canary"
    plugins.distribution("canary", {GENERAL: ["c = canary_mod:run"]}, {"canary_mod.py": f"open({str(canary)!r}, 'w')"})
    program = (
        "import sys; from vllm_ext.cli.main import main; code = main(['list', '-f', 'json']); "
        "sys.exit('torch was imported' if 'torch' in sys.modules else code)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(plugins.site)},
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")
    assert "c" in {row["name"] for row in json.loads(done.stdout)}
    assert not canary.exists()


def test_a_broken_formatter_of_another_distribution_changes_nothing(plugins, capsys):
    before = rows(capsys)
    plugins.distribution(
        "broken-formatter",
        {
            "cliff.formatter.list": ["json = broken_formatter:Json", "spoilt = broken_formatter:Spoilt"],
            "cliff.formatter.completion": ["bash = broken_formatter:Bash"],
        },
        {"broken_formatter.py": "raise RuntimeError('imported')"},
    )

    assert rows(capsys) == before


def test_it_filters_by_status(plugins, capsys):
    plugins.distribution("one", {GENERAL: ["a = one:run", "b = one:run"]}, {"one.py": "def run(): ..."})

    _, listed, _ = rows(capsys, "--status", "disabled", "--set", "plugins.general.disabled=[b]")

    assert [row["name"] for row in listed] == ["b"]


def test_a_name_that_nothing_has_is_shown_and_is_an_error(capsys):
    code, listed, err = rows(capsys, "--platform", "cpuu")

    assert code == 2
    assert ("cpuu", "missing") in {(row["name"], row["status"]) for row in listed}
    assert "no platform plugin 'cpuu' is installed" in err
    assert "(did you mean 'cpu'?); installed: cpu" in err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_help_names_the_commands(arguments, capsys):
    try:
        code = main(arguments)
    except SystemExit as done:
        code = done.code

    assert not code
    assert "list" in capsys.readouterr().out


def test_an_unknown_command_is_wrong_usage(capsys):
    assert main(["lst"]) == 2
    assert "Did you mean one of these?\n  list" in capsys.readouterr().out


def test_a_misspelt_group_is_an_error_with_the_closest(capsys):
    assert main(["list", "--group", "vllm.general_plugin"]) == 2
    assert (
        "no entry-point group 'vllm.general_plugin' (did you mean 'vllm.general_plugins'?)" in capsys.readouterr().err
    )


def test_a_misspelt_column_is_an_error_with_the_closest(capsys):
    assert main(["list", "-c", "name", "-c", "statsu"]) == 2
    assert "no column 'statsu' (did you mean 'status'?); columns: group, name" in capsys.readouterr().err


def test_a_platform_option_without_a_name_is_refused(capsys):
    assert main(["list", "--platform", " , "]) == 2
    assert "(--platform): expected a platform's name" in capsys.readouterr().err


def test_a_log_file_that_cannot_be_written_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--log-file", "/nowhere/log", "list"])
    assert "--log-file /nowhere/log: No such file or directory" in capsys.readouterr().err


def test_a_name_that_is_asked_for_and_disabled_is_said(capsys):
    code = main(["list", "--set", "platform.driver=[cpu]", "--set", "platform.disabled=[cpu]"])

    assert code == 2
    assert "names 'cpu', which is not used: disabled by platform.disabled" in capsys.readouterr().err
