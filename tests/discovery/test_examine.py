"""What looks wrong with an installation, and what is said about it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.distributions import GENERAL, PLATFORM, write_egg_info, write_zip
from support.plugins import write_distribution

from vllm_ext.discovery import Finding, examine

OURS = {GENERAL: ["a = acme:f"]}


def findings(*path: Path) -> list[Finding]:
    return examine([str(entry) for entry in path])


def summary(*path: Path) -> list[tuple[str, str, str]]:
    return [(finding.severity, finding.code, finding.subject) for finding in findings(*path)]


def test_a_sound_installation_has_no_findings(site):
    write_distribution(site, "acme", {**OURS, "console_scripts": ["x = acme:main"]}, {})
    write_distribution(site, "other", {PLATFORM: ["b = other:f"]}, {})
    write_distribution(site, "numpy", {}, {})

    assert findings(site) == []


def test_findings_come_in_one_order_errors_first(site):
    write_distribution(site, "acme", {GENERAL: ["x", "a b = acme:f", "c = acme:g", "c = acme:g"]}, {})
    (site / "~cme-1.dist-info").mkdir()

    found = findings(site)

    assert [finding.severity for finding in found] == ["error", "warning", "note", "note"]
    assert found == findings(site, site)


def test_nothing_is_imported(site, monkeypatch):
    write_distribution(site, "acme", {GENERAL: ["a = canary:f"]}, {"canary.py": "raise RuntimeError"})
    monkeypatch.syspath_prepend(str(site))

    examine()

    assert "canary" not in sys.modules


def test_the_findings_on_a_zip_file_are_the_same(site, tmp_path):
    write_distribution(site, "acme", {GENERAL: ["a b = acme:f"]}, {})
    archive = write_zip(tmp_path / "plugins.zip", site)

    assert summary(archive) == summary(site) == [("warning", "name-with-blanks", "acme")]


class TestFolders:
    """Metadata folders that are not whole."""

    def test_what_an_interrupted_pip_left_behind(self, site):
        write_distribution(site, "~cme", OURS, {})
        leftover = site / "~cme-0.1.dist-info"

        assert findings(site) == [
            Finding(
                severity="note",
                code="pip-leftover",
                subject=str(leftover),
                text=f"{leftover} was left behind by an interrupted pip; it is ignored",
                remedy=f"Delete {leftover}.",
            )
        ]

    @pytest.mark.parametrize(("name", "missing"), [("acme-1.0.dist-info", "METADATA"), ("acme.egg-info", "PKG-INFO")])
    def test_an_empty_folder(self, site, name, missing):
        (site / name).mkdir()
        (site / name / "RECORD").touch()

        (finding,) = findings(site)

        assert (finding.severity, finding.code, finding.subject) == ("warning", "empty-metadata", "acme")
        assert (
            finding.text == f"{site / name} has neither {missing} nor entry_points.txt, so it describes no distribution"
        )
        assert finding.remedy == f"Delete {site / name}."

    def test_a_file_that_would_keep_its_reader_waiting_is_not_read(self, site):
        write_distribution(site, "acme", {}, {})
        write_distribution(site, "beta", OURS, {})
        file = site / "acme-0.1.dist-info" / "entry_points.txt"
        file.unlink()
        os.mkfifo(file)
        code = "from vllm_ext.discovery import examine, scan\n"
        code += f"print(*[record.name for record in scan([{str(site)!r}])])\n"
        code += f"print(*[(finding.code, finding.text) for finding in examine([{str(site)!r}])])"

        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)

        text = f"{file} is no regular file and is not read, so that what acme declares is not seen"
        assert done.stdout == f"a\n{('unreadable-metadata', text)}\n"

    def test_an_egg_info_that_is_a_file_is_no_finding(self, site):
        (site / "acme-1.0.egg-info").write_text("Name: acme\nVersion: 1.0\n")

        assert findings(site) == []

    def test_plugins_without_metadata(self, site):
        write_distribution(site, "acme", OURS, {})
        (site / "acme-0.1.dist-info" / "METADATA").unlink()

        (finding,) = findings(site)

        assert (finding.severity, finding.code, finding.subject) == ("warning", "missing-metadata", "acme")
        assert "version and requirements of acme are unknown" in finding.text
        assert finding.remedy == "Install it anew: pip install --force-reinstall --no-deps acme."

    @pytest.mark.parametrize(("groups", "severity"), [(OURS, "warning"), ({"console_scripts": ["x = y:z"]}, "note")])
    @pytest.mark.parametrize(
        ("metadata", "code", "text"),
        [
            (b"Name: acme\nVersion: 1\nAuthor: J\xfcrgen\n", "metadata-not-utf8", "is not UTF-8 (byte 31)"),
            (b"Name: acme\n", "incomplete-metadata", "has no Version"),
            (b"Name:\nVersion:\n", "incomplete-metadata", "has no Name and no Version"),
            (
                b"Name: acme\nVersion: nightly\n",
                "invalid-version",
                "has Version 'nightly', which is not a valid version",
            ),
        ],
    )
    def test_metadata_that_are_wrong(self, site, groups, severity, metadata, code, text):
        write_distribution(site, "acme", groups, {})
        file = site / "acme-0.1.dist-info" / "METADATA"
        file.write_bytes(metadata)

        (finding,) = findings(site)

        assert (finding.severity, finding.code, finding.subject) == (severity, code, "acme")
        assert finding.text.startswith(f"{file} {text}")

    def test_a_requirement_on_a_host_that_cannot_be_read(self, site):
        write_distribution(site, "acme", OURS, {})
        with (site / "acme-0.1.dist-info" / "METADATA").open("a") as file:
            file.write("Requires-Dist: vllm=>0.30\nRequires-Dist: torch=>2\nRequires-Dist: vllm-ext>=0.1\n")

        (finding,) = findings(site)

        assert (finding.severity, finding.code, finding.subject) == ("warning", "invalid-requirement", "acme")
        assert finding.text.startswith(
            f"{site}/acme-0.1.dist-info has the requirement 'vllm=>0.30', which cannot be read and is not checked: "
        )
        assert "\n" not in finding.text

    def test_such_a_requirement_in_the_file_of_an_egg_info(self, site):
        (write_egg_info(site, "acme", OURS) / "requires.txt").write_text("vllm=>0.30\n")

        assert ("warning", "invalid-requirement") in [(found.severity, found.code) for found in findings(site)]


class TestCopies:
    """A distribution that is on the path more than once."""

    @staticmethod
    def editable(site: Path, project: Path, entry_points: dict[str, list[str]], name: str = "acme") -> None:
        write_distribution(site, name, entry_points, {})
        url = {"url": f"file://{project}", "dir_info": {"editable": True}}
        (site / f"{name}-0.1.dist-info" / "direct_url.json").write_text(json.dumps(url))

    def test_two_versions_in_one_folder(self, site):
        write_distribution(site, "acme", {GENERAL: ["old = acme:f", "a = acme:g"]}, {}, "0.9")
        write_distribution(site, "acme", {GENERAL: ["a = acme:g"]}, {}, "0.10")

        assert findings(site) == [
            Finding(
                severity="warning",
                code="shadowed-distribution",
                subject="acme",
                text=f"acme 0.10 ({site}/acme-0.10.dist-info) comes first and hides acme 0.9 "
                f"({site}/acme-0.9.dist-info); lost by that: 'old' in vllm.general_plugins",
                remedy="Run pip uninstall acme twice, then install it once.",
            )
        ]

    def test_two_versions_on_the_path(self, tmp_path):
        for entry, version in (("1", "1.0"), ("2", "2.0")):
            write_distribution(tmp_path / entry, "acme", OURS, {}, version)

        (finding,) = findings(tmp_path / "1", tmp_path / "2")

        assert (finding.severity, finding.code) == ("warning", "shadowed-distribution")
        assert finding.text.startswith("acme 1.0 (")
        assert "lost" not in finding.text
        assert "until nothing is left" in finding.remedy

    @pytest.mark.parametrize(("name", "severity"), [("vllm", "warning"), ("vllm_ext", "warning"), ("numpy", "note")])
    def test_how_much_it_matters_depends_on_the_distribution(self, site, name, severity):
        for version in ("1", "2"):
            write_distribution(site, name, {}, {}, version)

        assert [finding.severity for finding in findings(site)] == [severity]

    def test_two_copies_of_one_version_are_a_note(self, tmp_path):
        for entry in ("1", "2"):
            write_distribution(tmp_path / entry, "acme", OURS, {})

        assert summary(tmp_path / "1", tmp_path / "2") == [("note", "shadowed-distribution", "acme")]

    def test_a_stale_egg_info_in_front_of_the_installation(self, tmp_path, site):
        egg_info = write_egg_info(tmp_path / "source", "acme", {}, "0.1")
        write_distribution(site, "acme", OURS, {}, "0.2")

        assert findings(tmp_path / "source", site) == [
            Finding(
                severity="warning",
                code="stale-egg-info",
                subject="acme",
                text=f"the egg-info of acme 0.1 ({egg_info}) comes first and hides acme 0.2 "
                f"({site}/acme-0.2.dist-info); lost by that: 'a' in vllm.general_plugins",
                remedy=f"Delete {egg_info}, or install its project: pip install -e {tmp_path}/source.",
            )
        ]

    def test_the_egg_info_of_an_editable_installation_is_no_finding(self, tmp_path, site):
        write_egg_info(tmp_path / "source", "acme", OURS)
        self.editable(site, tmp_path / "source", OURS)

        assert findings(site, tmp_path / "source") == []
        assert findings(tmp_path / "source", site) == []

    def test_an_egg_info_in_front_of_its_installation_that_lacks_a_plugin(self, tmp_path, site):
        write_egg_info(tmp_path / "source", "acme", {})
        self.editable(site, tmp_path / "source", OURS)

        assert summary(tmp_path / "source", site) == [("warning", "stale-egg-info", "acme")]

    def test_a_plugin_added_to_the_project_after_its_editable_installation(self, tmp_path, site):
        write_egg_info(tmp_path / "source", "acme", {GENERAL: ["a = acme:f", "new = acme:g"]})
        self.editable(site, tmp_path / "source", OURS)

        (finding,) = findings(site, tmp_path / "source")

        assert (finding.severity, finding.code) == ("note", "editable-out-of-date")
        assert finding.text.endswith("; lost by that: 'new' in vllm.general_plugins")
        assert finding.remedy == f"Run pip install -e {tmp_path}/source again."

    def test_an_egg_info_of_another_version_behind_the_installation(self, tmp_path, site):
        egg_info = write_egg_info(tmp_path / "source", "acme", OURS, "9")
        write_distribution(site, "acme", OURS, {})

        (finding,) = findings(site, tmp_path / "source")

        assert (finding.severity, finding.code) == ("warning", "shadowed-distribution")
        assert finding.remedy == f"Delete {egg_info} if its project is not in use."

    def test_an_empty_remainder_is_no_copy(self, site):
        (site / "acme-9.dist-info").mkdir()
        write_distribution(site, "acme", OURS, {})

        assert summary(site) == [("warning", "empty-metadata", "acme")]


def test_one_name_in_two_distributions_on_the_path(site):
    write_distribution(site, "acme", OURS, {})
    write_distribution(site, "other", {GENERAL: ["a = other:f"]}, {})

    assert summary(site) == [("warning", "ambiguous-name", "a")]


def test_whatever_is_on_disk_it_never_raises(site, tmp_path):
    garbage = bytes(range(256)) * 4 + b"\n[vllm.general_plugins]\n\xff = \n=\n;\n[vllm.\n[]\n[vllm.]\nx\n"
    for index, name in enumerate(["a-1.dist-info", "b.egg-info", "-.dist-info", ".egg-info", "c-x-y-z.dist-info"]):
        folder = site / name
        folder.mkdir()
        for file in ("METADATA", "PKG-INFO", "entry_points.txt", "direct_url.json", "RECORD"):
            if index % 2:
                (folder / file).mkdir()
            else:
                (folder / file).write_bytes(garbage)
    (site / "loop-1.dist-info").symlink_to(site / "loop-1.dist-info")
    (tmp_path / "x.zip").write_bytes(garbage)

    assert all(
        isinstance(f, Finding) for f in examine([str(site), str(tmp_path / "x.zip"), "nul\0", str(tmp_path / "-")])
    )


def test_an_examination_does_not_import_torch_or_stevedore():
    code = (
        "import sys; from vllm_ext.discovery import examine; examine(); "
        "sys.exit(', '.join({'torch', 'stevedore', 'yaml'} & set(sys.modules)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
