from setuptools import setup

setup(
    name="vllm_ext_dummy_endpoint",
    version="0.1",
    description="Example endpoint: a route of its own for single prompts, and one in place of the server's",
    packages=["vllm_ext_dummy_endpoint"],
    entry_points={"vllm.endpoint_plugins": ["ask = vllm_ext_dummy_endpoint.endpoint:Ask"]},
)
