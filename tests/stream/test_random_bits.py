"""The public face of the raw stream; tests of the kernels hold the bits to Random123's vectors and the reference."""

from __future__ import annotations

import pytest
import torch

import torch_fastinit as fastinit


def words(n: int, *, seed: int = 1, stream: int = 2, offset: int = 0) -> list[int]:
    return fastinit.random_bits_(torch.empty(n, dtype=torch.int32), seed=seed, stream=stream, offset=offset).tolist()


def test_zero_key_and_counter() -> None:
    # The first of Random123's vectors for philox4x32-10: key and counter 0.
    expected = [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    assert [word % 2**32 for word in words(4, seed=0, stream=0)] == expected


@pytest.mark.parametrize("offset", [1, 2, 3, 4, 63, 64, 1001])
def test_offset_counts_words(offset: int) -> None:
    assert words(200, offset=offset) == words(200 + offset)[offset:]


def test_offsets_wrap() -> None:
    assert words(7, offset=2**66 - 3)[3:] == words(4)
    assert words(5, offset=2**34 + 1) == words(6, offset=2**34)[1:]
    assert words(5, offset=2**64) != words(5)


def test_seed_and_stream_are_modulo_2_64() -> None:
    assert words(9, seed=-1, stream=-2) == words(9, seed=2**64 - 1, stream=2**64 - 2)
    assert words(9, seed=2**64 + 1, stream=2**65 + 2) == words(9)
    distinct = [words(9), words(9, seed=2), words(9, stream=1), words(9, seed=1 + 2**63), words(9, stream=2 + 2**32)]
    assert len({tuple(w) for w in distinct}) == 5


def test_index_is_row_major_in_any_layout() -> None:
    expected = torch.tensor(words(24)).reshape(6, 4)
    for t in (torch.empty(6, 4, dtype=torch.int32), torch.empty(4, 6, dtype=torch.int32).T):
        version = t._version
        assert fastinit.random_bits_(t, seed=1, stream=2) is t
        assert t._version > version
        assert torch.equal(t.long(), expected)
    every_second = torch.zeros(6, 8, dtype=torch.int32)[:, ::2]
    assert torch.equal(fastinit.random_bits_(every_second, seed=1, stream=2).long(), expected)


def test_default_generator_is_left_alone() -> None:
    state = torch.get_rng_state()
    words(5)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("offset", [-1, 2**66, 2**70])
def test_offset_error(offset: int) -> None:
    t = torch.full((4,), 7, dtype=torch.int32)
    with pytest.raises(ValueError, match=f"offset is {offset}"):
        fastinit.random_bits_(t, seed=0, stream=0, offset=offset)
    assert t.tolist() == [7] * 4


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32, torch.uint8])
def test_dtype_error(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match=str(dtype)):
        fastinit.random_bits_(torch.empty(4, dtype=dtype), seed=0, stream=0)


def test_overlap_error() -> None:
    with pytest.raises(RuntimeError, match="more than one element"):
        fastinit.random_bits_(torch.zeros(1, dtype=torch.int32).expand(3), seed=0, stream=0)


def test_no_elements() -> None:
    assert words(0) == []
    assert fastinit.random_bits_(torch.empty((), dtype=torch.int32), seed=1, stream=2).item() == words(1)[0]
