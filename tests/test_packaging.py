"""What is handed out: the source distribution is the whole project, an installed package has what runs and no more."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("vllm_ext", "tests", "tools", "etc", ".ci")
NOT_OURS = ("__pycache__", "*.pyc", "*.so", ".git", ".venv*", ".*_cache", ".hypothesis", "build", "dist", "*.egg-info")
AT_THE_TOP = {"README.md", "CONTRIBUTING.md", "LICENSE", "setup.cfg", "setup.py", ".ruff.toml"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A copy, as setup.py writes beside itself."""
    project = tmp_path_factory.mktemp("project") / "vllm-ext"
    project.mkdir()
    for name in AT_THE_TOP:
        shutil.copy(ROOT / name, project)
    for part in PARTS:
        # Among the plugins of tests are egg-infos that belong there.
        ignored = [pattern for pattern in NOT_OURS if (part, pattern) != ("tests", "*.egg-info")]
        shutil.copytree(ROOT / part, project / part, ignore=shutil.ignore_patterns(*ignored), symlinks=True)
    return project


def files_in(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir()}


def run_setup(project, *command):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "setup.py", "-q", *command], cwd=project, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()


def test_the_source_distribution_is_the_whole_project(project, tmp_path):
    expected = files_in(project)

    run_setup(project, "egg_info", "-e", str(tmp_path), "sdist", "-d", str(tmp_path))

    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as contents:
        packed = {member.name.partition("/")[2] for member in contents if not member.isdir()}
    assert expected - packed == set()
    assert {name for name in packed - expected if not name.startswith("vllm_ext.egg-info/")} == {"PKG-INFO"}


def test_an_installed_package_has_its_data_and_no_source_of_the_kernels(project, tmp_path):
    run_setup(project, "build_py", "-d", str(tmp_path))

    installed = files_in(tmp_path)
    sources = {name for name in files_in(project) if name.startswith("vllm_ext/") and "/csrc/" not in name}
    assert installed == sources
    assert "vllm_ext/assets/demo_model/model.safetensors" in installed
