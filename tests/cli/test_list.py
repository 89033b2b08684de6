"""``vllm-ext list``: what is there, without running any of it."""

import gc
import json
import os
import subprocess
import sys

import pytest
from support.commands import run_onto_full_disk, run_without

import vllm_ext
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


@pytest.mark.parametrize(
    "arguments",
    [
        ["list"],
        ["list", "-f", "json"],
        ["list", "--requirements"],
        ["show", "c"],
        ["plan"],
        ["config", "show"],
        ["config", "schema"],
        ["config", "sample"],
        ["doctor"],
        ["complete"],
        ["help"],
    ],
    ids=" ".join,
)
def test_commands_that_inspect_import_neither_torch_nor_a_server_nor_a_plugin(tmp_path, plugins, arguments):
    canary = tmp_path / "canary"
    plugins.distribution("canary", {GENERAL: ["c = canary_mod:run"]}, {"canary_mod.py": f"open({str(canary)!r}, 'w')"})

    done = run_without(arguments)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout
    assert not canary.exists()


@pytest.mark.parametrize(("arguments", "is_whole_process"), [((), True), ((["list"],), False)])
def test_only_a_process_of_its_own_is_kept_from_searching_what_was_imported(
    monkeypatch, capsys, arguments, is_whole_process
):
    monkeypatch.setattr(sys, "argv", ["vllm-ext", "list"])
    before = gc.get_freeze_count()
    try:
        assert main(*arguments) == 0

        assert (gc.get_freeze_count() > before) == is_whole_process
    finally:
        gc.unfreeze()
    assert "vllm_ext.executors" in capsys.readouterr().out


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

    captured = capsys.readouterr()
    assert captured.err == (
        "vllm-ext: 'lst' is not a vllm-ext command. See 'vllm-ext --help'.\nDid you mean one of these?\n  list\n"
    )
    assert captured.out == ""


def test_a_misspelt_group_is_an_error_with_the_closest(capsys):
    assert main(["list", "--group", "vllm.general_plugin"]) == 2
    assert (
        "no entry-point group 'vllm.general_plugin' (did you mean 'vllm.general_plugins'?)" in capsys.readouterr().err
    )


def test_a_misspelt_column_is_an_error_with_the_closest(capsys):
    assert main(["list", "-c", "name", "-c", "statsu"]) == 2
    assert "no column 'statsu' (did you mean 'status'?); columns: group, name" in capsys.readouterr().err


class TestSorting:
    @pytest.fixture(autouse=True)
    def _acme(self, plugins):
        plugins.distribution("acme", {GENERAL: ["c = acme:run", "a = acme:run", "b = acme:run2"]}, {})

    def names(self, capsys, *arguments):
        return [row["name"] for row in rows(capsys, "--group", GENERAL, *arguments)[1]]

    def test_rows_are_sorted_by_the_column_that_is_given(self, capsys):
        arguments = ("--set", "plugins.general.enabled=[c, b]")

        assert self.names(capsys, *arguments) == ["c", "b", "a"]
        assert self.names(capsys, *arguments, "--sort-column", "name") == ["a", "b", "c"]
        assert self.names(capsys, *arguments, "--sort-column", "Name", "--sort-descending") == ["c", "b", "a"]
        assert self.names(capsys, *arguments, "--sort-column", "status", "--sort-column", "name") == ["a", "b", "c"]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--sort-column", "nme"], "(--sort-column): no column 'nme' (did you mean 'name'?); columns: group, name"),
            (["--sort-descending"], "(--sort-descending): it needs a column to sort by; name one with --sort-column"),
        ],
    )
    def test_without_a_column_that_exists_it_is_wrong_usage(self, capsys, arguments, message):
        assert main(["list", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_platform_option_without_a_name_is_refused(capsys):
    assert main(["list", "--platform", " , "]) == 2
    assert "(--platform): expected a platform's name" in capsys.readouterr().err


def test_a_log_file_that_cannot_be_written_is_wrong_usage(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--log-file", "/nowhere/log", "list"])
    assert "--log-file /nowhere/log: No such file or directory" in capsys.readouterr().err


def test_a_log_file_takes_text_that_the_locale_does_not_have(tmp_path, plugins):
    file = tmp_path / "log"
    plugins.distribution("acme", {"vllm.platform_plugins": ["ünïcödé = acme:run"]}, {})
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    environ = {**os.environ, **ascii_locale, "PYTHONPATH": str(plugins.site)}

    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", "--log-file", file, "list", "--platform", "x"],
        env=environ,
        capture_output=True,
        check=False,
    )

    assert done.returncode == 2
    assert b"Logging error" not in done.stderr
    assert "installed: cpu, ünïcödé" in file.read_text("utf-8")


def test_a_name_that_is_asked_for_and_disabled_is_said(capsys):
    code = main(["list", "--set", "platform.driver=[cpu]", "--set", "platform.disabled=[cpu]"])

    assert code == 2
    assert "names 'cpu', which is not used: disabled by platform.disabled" in capsys.readouterr().err


class TestLoading:
    @pytest.fixture
    def acme(self, plugins):
        code = "def good(): print('hello')\ndef bad(): raise OSError('no licence')\n"
        lines = ["good = acme:good", "bad = acme:bad", "idle = acme:idle"]
        plugins.distribution("acme", {GENERAL: lines}, {"acme.py": code})

    def test_each_plugin_that_is_used_has_outcome_seconds_and_detail(self, acme, capsys):
        arguments = ("--load", "--group", GENERAL, "--set", "plugins.general.disabled=[idle]")

        code, listed, _ = rows(capsys, *arguments)

        assert code == 1
        assert {row["name"]: (row["status"], row["outcome"], row["detail"]) for row in listed} == {
            "good": ("selected", "active", ""),
            "bad": ("selected", "failed", "OSError: no licence"),
            "idle": ("disabled", "", ""),
        }
        assert {row["name"]: isinstance(row["seconds"], float) for row in listed} == {
            "good": True,
            "bad": True,
            "idle": False,
        }

    def test_only_what_the_filters_leave_is_loaded(self, acme, plugins, capsys, tmp_path):
        plugins.distribution("zeta", {GENERAL: ["z = zeta:run"]}, {"zeta.py": f"open({str(tmp_path / 'z')!r}, 'w')"})

        code, listed, _ = rows(capsys, "--load", "--group", "vllm_ext.executors")

        assert (code, [row["outcome"] for row in listed]) == (0, ["active", ""])
        assert not (tmp_path / "z").exists()


def test_requirements_are_the_distributions_of_what_is_used(plugins, capsys):
    plugins.distribution("acme", {GENERAL: ["a = acme:run", "b = acme:run2"]}, {})
    plugins.distribution("zeta", {GENERAL: ["z = zeta:run"]}, {})

    assert main(["list", "--requirements", "--set", "plugins.general.disabled=[z]"]) == 0

    lines = [line.partition("  #")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["acme==0.1", f"vllm-ext=={vllm_ext.__version__}"]


@pytest.mark.parametrize(
    "given, named",
    [
        (["--load"], "--load"),
        (["-f", "json"], "-f/--format"),
        (["--format", "table"], "-f/--format"),
        (["-c", "name"], "-c/--column"),
        (["--sort-column", "name"], "--sort-column"),
        (["-c", "name", "-f", "csv"], "-f/--format and -c/--column"),
    ],
)
def test_requirements_have_no_columns(capsys, given, named):
    assert main(["list", "--requirements", *given]) == 2

    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"and {named.replace(' and ', ', ')} cannot be given together" in captured.err
    assert f"; leave out {named}, or --requirements\n" in captured.err


def test_blanks_in_vllm_plugins_do_not_matter(plugins, capsys, monkeypatch):
    plugins.distribution("acme", {GENERAL: ["a = acme:run", "b = acme:run2", "c = acme:run3"]}, {})
    monkeypatch.setenv("VLLM_PLUGINS", " a , b ")

    code, listed, _ = rows(capsys, "--group", GENERAL)

    assert code == 0
    assert {row["name"]: row["status"] for row in listed} == {"a": "selected", "b": "selected", "c": "disabled"}


def test_an_empty_vllm_plugins_allows_nothing_and_says_so(plugins, capsys, monkeypatch):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {})
    monkeypatch.setenv("VLLM_PLUGINS", "")

    code, listed, err = rows(capsys, "--group", GENERAL)

    assert (code, [row["status"] for row in listed]) == (0, ["disabled"])
    assert "VLLM_PLUGINS leaves no out-of-tree general plugin; it excludes 'a'" in err


def test_safe_mode_turns_off_everything_from_outside(plugins, capsys, monkeypatch):
    plugins.distribution("acme", {GENERAL: ["a = acme:run"]}, {})
    monkeypatch.setenv("VLLM_EXT_SAFE_MODE", "1")

    _, listed, _ = rows(capsys)

    assert {row["name"]: row["status"] for row in listed} == {
        "a": "disabled",
        "cpu": "candidate",
        "uniproc": "selected",
        "multiproc": "available",
        **dict.fromkeys(("jsonl", "logging", "prometheus"), "available"),
    }


@pytest.mark.parametrize(
    "arguments",
    [("list", "--load", "--group", "vllm.platform_plugins"), ("show", "npu", "--load")],
    ids=["list", "show"],
)
def test_a_named_platform_that_declines_is_the_exit_code(plugins, capsys, arguments):
    plugins.distribution("npu", {"vllm.platform_plugins": ["npu = npu:run"]}, {"npu.py": "def run(): return None"})

    assert main([*arguments, "-f", "json"]) == 0
    assert main([*arguments, "-f", "json", "--platform", "npu"]) == 3


def test_text_that_cannot_be_shown_becomes_an_escape(plugins):
    code = "def run(): raise ValueError('bad \\ud800 name \\x1b[31m')"
    plugins.distribution("acme", {GENERAL: ["ünïcödé = acme:run"]}, {"acme.py": code})
    environ = {**os.environ, "PYTHONPATH": str(plugins.site), "PYTHONIOENCODING": "ascii"}

    done = subprocess.run(
        [sys.executable, "-m", "vllm_ext", "list", "--load", "-f", "value", "--group", GENERAL],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    assert "\\xfcn\\xefc\\xf6d\\xe9" in done.stdout
    assert "ValueError: bad \\ud800 name \\x1b[31m" in done.stdout


class TestCommandsForTheTerminal:
    """Whatever metadata hold, none reaches the terminal."""

    @pytest.fixture(autouse=True)
    def _acme(self, plugins):
        code = "def bad(): raise ValueError('bad \\x1b[31m name')"
        lines = ["red\x1b[31m = acme:bad", "= acme:bad", "bad = acme:bad"]
        plugins.distribution("acme", {GENERAL: lines, "vllm.\x1b[32m": ["x = acme:x"]}, {"acme.py": code})
        metadata = plugins.site / "acme-0.1.dist-info" / "METADATA"
        metadata.write_text(metadata.read_text().replace("Version: 0.1", "Version: 0.1\x1b[33m"))

    @pytest.mark.parametrize("formatter", ["table", "value", "csv"])
    def test_rows_have_escapes(self, capsys, formatter):
        assert main(["list", "-f", formatter]) == 0

        # cliff's CSV has two backslashes for one.
        out = capsys.readouterr().out.replace("\\\\", "\\")
        assert "\x1b" not in out
        assert all(text in out for text in ("red\\x1b[31m", "vllm.\\x1b[32m", "0.1\\x1b[33m"))

    @pytest.mark.parametrize("formatter", ["table", "value", "shell"])
    def test_fields_have_escapes(self, capsys, formatter):
        assert main(["show", "bad", "-f", formatter]) == 0

        out = capsys.readouterr().out
        assert "\x1b" not in out
        assert "0.1\\x1b[33m" in out

    def test_for_programs_they_stay_what_they_are(self, capsys):
        assert "red\x1b[31m" in [row["name"] for row in rows(capsys)[1]]

    def test_requirements_have_escapes(self, capsys):
        main(["list", "--requirements"])

        assert "acme==0.1\\x1b[33m\n" in capsys.readouterr().out

    def test_messages_have_escapes_and_no_names_that_are_empty(self, capsys):
        assert main(["show", "nothing"]) == 2

        err = capsys.readouterr().err
        assert "\x1b" not in err
        assert "; installed: bad, " in err
        assert ", red\\x1b[31m, " in err

    def test_tracebacks_have_escapes(self, capsys):
        assert main(["run", "--set", "plugins.general.enabled=[bad]"]) == 1

        err = capsys.readouterr().err
        assert "\x1b" not in err
        assert "\nValueError: bad \\x1b[31m name\n" in err


def test_a_closed_standard_output_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m vllm_ext list >&-", shell=True, capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device here that is always full")
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        *((line, "") for line in ("list", "--help", "list --help", "--version", "config sample", "")),
        # Without a buffer argparse overlooks what it cannot write, so that nothing is known of "list --help".
        *((line, "1") for line in ("list", "--help", "config sample", "")),
    ],
)
def test_a_standard_output_that_is_full_is_an_error_in_a_line(arguments, unbuffered):
    done = run_onto_full_disk(arguments, unbuffered)

    assert done.returncode == 1
    assert all(line.startswith("ERROR: ") and "No space left" in line for line in done.stderr.splitlines())
    assert done.stderr
