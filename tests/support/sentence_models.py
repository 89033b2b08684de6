"""sentence-transformers, for tests that compare with it or read what it writes."""

from __future__ import annotations

from vllm_ext import _custom_ops

# The library brings a second OpenMP, with which there are no kernels. Whether there are any is asked once in a process:
# here, so that other tests of this process still have theirs.
_custom_ops.why_missing()

from sentence_transformers import CrossEncoder, SentenceTransformer  # noqa: E402
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer  # noqa: E402

__all__ = ["CrossEncoder", "Dense", "Normalize", "Pooling", "SentenceTransformer", "Transformer"]
