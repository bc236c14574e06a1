"""The part of the zoo that runs with the test suite; `make zoo` runs all of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from models.zoo import shrink, zoo

#: One of each kind: losses of symmetry, convolutions, state spaces, experts, speech, several modalities; one whose
#: default configuration has to be completed, and one that needs the search.
NAMES = ["albert", "deberta-v2", "esm", "falcon_mamba", "florence2", "granitemoe", "hubert", "oneformer", "swinv2"]


@pytest.fixture(scope="module")
def architectures():
    with zoo.quiet():
        return {name: (model, config) for name, model, config in zoo.configs(NAMES)}


@pytest.mark.parametrize("name", NAMES)
def test_architecture(name, architectures, poison):
    model_class, config_class = architectures[name]
    with zoo.quiet():
        found = shrink.find(name, model_class, config_class)
    assert found.config is not None and 0 < found.parameters <= shrink.LIMIT
    result = zoo.run(name, found, model_class)
    assert not result.error, result.error
    assert result.tensors > 10
    assert result.one_pass + sum(result.replayed.values()) == result.random_bytes > 0


def test_what_is_not_equal_is_found(architectures):
    """A model that is not a function of torch's generator cannot be equal."""
    model_class, config_class = architectures["albert"]
    found = shrink.find("albert", model_class, config_class)
    drifting = iter(range(1, 100))

    def build(config):
        model = model_class(config)
        model.pooler.bias.data.fill_(next(drifting))
        return model

    assert "pooler.bias" in zoo.run("albert", found, build).error


def test_table_and_resumption(tmp_path):
    results, page = tmp_path / "zoo.jsonl", tmp_path / "zoo.md"
    command = [
        sys.executable,
        "-m",
        "models.zoo.zoo",
        "esm",
        "dinat",
        "--results",
        str(results),
        "--markdown",
        str(page),
    ]
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    done = subprocess.run([*command, "--jobs", "2"], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["name"]: bool(line["skipped"]) for line in lines} == {"dinat": True, "esm": False}
    assert "| architectures compared | 1 |" in page.read_text()
    assert "- dinat: does not build: ImportError" in page.read_text()
    assert "equal to eager            1" in done.stdout
    before = results.read_text(), page.read_text()
    with results.open("a") as file:
        print('{"name": "esm", "par', end="", file=file)  # it was interrupted here
    assert zoo.main([*command[3:], "--resume"]) == 0
    assert (results.read_text(), page.read_text()) == before
