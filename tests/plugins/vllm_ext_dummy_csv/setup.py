from setuptools import setup

setup(
    name="vllm_ext_dummy_csv",
    version="0.1",
    description="Example IO processor: a CSV table in, the same table with an embedding in each row out",
    packages=["vllm_ext_dummy_csv"],
    entry_points={"vllm.io_processor_plugins": ["csv_embeddings = vllm_ext_dummy_csv:register"]},
)
