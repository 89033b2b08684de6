"""The kernels as processors of older generations get them: built without the newer ones, and run on this one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_ext import _custom_ops

ROOT = Path(__file__).parent.parent
TESTS = ("test_custom_ops.py", "test_paged_prefill.py", "worker/sampling/test_draw_tokens.py")
ANY_X86, AVX2, AVX512 = 1, 3, 4
"""As GENERATION in csrc/processors.h."""
PANELS = {ANY_X86: {0}, AVX2: {0, 16}, AVX512: {0, 16, 32}}
"""Rows of a weight that are multiplied together; this processor may be older than what is built for."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(_custom_ops.why_missing() is not None, reason=str(_custom_ops.why_missing())),
]


@pytest.fixture(params=[ANY_X86, AVX2, AVX512], ids=["any-x86", "avx2", "avx512"])
def generation(request):
    return request.param


@pytest.fixture
def folder(generation, tmp_path):
    """With a copy of the package whose kernels are built for this generation at most."""
    kernels = shutil.ignore_patterns("__pycache__", "_C.*")
    shutil.copytree(ROOT / "vllm_ext", tmp_path / "vllm_ext", ignore=kernels)
    build = ["setup.py", "-q", "build_ext", "--build-lib", tmp_path, "--build-temp", tmp_path / "temp"]
    environment = {**os.environ, "CFLAGS": f"-DGENERATION={generation}"}
    subprocess.run([sys.executable, *build], cwd=ROOT, env=environment, check=True)
    return tmp_path


def test_kernels_of_older_processors_pass_the_tests_of_kernels(generation, folder):
    # What is in the working directory comes before what is installed.
    where = "from vllm_ext import _custom_ops as o; import torch; print(o._C.__file__, o.linear_panel(torch.float32))"
    said = subprocess.run([sys.executable, "-c", where], cwd=folder, check=True, capture_output=True, text=True)
    path, panel = said.stdout.split()
    assert Path(path).is_relative_to(folder)
    assert int(panel) in PANELS[generation]

    tests = [ROOT / "tests" / name for name in TESTS]
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)

    assert run.returncode == 0, run.stdout
