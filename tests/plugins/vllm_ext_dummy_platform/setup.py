from setuptools import setup

setup(
    name="vllm_ext_dummy_platform",
    version="0.1",
    description="An example platform plugin that computes in host memory",
    packages=["vllm_ext_dummy_platform"],
    entry_points={
        "vllm.platform_plugins": ["dummy = vllm_ext_dummy_platform:register"],
        "vllm.general_plugins": [
            "dummy_ops = vllm_ext_dummy_platform:register_ops",
            "dummy_methods = vllm_ext_dummy_platform:register_methods",
        ],
    },
)
