"""RoBERTa and XLM-R: BERT with other positions and another head."""

from __future__ import annotations

import torch
from torch import nn

from vllm_ext.contracts.vllm_config import HFConfig, VllmConfig
from vllm_ext.dispatch.hf_config import position_offset
from vllm_ext.layers.linear import ReplicatedLinear
from vllm_ext.layers.pooler.heads import num_labels
from vllm_ext.layers.pooler.pooler import DispatchPooler
from vllm_ext.models.encoder import EncoderConfig, PoolingEncoder


class RobertaModel(PoolingEncoder):
    """The encoder, whatever its results become. Its positions begin after that of the padding token."""

    checkpoint_prefix = "roberta."

    @classmethod
    def read_config(cls, config: HFConfig) -> EncoderConfig:
        return EncoderConfig.read(config, position_offset=position_offset(config))


class RobertaEmbeddingModel(RobertaModel):
    """Embeddings of texts and of tokens."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        self.pooler = DispatchPooler.for_embedding(vllm_config)


class ClassificationHead(nn.Module):
    """Two projections, under the checkpoint's names."""

    def __init__(self, hidden_size: int, labels: int) -> None:
        super().__init__()
        self.dense = ReplicatedLinear(hidden_size, hidden_size, bias=True)
        self.out_proj = ReplicatedLinear(hidden_size, labels, bias=True)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.out_proj(torch.tanh(self.dense(pooled)))


class RobertaForSequenceClassification(RobertaModel):
    """Scores of classes; a cross-encoder where texts come in pairs."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix)
        self.classifier = ClassificationHead(self.config.hidden_size, num_labels(vllm_config.model_config.hf_config))
        self.pooler = DispatchPooler.for_classification(vllm_config, self.classifier)
