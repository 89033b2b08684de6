"""sentence-transformers, for tests that compare with it or read what it writes: its names are attributes here.

It is imported when the first of them is asked for. That takes seconds, in each process that only collects tests too,
where pytest asks every module for names of its own, such as ``__wrapped__``.
"""

from __future__ import annotations

from typing import Any

from vllm_ext import _custom_ops


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    # The library brings a second OpenMP, with which there are no kernels. Whether there are any is asked once in a
    # process: here, so that other tests of this process still have theirs.
    _custom_ops.why_missing()

    import sentence_transformers
    from sentence_transformers.sentence_transformer import modules

    return getattr(sentence_transformers if hasattr(sentence_transformers, name) else modules, name)
