"""What becomes of pooled states: embeddings, or scores of classes. Rows are prompts, or tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from vllm_ext.contracts.pooling_params import PoolingParams
from vllm_ext.contracts.vllm_config import HFConfig, ModelConfig, PoolerConfig
from vllm_ext.dispatch.hf_config import read_json_object
from vllm_ext.errors import CheckpointError, UnsupportedModel, listing


def _as_is(scores: torch.Tensor) -> torch.Tensor:
    return scores


def _softmax(scores: torch.Tensor) -> torch.Tensor:
    return scores.softmax(dim=-1)


_DENSE_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": _as_is,
    "Tanh": torch.tanh,
    "ReLU": torch.relu,
    "GELU": F.gelu,
}

_SCORE_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "Identity": _as_is,
    "Sigmoid": torch.sigmoid,
    "Softmax": _softmax,
}


class Dense(nn.Module):
    """A projection that sentence-transformers keeps in a folder of its own, computed in float32.

    Args:
        in_features: numbers that it is given for each row; ``None`` where nobody says.

    Raises:
        CheckpointError: a file is missing, or does not fit.
        UnsupportedModel: an activation that is not known.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, folder: Path, in_features: int | None) -> None:
        super().__init__()
        config = read_json_object(folder / "config.json")
        # A class path; only its name is looked at, and nothing is imported.
        name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh")).rpartition(".")[2]
        if name not in _DENSE_ACTIVATIONS:
            raise UnsupportedModel(
                f"{folder / 'config.json'}: activation_function {name!r} is not supported; supported: "
                f"{listing(_DENSE_ACTIVATIONS)}"
            )
        self._activation = _DENSE_ACTIVATIONS[name]
        path = folder / "model.safetensors"
        try:
            tensors = load_file(path)
            weight, bias = tensors["linear.weight"].float(), tensors.get("linear.bias")
        except (OSError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read as the weights of a projection: {error!r}") from error
        _check_shapes(path, weight, bias, in_features)
        self.out_features = len(weight)
        device = torch.empty(0).device
        self.register_buffer("weight", weight.to(device), persistent=False)
        self.register_buffer("bias", None if bias is None else bias.float().to(device), persistent=False)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self._activation(F.linear(pooled, self.weight, self.bias))


def _check_shapes(path: Path, weight: torch.Tensor, bias: torch.Tensor | None, in_features: int | None) -> None:
    shape = list(weight.shape)
    fits = len(shape) == 2 and in_features in (None, shape[1])
    if not fits or (bias is not None and list(bias.shape) != shape[:1]):
        given = "" if bias is None else f", and a bias of shape {list(bias.shape)}"
        raise CheckpointError(
            f"{path} has a weight of shape {shape}{given}; what comes before it gives {in_features or 'some'} numbers, "
            f"so that it has a weight of shape [out, {in_features or 'in'}], and maybe a bias of shape [out]"
        )


class EmbeddingHead(nn.Module):
    """Projections, then as many dimensions as were asked for, then the length 1.

    Args:
        hidden_size: numbers in a token's state, where the model's files say.

    Raises:
        CheckpointError: the projections do not fit one after another.
    """

    def __init__(self, config: PoolerConfig, hidden_size: int | None) -> None:
        super().__init__()
        self.dense, size = nn.ModuleList(), hidden_size
        for folder in config.dense:
            dense = Dense(Path(folder), size)
            self.dense.append(dense)
            size = dense.out_features
        if config.dense and size != config.embedding_size:
            raise CheckpointError(
                f"{config.dense[-1]}: config.json says out_features {config.embedding_size}, and the weights "
                f"have {size}"
            )
        self._normalizes = config.use_activation

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """``[rows, hidden]`` in the model's dtype to float32 ``[rows, dimensions]``."""
        pooled = pooled.float()
        for dense in self.dense:
            pooled = dense(pooled)
        return pooled

    def finish(self, rows: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        """Rows of :meth:`project` as ``params`` wants them."""
        if params.dimensions is not None:
            rows = rows[:, : params.dimensions]
        normalizes = self._normalizes if params.use_activation is None else params.use_activation
        return F.normalize(rows, dim=-1) if normalizes else rows


class ClassifierHead(nn.Module):
    """A model's classifier, then sigmoid of a single score, or of labels that do not exclude one another, and else
    softmax."""

    def __init__(
        self, classifier: Callable[[torch.Tensor], torch.Tensor], config: PoolerConfig, model: ModelConfig
    ) -> None:
        super().__init__()
        self._dtype = model.dtype
        # Not as a module: its weights are the model's.
        self._classifiers = (classifier,)
        self._activates = config.use_activation
        self._activation = _score_activation(config, model)

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        """``[rows, hidden]`` in the model's dtype to float32 ``[rows, classes]``."""
        # The mean of states is float32.
        return self._classifiers[0](pooled.to(self._dtype)).float()

    def finish(self, rows: torch.Tensor, params: PoolingParams) -> torch.Tensor:
        """Rows of :meth:`project` as ``params`` wants them."""
        activates = self._activates if params.use_activation is None else params.use_activation
        return self._activation(rows) if activates else rows


def _score_activation(config: PoolerConfig, model: ModelConfig) -> Callable[[torch.Tensor], torch.Tensor]:
    """What sentence-transformers wrote down, else what goes with the number and the kind of labels.

    Raises:
        UnsupportedModel: it wrote down something else than a known function.
    """
    if config.activation_fn is not None:
        # A class path; only its name is looked at, and nothing is imported.
        name = config.activation_fn.rpartition(".")[2]
        if name not in _SCORE_ACTIVATIONS:
            raise UnsupportedModel(
                f"model {model.model!r} names the activation function {config.activation_fn!r}, which is not "
                f"supported; supported: {listing(_SCORE_ACTIVATIONS)}"
            )
        return _SCORE_ACTIVATIONS[name]
    hf_config = model.hf_config
    if hf_config.get("problem_type") == "regression":
        return _as_is
    is_sigmoid = num_labels(hf_config) == 1 or hf_config.get("problem_type") == "multi_label_classification"
    return torch.sigmoid if is_sigmoid else _softmax


def num_labels(hf_config: HFConfig) -> int:
    """Classes of a model for classification: ``num_labels``, or as many as ``id2label`` names, else 2."""
    return hf_config.positive_int("num_labels", len(hf_config.get("id2label", ())) or 2)
