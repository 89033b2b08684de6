from collections.abc import Sequence
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.sdist import sdist

_BESIDE_THE_PACKAGE = ("*.md", ".ruff.toml", ".ci/**/*", "etc/**/*", "tests/**/*", "tools/**/*", "vllm_ext/csrc/*.h")


class SourceDistribution(sdist):
    """The whole project: it builds, tests and documents itself like a clone."""

    def make_release_tree(self, base_dir: str, files: Sequence[str]) -> None:
        """Copy ``files``, and what is beside the package."""
        found = (path for pattern in _BESIDE_THE_PACKAGE for path in Path().glob(pattern))
        sources = (path for path in found if path.is_file() and "__pycache__" not in path.parts)
        super().make_release_tree(base_dir, sorted({*files, *map(str, sources)}))


# Kernels for processors. Where they cannot be compiled, the package installs without them and torch computes.
setup(
    cmdclass={"sdist": SourceDistribution},
    ext_modules=[
        Extension(
            "vllm_ext._C",
            [
                f"vllm_ext/csrc/{name}.c"
                for name in ("kernels", "argmax", "linear", "decode", "prefill", "graph", "sampling", "module")
            ],
            depends=[
                f"vllm_ext/csrc/{name}.h"
                for name in (
                    *("kernels", "numbers", "binding", "processors", "softmax"),
                    *("linear_elements", "linear_tile", "prefill_tile"),
                )
            ],
            # Not linked with -ffast-math: that would change the floating-point mode of the whole process.
            extra_compile_args=["-O3", "-ffast-math", "-fopenmp"],
            extra_link_args=["-fopenmp"],
            libraries=["m"],
            optional=True,
        )
    ],
)
