"""A model loader: all files of the directory, one after the other, each read as a whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from vllm_ext import BaseModelLoader
from vllm_ext.errors import CheckpointError
from vllm_ext_dummy_platform import calls


class MyDummyModelLoader(BaseModelLoader):
    """Goes by the files that are there, and not by an index."""

    def download_model(self, model_config: Any) -> None:
        calls["download_model"] += 1
        self.files = sorted(Path(model_config.model).glob("*.safetensors"))
        if not self.files:
            raise CheckpointError(f"no *.safetensors in {model_config.model!r}")

    def load_weights(self, model: Any, model_config: Any) -> None:
        calls["load_weights"] += 1
        model.load_weights(pair for file in self.files for pair in load_file(file).items())
