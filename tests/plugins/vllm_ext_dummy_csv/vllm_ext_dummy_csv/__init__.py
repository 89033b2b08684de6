"""Example IO processor for tables."""


def register() -> str:
    return "vllm_ext_dummy_csv.processor.CSVEmbeddings"
