"""``--help`` after a command is about that command, whatever else stands in the line."""

from __future__ import annotations

import pytest

from vllm_ext.cli.main import main


@pytest.mark.parametrize(
    "line",
    [
        "list --help",
        "list -h",
        "--debug list --help",
        "list --status selected --help",
        "list --help --status selected",
        "help list",
    ],
)
def test_it_shows_the_options_of_the_command(line, capsys):
    with pytest.raises(SystemExit) as done:
        main(line.split())

    assert not done.value.code
    assert capsys.readouterr().out.startswith("usage: vllm-ext list ")


def test_commands_of_two_words_have_theirs(capsys):
    with pytest.raises(SystemExit) as done:
        main(["config", "show", "--help"])

    assert not done.value.code
    assert capsys.readouterr().out.startswith("usage: vllm-ext config show ")


def test_after_the_first_word_of_two_it_lists_the_commands(capsys):
    assert main(["config", "--help"]) == 0
    assert "config sample\n  config schema\n  config show" in capsys.readouterr().out


def test_of_an_unknown_command_it_is_wrong_usage(capsys):
    assert main(["lst", "--help"]) == 2

    captured = capsys.readouterr()
    assert "Did you mean one of these?\n  list" in captured.err
    assert captured.out == ""
