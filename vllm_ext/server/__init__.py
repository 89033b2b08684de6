"""The embedded engine as an HTTP service, with OpenAI's and vLLM's routes; needs the extra ``server``."""
