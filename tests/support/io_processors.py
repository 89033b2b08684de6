"""IO processors for tests, each a distribution of its own, and a model directory that names one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from support.plugins import PluginInstaller

from vllm_ext.dispatch.hf_config import DEMO_MODEL

GROUP = "vllm.io_processor_plugins"

SPLIT = '''
import threading
from vllm_ext import IOProcessor, SamplingParams

CALLS = []


def register():
    return "{module}.Processor"


class Processor(IOProcessor):
    """Texts with ``|`` between them become prompts; what comes back are their outputs, with what was given."""

    def __init__(self, vllm_config, renderer):
        super().__init__(vllm_config, renderer)
        self.kept = {{}}

    def parse_data(self, data):
        if not isinstance(data, str):
            raise ValueError("a text is needed")
        return data

    def merge_sampling_params(self, params=None):
        params = SamplingParams() if params is None else params
        params.temperature, params.max_tokens = 0, 4
        return params

    def pre_process(self, prompt, request_id=None, **kwargs):
        assert request_id not in self.kept
        self.kept[request_id] = prompt
        return prompt.split("|")

    def post_process(self, outputs, request_id=None, **kwargs):
        return self.kept.pop(request_id), [output.outputs[0].text for output in outputs]

    def discard(self, request_id):
        self.kept.pop(request_id, None)
'''
"""The body that a test's processor has besides what it changes."""


def install(plugins: PluginInstaller, name: str = "split", body: str = "") -> None:
    """Install the processor ``name`` as ``dist_NAME``; ``body`` holds methods that it has instead."""
    module = f"{name}_io_module"
    source = SPLIT.format(module=module) + body
    plugins.distribution(f"dist_{name}", {GROUP: [f"{name} = {module}:register"]}, {f"{module}.py": source})


def install_marked(plugins: PluginInstaller, name: str, marker: Path) -> None:
    """Install a processor whose import leaves a file."""
    module = f"{name}_io_module"
    source = f"open({str(marker)!r}, 'w').close()\n" + SPLIT.format(module=module)
    plugins.distribution(f"dist_{name}", {GROUP: [f"{name} = {module}:register"]}, {f"{module}.py": source})


def model_that_names(name: Any, folder: Path, model: Path = DEMO_MODEL) -> Path:
    """A copy of ``model`` whose configuration wants an IO processor."""
    directory = folder / "model-with-processor"
    shutil.copytree(model, directory)
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"io_processor_plugin": name}))
    return directory
