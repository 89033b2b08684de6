"""A rank reads its own part of a checkpoint, and random weights are the same however they are split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from support.device import make_dispatcher
from support.split import LoneRank
from support.tools import load_tool
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vllm_ext import ModelRegistry
from vllm_ext.contracts.vllm_config import VllmConfig
from vllm_ext.distributed.parallel_state import use_tp_group
from vllm_ext.worker.loading.model_loaders import DummyModelLoader, SafetensorsModelLoader
from vllm_ext.worker.loading.quantization import quantize_layers

RANKS = 4
SMAPS = Path("/proc/self/smaps")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One KV head, and 32 MB of embeddings and head, whose parts are large in comparison with a page."""
    tool = load_tool("make_checkpoint")
    directory = tmp_path_factory.mktemp("models") / "wide"
    tool.write_checkpoint(directory, tool.Shape(256, 2, 8, 1, 32, 512, 16_384, 256))
    return directory


@contextmanager
def rank_of(model: Path, rank: int, ranks: int, **settings: Any) -> Iterator[tuple[nn.Module, VllmConfig]]:
    """The model of one rank as it is built, before anything is loaded."""
    dispatcher = make_dispatcher(model, engine__dtype="float32", **settings)
    vllm_config = dispatcher.vllm_config
    with dispatcher.activate(), use_tp_group(LoneRank(rank, ranks)), torch.no_grad():
        built = ModelRegistry.resolve_model_cls(["LlamaForCausalLM"])[0](vllm_config=vllm_config)
        if vllm_config.quant_config is not None:
            quantize_layers(built, vllm_config.quant_config, torch.float32)
        yield built, vllm_config


class BytesRead(TorchDispatchMode):
    """Counts the bytes that operations read of tensors in ``storages``; to make a view reads nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view:
            for each in tree_leaves((args, kwargs or {})):
                if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() in self.storages:
                    self.count += each.nbytes
        return func(*args, **(kwargs or {}))


class Loaded(nn.Module):
    """Passes the tensors on to a model, and keeps them, so that the file stays mapped."""

    def __init__(self, model: nn.Module, read: BytesRead) -> None:
        super().__init__()
        self.named_parameters = model.named_parameters
        self._load, self._read, self._tensors = model.load_weights, read, []

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return self._load(self._noted(weights))

    def _noted(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights:
            self._tensors.append(tensor)
            self._read.storages.add(tensor.untyped_storage().data_ptr())
            yield name, tensor


def load(model: Path, rank: int, ranks: int) -> tuple[int, int]:
    """Bytes that operations read of the weights' file, and bytes of it that came into this process's memory."""
    with rank_of(model, rank, ranks) as (built, vllm_config), BytesRead() as read:
        loader = SafetensorsModelLoader(vllm_config.load_config)
        loader.download_model(vllm_config.model_config)
        loaded = Loaded(built, read)
        loader.load_weights(loaded, vllm_config.model_config)
        return read.count, resident_bytes(model / "model.safetensors")


def resident_bytes(path: Path) -> int:
    """Of the mappings of ``path`` in this process, what is in memory."""
    count, is_wanted = 0, False
    for line in SMAPS.read_text().splitlines():
        if not line.split()[0].endswith(":"):
            is_wanted = line.endswith(str(path))
        elif is_wanted and line.startswith("Rss:"):
            count += int(line.split()[1]) * 1024
    return count


def bytes_of_a_rank(model: Path) -> int:
    """What one of :data:`RANKS` needs: norms and the one KV head whole, and its share of everything else."""
    count = 0
    with safe_open(model / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no mapping
            is_whole = any(part in name for part in ("norm", "k_proj", "v_proj"))
            count += math.prod(file.get_slice(name).get_shape()) * 4 // (1 if is_whole else RANKS)
    return count


@pytest.mark.parametrize("rank", [0, RANKS - 1])
def test_a_rank_copies_the_bytes_of_its_part_and_no_others(model, rank):
    copied, _ = load(model, rank, RANKS)

    assert copied == bytes_of_a_rank(model)


@pytest.mark.skipif(not SMAPS.exists(), reason="the system does not say what of a file is in memory")
def test_what_other_ranks_need_does_not_come_into_memory(model):
    size = (model / "model.safetensors").stat().st_size

    resident = [load(model, rank, RANKS)[1] for rank in range(RANKS)]

    # The system reads somewhat more than it is asked for.
    assert max(resident) < 0.6 * size
    assert load(model, 0, 1)[1] > 0.95 * size, "one rank alone needs all, and the measurement shows it"


@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.parametrize("quantization", [None, "int8"])
def test_dummy_weights_are_parts_of_the_same_numbers_on_any_number_of_ranks(model, ranks, quantization):
    settings = {"engine__quantization": quantization}
    whole = dummy_weights(model, 0, 1, **settings)
    split = [dummy_weights(model, rank, ranks, **settings) for rank in range(ranks)]

    for name, expected in whole.items():
        parts = [each[name] for each in split]
        if "norm" in name:
            assert all(torch.equal(part, expected) for part in parts)
        elif "qkv_proj" in name:
            query = torch.cat([part[:-64] for part in parts])
            assert torch.equal(query, expected[:-64])
            assert all(torch.equal(part[-64:], expected[-64:]) for part in parts), "one KV head, on each rank"
        elif "gate_up_proj" in name:
            halves = [torch.cat(half) for half in zip(*(part.chunk(2) for part in parts), strict=True)]
            assert torch.equal(torch.cat(halves), expected)
        else:
            by_columns = "o_proj" in name or "down_proj" in name
            assert torch.equal(torch.cat(parts, dim=1 if by_columns else 0), expected)


def dummy_weights(model: Path, rank: int, ranks: int, **settings: Any) -> dict[str, torch.Tensor]:
    with rank_of(model, rank, ranks, **settings) as (built, vllm_config):
        DummyModelLoader(vllm_config.load_config).load_weights(built, vllm_config.model_config)
        return {name: param.data for name, param in built.named_parameters()}


@pytest.mark.parametrize("ranks", [2, 4])
def test_int8_scales_belong_to_whole_rows_on_any_number_of_ranks(model, ranks):
    """Widened again, what the ranks hold is what one holds."""
    whole = int8_weights(model, 0, 1)
    split = [int8_weights(model, rank, ranks) for rank in range(ranks)]

    for name in ("o_proj", "down_proj"):
        layer = f"model.layers.1.{'mlp' if name == 'down_proj' else 'self_attn'}.{name}"
        assert torch.equal(torch.cat([each[layer] for each in split], dim=1), whole[layer])
    layer = "model.layers.0.self_attn.qkv_proj"
    assert torch.equal(torch.cat([each[layer][:-64] for each in split]), whole[layer][:-64])
    assert all(torch.equal(each[layer][-64:], whole[layer][-64:]) for each in split)


def int8_weights(model: Path, rank: int, ranks: int) -> dict[str, torch.Tensor]:
    with rank_of(model, rank, ranks, engine__quantization="int8") as (built, vllm_config):
        loader = SafetensorsModelLoader(vllm_config.load_config)
        loader.download_model(vllm_config.model_config)
        loader.load_weights(built, vllm_config.model_config)
        modules = dict(built.named_modules())
        return {
            name: module.weight * module.weight_scale[:, None]
            for name, module in modules.items()
            if hasattr(module, "weight_scale")
        }
