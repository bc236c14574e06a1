"""The part of the zoo that runs with the test suite; ``python tests/zoo/zoo.py`` runs all of it."""

from __future__ import annotations

import pytest
from zoo import zoo

#: One of each kind: losses of symmetry, convolutions, state spaces, experts, speech, several modalities.
NAMES = ["albert", "deberta-v2", "falcon_mamba", "granitemoe", "hubert", "oneformer", "swinv2"]


@pytest.fixture(scope="module")
def architectures():
    with zoo.quiet():
        return {name: (model, config) for name, model, config in zoo.configs(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name, architectures, poison):
    with zoo.quiet():
        build = zoo.builder(*architectures[name])
    assert build is not None
    result = zoo.run(name, build)
    assert not result.error, result.error
    assert result.tensors > 10
