"""Example IO processor for long documents."""


def register(config=None) -> str:
    """``config`` has the options of the settings; the processor gets them as well."""
    if not isinstance((config or {}).get("chunk_tokens", 1), int):
        raise ValueError("option chunk_tokens takes a whole number")
    return "vllm_ext_dummy_chunks.processor.DocumentChunks"
