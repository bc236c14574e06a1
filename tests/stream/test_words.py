"""Raw words: Random123's known answers, and the reference's words wherever a counter carries or wraps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import reference
from support.bits import bits_of, dirty

import torch_fastinit as fastinit
from torch_fastinit.stream import draw_stream

VECTORS = [
    [int(word, 16) for word in line.split()]
    for line in (Path(reference.__file__).parent / "philox4x32_10.txt").read_text().splitlines()
    if not line.startswith("#")
]


def random_bits(count: int, seed: int, stream: int, offset: int) -> np.ndarray:
    return bits_of(fastinit.random_bits_(dirty((count,), torch.int32), seed=seed, stream=stream, offset=offset))


def test_the_vectors_are_all_there() -> None:
    assert len(VECTORS) == 3
    assert {len(v) for v in VECTORS} == {10}


@pytest.mark.parametrize("vector", VECTORS, ids=["zeros", "ones", "pi"])
def test_known_answers(vector: list[int], isa: str) -> None:
    c0, c1, c2, c3, k0, k1, *answer = vector
    seed, stream, block = k0 | k1 << 32, c2 | c3 << 32, c0 | c1 << 32
    assert [int(w) for w in reference.philox4x32_10((c0, c1, c2, c3), (k0, k1))] == answer
    assert reference.words(seed, stream, 4 * block, 4).tolist() == answer
    assert random_bits(4, seed, stream, 4 * block).tolist() == answer


CARRIES = [
    0,
    4 * 2**32 - 100,  # the low word of the block number carries into the high one
    7 * 4 * 2**32 - 333,
    2**63 - 500,  # of a signed 64-bit word number
    2**64 - 500,  # of an unsigned one
    2**66 - 1000,  # block numbers wrap: word 2^66 is word 0
    2**66 - 1,
    5 * 2**50 + 77,
]


@pytest.mark.parametrize("offset", CARRIES)
def test_words_where_counters_carry(offset: int, isa: str) -> None:
    # 1500 words: whole tiles of every lane width before the carry and after it
    np.testing.assert_array_equal(random_bits(1500, 2**64 - 3, 5, offset), reference.words(2**64 - 3, 5, offset, 1500))


def test_wrapping_reaches_word_0() -> None:
    assert random_bits(9, 1, 2, 2**66 - 4).tolist()[4:] == random_bits(5, 1, 2, 0).tolist()


@settings(deadline=None, max_examples=100, derandomize=True)
@given(
    seed=st.integers(0, 2**64 - 1),
    stream=st.integers(0, 2**64 - 1),
    offset=st.integers(0, 2**66 - 1),
    count=st.integers(1, 300),
)
def test_words_anywhere(seed: int, stream: int, offset: int, count: int) -> None:
    np.testing.assert_array_equal(
        random_bits(count, seed, stream, offset), reference.words(seed, stream, offset, count)
    )


@pytest.mark.parametrize("name", ["", "weight", "layers.0.weight", "größe"])
def test_stream_of_a_name_and_of_its_draws(name: str) -> None:
    first = reference.blake2b_64(name.encode())
    assert fastinit.stream_id(name) == first
    assert [draw_stream(first, k) for k in range(4)] == [reference.draw_stream(first, k) for k in range(4)]
