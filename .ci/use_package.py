"""One fill and one materialisation with the installed package, as .ci/run finds it in an empty environment."""

import sys
from importlib.metadata import version
from pathlib import Path

import torch

import torch_fastinit as fastinit

location = Path(fastinit.__file__)
assert Path(sys.prefix) in location.parents, f"imported from {location}, not from the installed package"
assert (location.parent / "py.typed").exists()
assert version("torch_fastinit") == fastinit.__version__

torch.manual_seed(0)
t = fastinit.init.normal_(torch.empty(1 << 20), std=2.0)
assert abs(t.std().item() - 2.0) < 0.02, t.std()

with fastinit.deferred():
    model = torch.nn.Sequential(torch.nn.Linear(256, 512), torch.nn.LayerNorm(512), torch.nn.Linear(512, 256))
assert fastinit.is_deferred(model)
fastinit.materialize(model, seed=0)
assert not fastinit.is_deferred(model)
assert abs(model[0].weight.std().item() - 1 / (256 * 3) ** 0.5) < 1e-3
assert torch.equal(model[1].weight, torch.ones(512))
assert model(torch.ones(2, 256)).isfinite().all()

print(f"torch_fastinit {fastinit.__version__} in {location.parent}, torch {torch.__version__}: {fastinit.backends()}")
