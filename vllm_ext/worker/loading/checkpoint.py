"""The tensors of a Hugging Face model directory, given out one by one from mapped files."""

from __future__ import annotations

import json
import os
from collections.abc import Generator, Mapping
from contextlib import closing
from pathlib import Path

import torch
from tqdm import tqdm

from vllm_ext.dispatch.hf_config import held_by
from vllm_ext.errors import CheckpointError, listing
from vllm_ext.worker.loading.read_ahead import NUM_READERS, read_ahead

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class Checkpoint:
    """``model.safetensors``, or the shards that ``model.safetensors.index.json`` lists.

    Args:
        source: the file that says what belongs to the checkpoint, for messages.
        shards: names of the tensors by file; ``None`` for all that the file has.
    """

    def __init__(self, source: Path, shards: Mapping[Path, list[str] | None]) -> None:
        self.source = source
        self.shards = shards
        self.at_work = str(source)
        """File and tensor that :meth:`tensors` gave out last, for messages."""
        self._names: set[str] = set()

    @classmethod
    def open(cls, model: str) -> Checkpoint:
        """Find the checkpoint in directory ``model``.

        Raises:
            CheckpointError: there is none, only a pickled one, or a part of it is missing.
        """
        directory = Path(model)
        if (directory / _INDEX).is_file():
            return cls(directory / _INDEX, _read_index(directory / _INDEX))
        if (directory / _SINGLE).is_file():
            return cls(directory / _SINGLE, {directory / _SINGLE: None})
        found = sorted(p.name for p in directory.iterdir())
        if pickled := [name for name in found if name.endswith(_PICKLED)]:
            raise CheckpointError(
                f"no weights in {str(directory)!r} that can be read: {', '.join(pickled)} are pickled, and loading a "
                f"pickle runs code. Convert them to safetensors ({_SINGLE}), for example with save_pretrained() of "
                "transformers"
            )
        raise CheckpointError(
            f"no weights in {str(directory)!r}: neither {_SINGLE} nor {_INDEX} exists; it holds: {held_by(directory)}"
        )

    def names(self) -> set[str]:
        """Names of the tensors that :meth:`tensors` has given out."""
        return self._names

    def tensors(
        self, *, progress: bool = False, touch_all: bool = True
    ) -> Generator[tuple[str, torch.Tensor], None, None]:
        """Each tensor with its name, in no particular order. A tensor is a view of the mapped file: copy what is to
        stay.

        Several files are read at the same time, a few tensors ahead of the one that is given out.

        Args:
            touch_all: bring the whole of each tensor into memory; else only what is copied will be.

        Raises:
            CheckpointError: a file is damaged, or lacks a tensor that the index promises.
        """
        num_bytes = sum(path.stat().st_size for path in self.shards)
        with (
            tqdm(total=num_bytes, desc="Loading weights", unit="B", unit_scale=True, disable=not progress) as bar,
            closing(read_ahead(self.shards, NUM_READERS, touch_all)) as read,
        ):
            for path, name, tensor in read:
                self.at_work = f"{path}: tensor {name!r}" if name else str(path)
                if isinstance(tensor, Exception):
                    raise CheckpointError(
                        f"cannot be read as safetensors: {tensor}; download the file again"
                    ) from tensor
                self._names.add(name)
                yield name, tensor
                bar.update(tensor.nbytes)
            # What is left are headers, and tensors that the index does not list.
            bar.update(num_bytes - bar.n)


def _read_index(path: Path) -> dict[Path, list[str]]:
    """The tensors of each shard, by its path."""
    try:
        weight_map = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        items = [(str(name), str(shard)) for name, shard in weight_map.items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not an index of safetensors files: {error!r}") from error
    shards: dict[Path, list[str]] = {}
    for name, shard in items:
        shards.setdefault(path.parent / shard, []).append(name)
    if outside := [shard for _, shard in items if Path(shard).name != shard]:
        raise CheckpointError(f"{path} names {outside[0]!r}, which is no file of the model directory")
    if missing := [p.name for p in shards if not os.path.isfile(p)]:
        raise CheckpointError(
            f"{path} lists files that do not exist: {listing(missing)}; download the model again, or remove the index"
        )
    return shards
