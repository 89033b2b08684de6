"""What is odd about the lines and groups of entry_points.txt."""

from __future__ import annotations

import pytest
from support.distributions import GENERAL
from support.plugins import write_distribution

from vllm_ext.contracts.groups import closest_group
from vllm_ext.discovery import Finding, examine


def findings(site) -> list[Finding]:
    return examine([str(site)])


class TestDeclarations:
    """Lines of entry_points.txt."""

    @pytest.fixture
    def write(self, site):
        write_distribution(site, "acme", {}, {})

        def write(text: str, encoding: str = "utf-8") -> list[Finding]:
            (site / "acme-0.1.dist-info" / "entry_points.txt").write_text(text, encoding=encoding)
            return findings(site)

        return write

    def test_a_file_that_is_not_utf8(self, write, site):
        (finding,) = write(f"[{GENERAL}]\nfür = acme:f\n", "latin-1")

        file = site / "acme-0.1.dist-info" / "entry_points.txt"
        assert (finding.severity, finding.code, finding.subject) == ("error", "entry-points-not-utf8", "acme")
        assert finding.text.startswith(f"{file}: entry_points.txt is not UTF-8 (byte 24); importlib.metadata fails")
        assert finding.remedy == f"Save {file} as UTF-8."

    def test_a_file_in_utf16_which_some_editors_write(self, write, site):
        (finding,) = write(f"[{GENERAL}]\na = acme:f\n", "utf-16")

        file = site / "acme-0.1.dist-info" / "entry_points.txt"
        assert (finding.severity, finding.code, finding.subject) == ("error", "entry-points-not-utf8", "acme")
        assert finding.text.startswith(f"{file}: entry_points.txt is not UTF-8 (byte 0); importlib.metadata fails")

    @pytest.mark.parametrize(
        ("line", "severity", "code", "text"),
        [
            ("word", "error", "malformed-declaration", "line 2 has no '=': 'word'; importlib.metadata fails on that"),
            ("= a:b", "error", "malformed-declaration", "not of the form 'name = module:attribute': '= a:b'"),
            ("x = a b", "error", "malformed-declaration", "'a b' is not of the form 'module:attribute'"),
            ("my x = a:b", "warning", "name-with-blanks", "line 2 declares the plugin 'my x', whose name has blanks"),
            ("; x", "error", "comment-with-semicolon", "line 2 begins with ';': importlib.metadata fails on that"),
            (
                "; x = y",
                "warning",
                "comment-with-semicolon",
                "importlib.metadata takes it for a declaration named '; x'",
            ),
            ("a=acme:f", "note", "repeated-declaration", "line 3 declares 'a' once more, with the same target"),
        ],
    )
    def test_a_line_that_is_wrong(self, write, line, severity, code, text):
        (finding,) = write(f"[{GENERAL}]\n{line}\na = acme:f\n")

        assert (finding.severity, finding.code, finding.subject) == (severity, code, "acme")
        assert text in finding.text
        assert finding.remedy

    def test_a_name_with_blanks_is_given_back_without(self, write):
        (finding,) = write(f"[{GENERAL}]\nmy  new\tmodels = acme:f\n")

        assert finding.remedy == "Write it as 'my_new_models'."

    @pytest.mark.parametrize("text", [f"x = a:b\n[{GENERAL}]\ny = a:c\n", f"[{GENERAL}\n"])
    def test_a_line_before_any_group(self, write, text):
        (finding,) = write(text)

        assert (finding.severity, finding.code) == ("warning", "declaration-without-group")
        assert "entry_points.txt, line 1 stands before any [group] and is ignored" in finding.text

    def test_files_that_do_not_mention_us_are_not_looked_at(self, write):
        assert write("x = y\n[console_scripts]\nword\n; x\n") == []

    def test_values_in_groups_of_others_are_not_judged(self, write):
        assert write(f"[{GENERAL}]\na = acme:f\n[others]\nx = anything at all\nmy y = {{}}\n") == []


class TestGroups:
    """Groups that nothing reads."""

    @pytest.mark.parametrize(
        ("group", "meant"),
        [
            ("vllm.general_plugin", "vllm.general_plugins"),
            ("vllm.general-plugins", "vllm.general_plugins"),
            ("vllm_general_plugins", "vllm.general_plugins"),
            ("VLLM.General_Plugins", "vllm.general_plugins"),
            (" vllm.general_plugins ", "vllm.general_plugins"),
            ("vlm.general_plugins", "vllm.general_plugins"),
            ("vllm.general", "vllm.general_plugins"),
            ("vllm.platform_plugin", "vllm.platform_plugins"),
            ("vllm_ext.platform", "vllm_ext.platforms"),
            ("vllm.logits_processor", "vllm.logits_processors"),
            ("vllm.statlogger_plugins", "vllm.stat_logger_plugins"),
        ],
    )
    def test_a_misspelt_one_is_given_with_the_right_spelling(self, site, group, meant):
        write_distribution(site, "acme", {group: ["a = acme:f"], "console_scripts": ["vllm-acme = acme:main"]}, {})

        (finding,) = findings(site)

        assert (finding.severity, finding.code, finding.subject) == ("warning", "misspelt-group", group)
        assert finding.text == (
            f"{site}/acme-0.1.dist-info/entry_points.txt declares plugins in group {group!r}, "
            f"which nothing reads; {meant!r} is likely meant"
        )
        assert finding.remedy == f"Write [{meant}] in the plugin's project and install it anew."

    @pytest.mark.parametrize("group", ["vllm.tool_parser_plugins", "vllm_ext.new_things", "vllm.plugins", "vllm."])
    def test_one_of_ours_that_is_like_none_is_a_note(self, site, group):
        write_distribution(site, "acme", {group: ["a = acme:f"]}, {})

        assert [(f.severity, f.code, f.subject) for f in findings(site)] == [("note", "unknown-group", group)]

    @pytest.mark.parametrize(
        "group", ["console_scripts", "vllm_ascend.ops", "sglang.platform_plugins", "executors", ""]
    )
    def test_those_of_others_are_like_none(self, group):
        assert closest_group(group) is None
