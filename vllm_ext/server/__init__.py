"""The embedded engine as an HTTP service, with OpenAI's and vLLM's routes; needs the extra ``server``."""

import importlib.util

_NEEDED = ("fastapi", "uvicorn")


def missing_packages() -> str:
    """What of the extra ``server`` is not installed, and what to do, as the rest of a sentence; empty if all is."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    return f"needs {' and '.join(missing)}; pip install 'vllm-ext[server]'" if missing else ""
