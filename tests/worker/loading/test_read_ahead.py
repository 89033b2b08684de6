"""Files are read by several threads: the same tensors, whatever the number, and no thread is left behind."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from vllm_ext.errors import CheckpointError
from vllm_ext.worker.loading.checkpoint import Checkpoint
from vllm_ext.worker.loading.read_ahead import read_ahead


@pytest.fixture
def shards(tmp_path: Path) -> dict[Path, list[str] | None]:
    """Five files of nine tensors each, among them an empty one, a number and a transposed one."""
    generator = torch.Generator().manual_seed(0)
    for shard in range(5):
        tensors = {f"{shard}.{i}": torch.randn(i + 1, 300, generator=generator) for i in range(6)}
        tensors |= {f"{shard}.empty": torch.empty(0, 3), f"{shard}.number": torch.tensor(1.5)}
        tensors[f"{shard}.half"] = torch.randn(7, generator=generator).half()
        save_file(tensors, tmp_path / f"{shard}.safetensors")
    return dict.fromkeys(sorted(tmp_path.glob("*.safetensors")))


def readers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("vllm_ext-read-")]


@pytest.mark.parametrize("num_readers", [1, 2, 8])
def test_any_number_of_readers_gives_the_same_tensors(shards, num_readers):
    expected = {name: tensor for path in shards for name, tensor in load_file(path).items()}

    read = {name: tensor for _, name, tensor in read_ahead(shards, num_readers)}

    assert len(read) == 5 * 9
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[name], expected[name]) for name in expected)
    assert readers() == []


def test_files_are_read_at_the_same_time(shards):
    reading = read_ahead(shards, 3)
    next(reading)

    assert len(readers()) == 3
    reading.close()


def test_whoever_stops_early_leaves_no_thread_behind(shards):
    reading = read_ahead(shards, 4)
    next(reading)
    reading.close()

    assert readers() == []


def test_an_error_has_its_file_and_ends_the_reading(shards):
    damaged = list(shards)[3]
    damaged.write_bytes(damaged.read_bytes()[:100])
    checkpoint = Checkpoint(damaged, shards)

    with pytest.raises(CheckpointError, match="cannot be read as safetensors"):
        list(checkpoint.tensors())

    assert checkpoint.at_work == str(damaged)
    assert readers() == []


def test_a_name_that_no_file_can_hold_is_an_error_of_its_file(shards):
    """As an index may have it: half of a surrogate pair."""
    first = next(iter(shards))
    checkpoint = Checkpoint(first, {**shards, first: ["\ud800"]})

    with pytest.raises(CheckpointError, match="cannot be read as safetensors: 'utf-8' codec can't encode"):
        list(checkpoint.tensors())

    assert checkpoint.at_work == f"{first}: tensor '\\ud800'"
    assert readers() == []
