"""BERT, and sentence transformers of its kind."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.layers.linear import ReplicatedLinear
from vllm_ext.layers.pooler.heads import num_labels
from vllm_ext.layers.pooler.pooler import DispatchPooler
from vllm_ext.models.encoder import EncoderConfig, PoolingEncoder


class BertModel(PoolingEncoder):
    """The encoder, whatever its results become."""

    checkpoint_prefix = "bert."

    @classmethod
    def read_config(cls, config: HFConfig) -> EncoderConfig:
        return EncoderConfig.read(config)


class BertEmbeddingModel(BertModel):
    """Embeddings of texts and of tokens."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        self.pooler = DispatchPooler.for_embedding(vllm_config)


class _Pooler(nn.Module):
    """The projection that BERT was trained with, under the checkpoint's name."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.dense = ReplicatedLinear(hidden_size, hidden_size, bias=True)


class BertForSequenceClassification(BertModel):
    """Scores of classes; a cross-encoder where texts come in pairs."""

    ignored = ("cls.", "lm_head.")
    # "pooler" is here what makes results of states.
    renamed = ("pooler.", "projection.")

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        hidden, labels = self.config.hidden_size, num_labels(vllm_config.model_config.hf_config)
        self.projection = _Pooler(hidden)
        self.classifier = ReplicatedLinear(hidden, labels, bias=True)
        # Not a method: it would lead back to the model, and such a circle would keep the weights after it is dropped.
        classify = partial(_classify, self.projection.dense, self.classifier)
        self.pooler = DispatchPooler.for_classification(vllm_config, classify)


def _classify(projection: ReplicatedLinear, classifier: ReplicatedLinear, pooled: torch.Tensor) -> torch.Tensor:
    return classifier(torch.tanh(projection(pooled)))
