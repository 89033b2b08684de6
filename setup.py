from setuptools import Extension, setup

# Kernels for processors. Where they cannot be compiled, the package installs without them and torch computes.
setup(
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
    ]
)
