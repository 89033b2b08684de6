from setuptools import setup

setup(
    name="vllm_ext_dummy_chunks",
    version="0.1",
    description="Example IO processor: long documents in, embeddings of their parts with offsets out",
    packages=["vllm_ext_dummy_chunks"],
    entry_points={"vllm.io_processor_plugins": ["document_chunks = vllm_ext_dummy_chunks:register"]},
)
