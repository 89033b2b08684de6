"""Every part of a layer is on the ranks that need it, and what cannot be split is refused with what can."""

from __future__ import annotations

import itertools

import pytest
import torch
from support.split import LoneRank

from vllm_ext.distributed.parallel_state import use_tp_group
from vllm_ext.errors import CheckpointError, ConfigError
from vllm_ext.layers.linear import QKVParallelLinear, RowParallelLinear
from vllm_ext.layers.sharding import check_tensor_parallel_size, even_part, heads_of, padded_part
from vllm_ext.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

SHAPES = [(8, 8), (8, 2), (8, 1), (6, 2), (12, 4), (15, 3)]
SPLITS = [
    (heads, kv_heads, ranks)
    for heads, kv_heads in SHAPES
    for ranks in range(1, heads + 1)
    if ranks > kv_heads or kv_heads % ranks == 0
]


@pytest.mark.parametrize(("heads", "kv_heads", "ranks"), SPLITS)
def test_each_query_head_is_on_one_rank_beside_its_kv_head(heads, kv_heads, ranks):
    parts = [heads_of(heads, kv_heads, rank, ranks) for rank in range(ranks)]

    assert [head for part in parts for head in part.query] == list(range(heads))
    assert {len(part.kv) for part in parts} == {max(1, kv_heads // ranks)}
    for query, kv in parts:
        served = [head // (heads // kv_heads) for head in query]
        assert served == [head for head in kv for _ in range(len(query) // len(kv))]


@pytest.mark.parametrize(("kv_heads", "ranks"), [(1, 2), (1, 8), (2, 4), (2, 8), (4, 8)])
def test_kv_heads_are_repeated_as_vllm_repeats_them(kv_heads, ranks):
    assert [heads_of(8, kv_heads, rank, ranks).kv for rank in range(ranks)] == [
        range(rank // (ranks // kv_heads), rank // (ranks // kv_heads) + 1) for rank in range(ranks)
    ]


def test_query_heads_that_do_not_divide_are_shared_as_evenly_as_they_can_be():
    assert [len(heads_of(6, 2, rank, 4).query) for rank in range(4)] == [1, 2, 1, 2]


@pytest.mark.parametrize("ranks", range(1, 13))
def test_a_vocabulary_is_whole_over_any_number_of_ranks(ranks):
    parts, rooms = zip(*(padded_part(10, rank, ranks) for rank in range(ranks)), strict=True)

    assert [token for part in parts for token in part] == list(range(10))
    assert len(set(rooms)) == 1
    assert all(len(part) <= room for part, room in zip(parts, rooms, strict=True))


@pytest.mark.parametrize(
    ("ranks", "refusal"),
    [
        (16, "its 8 query heads (num_attention_heads) are fewer"),
        (5, "its intermediate_size 96 cannot be split evenly"),
        (3, "its 4 KV heads (num_key_value_heads) cannot be split evenly"),
    ],
)
def test_a_number_of_ranks_that_does_not_fit_is_refused_with_those_that_do(ranks, refusal):
    with pytest.raises(ConfigError) as caught:
        check_tensor_parallel_size("Model", ranks, num_heads=8, num_kv_heads=4, intermediate=96)

    assert str(caught.value) == (
        f"engine.tensor_parallel_size is {ranks}, and Model cannot be split over so many ranks: {refusal}. "
        "Possible for this model: 1, 2, 4, 6, 8"
    )


def test_the_numbers_that_are_possible_are_those_that_layers_can_be_built_for():
    for heads, kv_heads, intermediate in itertools.product((4, 6, 8), (1, 2), (96, 120)):
        for ranks in range(1, 10):
            check = (ranks, heads, kv_heads, intermediate)
            assert is_accepted(check_tensor_parallel_size, "", *check) == (
                is_accepted(even_part, intermediate, 0, ranks, "") and is_accepted(heads_of, heads, kv_heads, 0, ranks)
            )


def is_accepted(check, *arguments) -> bool:
    try:
        check(*arguments)
    except ConfigError:
        return False
    return True


@pytest.mark.parametrize("ranks", [2, 4])
def test_uneven_query_heads_and_repeated_kv_heads_compute_what_the_whole_layer_does(engine, ranks):
    """Query heads in one piece, then the projection that sums over the ranks."""
    torch.manual_seed(0)
    query, key, out = torch.randn(24, 12), torch.randn(8, 12), torch.randn(12, 24)
    x = torch.randn(3, 12)
    total = torch.zeros(3, 12)
    for rank in range(ranks):
        with use_tp_group(LoneRank(rank, ranks)):
            qkv = QKVParallelLinear(12, 4, 6, 2)
            o_proj = RowParallelLinear(24, 12, input_part=qkv.query_columns)
        for shard_id, weight in zip("qkv", (query, key, 2 * key), strict=True):
            qkv.weight.weight_loader(qkv.weight, weight, shard_id)
        o_proj.weight.weight_loader(o_proj.weight, out)
        for layer in (qkv, o_proj):
            layer.process_weights_after_loading(torch.float32)
        sizes = [4 * count for count in (qkv.num_heads, qkv.num_kv_heads, qkv.num_kv_heads)]
        q, k, v = qkv(x).split(sizes, dim=-1)
        assert torch.allclose(2 * k, v, atol=1e-5)
        assert torch.allclose(k, (x @ key.T).unflatten(1, (2, 4))[:, rank * 2 // ranks], atol=1e-5)
        total += o_proj(q)

    torch.testing.assert_close(total, x @ query.T @ out.T, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("ranks", [3, 4, 6])
@pytest.mark.parametrize("tie", [False, True])
def test_a_padded_vocabulary_gives_the_embeddings_and_logits_of_the_whole_one(engine, ranks, tie):
    torch.manual_seed(0)
    table, ids = torch.randn(10, 4), torch.arange(10)
    embedded, given = torch.zeros(10, 4), []
    for rank in range(ranks):
        with use_tp_group(LoneRank(rank, ranks, given)):
            embedding, head = VocabParallelEmbedding(10, 4), ParallelLMHead(10, 4)
        embedding.weight.weight_loader(embedding.weight, table)
        if tie:
            head.tie_weights(embedding)
        else:
            head.weight.weight_loader(head.weight, table)
        embedded += embedding(ids)
        head.process_weights_after_loading(torch.float32)
        logits = head(table)

    assert torch.equal(embedded, table)
    assert sum(part.shape[-1] for part in given) > 10, "the ranks have room for more than the vocabulary"
    assert logits.shape == (10, 10)
    torch.testing.assert_close(logits, table @ table.T)


def test_a_tensor_of_another_size_than_what_is_split_is_refused(engine):
    with use_tp_group(LoneRank(1, 2)):
        embedding = VocabParallelEmbedding(10, 4)

    with pytest.raises(CheckpointError, match=r"its shape is \[12, 4\]; the model has 10 in dimension 0"):
        embedding.weight.weight_loader(embedding.weight, torch.ones(12, 4))
