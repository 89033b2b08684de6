from setuptools import setup

setup(
    name="vllm_ext_dummy_model",
    version="0.1",
    description="An example general plugin that adds a model architecture",
    packages=["vllm_ext_dummy_model"],
    entry_points={"vllm.general_plugins": ["register_dummy_model = vllm_ext_dummy_model:register"]},
)
