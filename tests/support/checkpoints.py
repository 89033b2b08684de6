"""Small random models on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.tools import load_tool


@pytest.fixture(scope="session")
def random_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory: 3 layers, 4 query heads on 2 KV heads, untied, 600 tokens of vocabulary, 256 positions."""
    tool = load_tool("make_checkpoint")
    shape = tool.Shape(
        hidden_size=64,
        layers=3,
        heads=4,
        kv_heads=2,
        head_dim=16,
        intermediate_size=96,
        vocab_size=600,
        max_position_embeddings=256,
    )
    directory = tmp_path_factory.mktemp("random-llama") / "model"
    tool.write_checkpoint(directory, shape, seed=5)
    return directory
