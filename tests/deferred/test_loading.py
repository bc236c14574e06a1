"""Constructors that load files, and state dicts that are loaded into deferred modules."""

from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import torch_fastinit as fastinit

safetensors = pytest.importorskip("safetensors")
from safetensors.torch import load_file, load_model, save_file, save_model  # noqa: E402


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.head = nn.Linear(3, 4, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(5)
    donor = nn.Linear(3, 3)
    torch.save(donor.state_dict(), folder / "w.pt")
    torch.save(donor, folder / "whole.pt")
    save_file(donor.state_dict(), folder / "w.safetensors")
    save_model(Tied(), str(folder / "tied.safetensors"))
    np.save(folder / "w.npy", donor.weight.detach().numpy())
    return folder


def slices(path: Path) -> dict[str, torch.Tensor]:
    with safetensors.safe_open(path, "pt") as f:
        return {k: f.get_slice(k)[:] for k in f.keys()}  # noqa: SIM118


LOADERS = {
    "torch.load": lambda f: torch.load(f / "w.pt"),
    "map_location": lambda f: torch.load(f / "w.pt", map_location="cpu"),
    "mmap": lambda f: torch.load(f / "w.pt", mmap=True),
    "not weights_only": lambda f: torch.load(f / "w.pt", weights_only=False),
    "whole module": lambda f: torch.load(f / "whole.pt", weights_only=False).state_dict(),
    "BytesIO": lambda f: torch.load(io.BytesIO((f / "w.pt").read_bytes())),
    "load_file": lambda f: load_file(f / "w.safetensors"),
    "get_slice": lambda f: slices(f / "w.safetensors"),
    "frombuffer": lambda f: {
        "weight": torch.frombuffer(bytearray(np.load(f / "w.npy").tobytes()), dtype=torch.float32).view(3, 3),
        "bias": torch.load(f / "w.pt")["bias"],
    },
}


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_constructor_loads(name, assign, folder, same_as_eager) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = nn.Linear(3, 3)
            loaded = LOADERS[name](folder)
            self.backbone.load_state_dict(loaded, assign=assign)
            self.scaled = nn.Parameter(loaded["weight"].detach() * 2)
            self.norm = float(loaded["weight"].norm())
            self.head = nn.Linear(3, 2)

    assert torch.equal(same_as_eager(Net).backbone.weight, torch.load(folder / "w.pt")["weight"])


def test_a_constructor_loads_a_tied_model(folder, same_as_eager) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tied()
            load_model(self.model, str(folder / "tied.safetensors"))

    same_as_eager(Net)


def test_a_module_that_was_loaded_inside(folder, same_as_eager) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.whole = torch.load(folder / "whole.pt", weights_only=False)
            self.head = nn.Linear(3, 2)

    same_as_eager(Net)


def test_meta_map_location(folder) -> None:
    with fastinit.deferred():
        loaded = torch.load(folder / "w.pt", map_location="meta")
    assert type(loaded["weight"]) is torch.Tensor and loaded["weight"].is_meta


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_from_pretrained(where, tmp_path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    source = transformers.LlamaForCausalLM(config)
    source.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with fastinit.deferred():
        if where == "inside":
            model = transformers.LlamaForCausalLM.from_pretrained(tmp_path)
        else:
            model = transformers.LlamaForCausalLM(config)
    if where == "outside":
        model.load_state_dict(source.state_dict())
    fastinit.materialize(model, seed=0)
    for (name, a), b in zip(source.state_dict().items(), model.state_dict().values(), strict=True):
        assert type(b) is torch.Tensor and torch.equal(a, b), name
    assert model.lm_head.weight is model.model.embed_tokens.weight
    tokens = torch.arange(6).view(1, 6)
    assert torch.equal(source.eval()(tokens).logits, model.eval()(tokens).logits)


def test_accelerate(tmp_path) -> None:
    accelerate = pytest.importorskip("accelerate")
    path = tmp_path / "model.safetensors"
    save_file({"0.weight": torch.ones(4, 4), "0.bias": torch.ones(4)}, path, metadata={"format": "pt"})
    with fastinit.deferred():
        model = nn.Sequential(nn.Linear(4, 4))
        with accelerate.init_empty_weights():
            empty = nn.Linear(4, 4)
    assert type(empty.weight) is nn.Parameter and empty.weight.is_meta
    model = accelerate.load_checkpoint_and_dispatch(model, str(path), device_map={"": "cpu"})
    assert type(model[0].weight) is nn.Parameter and not model[0].weight.is_meta
    assert model(torch.ones(1, 4)).tolist() == [[5.0] * 4]


# --- state dicts of real tensors into deferred modules ---------------------------------------------------------------


def test_a_state_dict_is_copied_once() -> None:
    source = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    with fastinit.deferred():
        model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # none of a copy to meta
        model.load_state_dict(source.state_dict())
    assert {row.how for row in fastinit.plan(model).rows} == {"copied", "shared"}
    assert fastinit.plan(model).rows[-1].name == "1.num_batches_tracked"  # `torch.tensor` shares Python's memory
    state = {name: t.clone() for name, t in source.state_dict().items()}
    with torch.no_grad():
        source[0].weight.zero_()  # later changes do not matter
    fastinit.materialize(model, seed=0)
    for name, t in model.state_dict().items():
        assert torch.equal(t, state[name]) and t.data_ptr() != source.state_dict()[name].data_ptr(), name


def test_a_state_dict_of_another_dtype_and_layout() -> None:
    weight = torch.randn(4, 3).t()
    with fastinit.deferred():
        model = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16)
    model.load_state_dict({"weight": weight})
    assert fastinit.plan(model).rows[0].how == "copied"
    fastinit.materialize(model, seed=0)
    assert torch.equal(model.weight, weight.to(torch.bfloat16)) and model.weight.is_contiguous()


def test_a_loaded_tensor_that_others_read_is_copied_again() -> None:
    weight = torch.arange(9.0).view(3, 3)
    with fastinit.deferred():
        model = nn.Linear(3, 3, bias=False)
        model.load_state_dict({"weight": weight})
        later = copy.deepcopy(model)
        half = nn.Parameter(model.weight.detach() * 0.5)
    fastinit.materialize(model, seed=0)
    with torch.no_grad():
        model.weight.fill_(7)
    later.scaled = half
    fastinit.materialize(later, seed=0)
    assert torch.equal(later.weight, weight) and torch.equal(later.scaled, weight / 2)


def test_a_failed_materialize_leaves_a_loaded_module_as_it_was() -> None:
    with fastinit.deferred():
        model = nn.Linear(3, 3)
        model.empty = nn.Parameter(torch.empty(2))
    model.load_state_dict({"weight": torch.ones(3, 3), "bias": torch.ones(3)}, strict=False)
    with pytest.raises(RuntimeError, match="'empty': nothing ever writes"):
        fastinit.materialize(model, seed=0)
    assert fastinit.is_deferred(model.weight)
    fastinit.materialize(model, seed=0, dtype=torch.float64, verify=True, unwritten="zeros")
    assert torch.equal(model.weight, torch.ones(3, 3, dtype=torch.float64)) and model.empty.tolist() == [0, 0]


PEAK = """
import torch, torch_fastinit as fastinit
def build():
    return torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(16)))
state = {name: torch.ones(t.shape) for name, t in build().state_dict().items()}
small = fastinit.skip_init(torch.nn.Linear, 2, 2)
small.load_state_dict(torch.nn.Linear(2, 2).state_dict())  # the first operation imports 40 MB of torch
fastinit.materialize(small, seed=0)
def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
open("/proc/self/clear_refs", "w").write("5")  # the peak is what it is now
before = status("VmRSS")
with fastinit.deferred():
    model = build()
model.load_state_dict(state)
fastinit.materialize(model, seed=0)
print((status("VmHWM") - before) / sum(t.nbytes for t in state.values()))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of resident memory is Linux's")
def test_peak_memory_of_loading_a_state_dict() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", PEAK], capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) < 1.15
