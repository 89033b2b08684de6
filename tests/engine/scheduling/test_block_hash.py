"""Names for what a block holds: a function of the tokens and of all that came before, and of nothing else."""

from __future__ import annotations

import subprocess
import sys
from hashlib import sha256

from hypothesis import given
from hypothesis import strategies as st

from vllm_ext.engine.scheduling.block_hash import extend_hashes, hash_block

TOKENS = st.lists(st.integers(0, 2**31 - 1), max_size=24)


def hashes_of(token_ids: list[int], block_size: int = 4) -> list[bytes]:
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, block_size, len(token_ids) // block_size)
    return hashes


def test_a_hash_is_sha_256_over_the_block_before_and_the_tokens_in_64_bits():
    first = sha256((1).to_bytes(8, sys.byteorder) + (2).to_bytes(8, sys.byteorder)).digest()
    second = sha256(first + (3).to_bytes(8, sys.byteorder) + (4).to_bytes(8, sys.byteorder)).digest()

    assert hashes_of([1, 2, 3, 4, 5], block_size=2) == [first, second]


@given(TOKENS, TOKENS)
def test_two_sequences_share_as_many_hashes_as_they_share_full_blocks_from_the_start(one, other):
    num_equal = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    shared = [a == b for a, b in zip(hashes_of(one), hashes_of(other), strict=False)]

    assert sum(shared) == num_equal // 4
    assert shared == sorted(shared, reverse=True)


@given(TOKENS, st.integers(0, 6))
def test_hashes_can_be_made_bit_by_bit(token_ids, num_first):
    hashes: list[bytes] = []
    extend_hashes(hashes, token_ids, 4, min(num_first, len(token_ids) // 4))
    extend_hashes(hashes, token_ids, 4, len(token_ids) // 4)

    assert hashes == hashes_of(token_ids)


def test_it_is_the_same_in_every_process():
    code = "from vllm_ext.engine.scheduling.block_hash import hash_block; print(hash_block(b'x', [7, 8]).hex())"

    texts = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for seed in ("1", "2")
    }

    assert texts == {hash_block(b"x", [7, 8]).hex()}
