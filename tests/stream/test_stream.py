"""Seed, name and draw number -> key and stream."""

from __future__ import annotations

import hashlib
import threading

import pytest
import torch

from torch_fastinit import init, stream_id
from torch_fastinit.stream import canonical_name, draw_seed, draw_stream, to_signed


def digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("weight", "weight"),
        ("_orig_mod.weight", "weight"),
        ("layers.0._checkpoint_wrapped_module.mlp._fsdp_wrapped_module.up.weight", "layers.0.mlp.up.weight"),
        ("_fsdp_wrapped_module._orig_mod.a._orig_mod.b", "a.b"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),  # whole segments only
        ("_orig_module.weight", "_orig_module.weight"),
        ("", ""),
    ],
)
def test_canonical_name(name: str, bare: str) -> None:
    assert canonical_name(name) == bare


def test_compiled_module_has_the_bare_names() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    wrapped = torch.compile(module, backend="eager")
    assert [canonical_name(name) for name in wrapped.state_dict()] == list(module.state_dict())


@pytest.mark.parametrize("name", ["lm_head.weight", "", "schicht.größe"])
def test_stream_id(name: str) -> None:
    assert stream_id(name) == digest(name.encode())


def test_stream_id_is_frozen() -> None:
    assert stream_id("lm_head.weight") == 0x7192019439B6CB46


def test_draw_stream() -> None:
    first = stream_id("a")
    assert draw_stream(first, 0) == first
    for draw in (1, 2, 255, 256, 2**40):
        assert draw_stream(first, draw) == digest(first.to_bytes(8, "little") + draw.to_bytes(8, "little"))
    assert len({draw_stream(s, k) for s in (0, 1, first) for k in range(100)}) == 300
    assert draw_stream(to_signed(2**64 - 5), 1) == draw_stream(2**64 - 5, 1)


@pytest.mark.parametrize("word", [0, 1, 2**63 - 1, 2**63, 2**64 - 1, 2**64 + 3, -1, -(2**63)])
def test_to_signed(word: int) -> None:
    signed = to_signed(word)
    assert -(2**63) <= signed < 2**63
    assert (signed - word) % 2**64 == 0


def test_draw_seed_is_one_64_bit_draw_of_torch() -> None:
    for generator in (None, torch.Generator().manual_seed(11)):
        source = torch.manual_seed(11) if generator is None else generator
        state = source.get_state()
        seeds = [draw_seed(generator) for _ in range(3)]
        source.set_state(state)
        words = torch.empty(3, dtype=torch.int64)
        assert seeds == [int(word.random_(-(2**63), None, generator=generator)) for word in words]


def test_draw_seed_uses_every_bit() -> None:
    torch.manual_seed(0)
    seeds = [draw_seed() for _ in range(200)]
    for bit in range(64):  # a bit that is constant in 200 draws: 64 * 2**-199
        assert len({seed >> bit & 1 for seed in seeds}) == 2
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_manual_seed_governs() -> None:
    torch.manual_seed(0)
    a, b = init.normal_(torch.empty(100)), init.normal_(torch.empty(100))
    torch.manual_seed(0)
    c, d = init.normal_(torch.empty(100)), init.normal_(torch.empty(100))
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert not torch.equal(a, b)
    torch.manual_seed(1)
    assert not torch.equal(a, init.normal_(torch.empty(100)))


def test_seed_drawn_in_inference_mode_and_in_another_thread() -> None:
    seeds: list[int] = []

    def draw() -> None:
        with torch.inference_mode():
            seeds.append(draw_seed(torch.Generator().manual_seed(5)))
        seeds.append(draw_seed(torch.Generator().manual_seed(5)))

    thread = threading.Thread(target=draw)
    thread.start()
    thread.join()
    assert seeds == [draw_seed(torch.Generator().manual_seed(5))] * 2


class Elsewhere:
    """Stands for a generator of another device, which this machine may lack."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)
        self.offset = 8

    def initial_seed(self) -> int:
        return 2**64 - 3

    def get_offset(self) -> int:
        return self.offset

    def set_offset(self, offset: int) -> None:
        self.offset = offset


def test_cuda_generator_is_read_on_the_host() -> None:
    generator = Elsewhere("cuda")
    first = draw_seed(generator)  # type: ignore[arg-type]
    assert first == to_signed(digest((2**64 - 3).to_bytes(8, "little") + (8).to_bytes(8, "little")))
    assert generator.offset == 12
    assert draw_seed(generator) != first  # type: ignore[arg-type]


def test_generator_of_another_device() -> None:
    with pytest.raises(RuntimeError, match="'mps'"):
        draw_seed(Elsewhere("mps"))  # type: ignore[arg-type]
