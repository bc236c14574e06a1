"""The command line: in this process, but for how a process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import torch_fastinit as fastinit
from torch_fastinit import backend
from torch_fastinit.commands import about, bench, words
from torch_fastinit.commands.line import main
from torch_fastinit.stream import stream_id

COMMAND = [sys.executable, "-m", "torch_fastinit"]


# --- without a command ------------------------------------------------------------------------------------------------


def test_it_says_what_a_bug_report_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    text = capsys.readouterr().out
    for part in (fastinit.__version__, torch.__version__, fastinit.backends()["cpu"], "huge pages", "threads"):
        assert part in text
    assert main(["--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["torch_fastinit"] == fastinit.__version__ and found["devices"]["cpu"]["backend"].startswith("C++")


def test_it_says_why_a_backend_was_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "interpreter" in backend.reasons()["cpu"]["triton"] and backend.reasons()["cpu"]["cpu"] == ""
    assert "not triton: runs on the CPU only in its interpreter" in about.as_text(about.about())


def test_settings_that_are_wrong_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FASTINIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FASTINIT_BACKEND", "none such")
    monkeypatch.setenv("FASTINIT_HUGE_PAGES", "2")
    monkeypatch.setattr(backend, "serving", {})
    backend.huge_pages.cache_clear()
    text = about.as_text(about.about())
    assert "FASTINIT_BACKEND=none such, FASTINIT_HUGE_PAGES=2" in text
    assert "FASTINIT_BACKEND is 'none such'" in text and "FASTINIT_HUGE_PAGES is '2'" in text


# --- plan -------------------------------------------------------------------------------------------------------------

MODULE = """
import torch
def build():
    return torch.nn.Linear(3, 2)
class Models:
    tiny = staticmethod(build)
def number():
    return 3
def broken():
    raise ValueError("no such size")
answer = 42
model = build()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the working directory."""
    (tmp_path / "models_of_a_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.delitem(sys.modules, "models_of_a_test", raising=False)
    return "models_of_a_test"


@pytest.mark.parametrize("path", ["build", "Models.tiny"])
def test_the_plan_of_a_callable(path: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{module}:{path}"]) == 0
    text = capsys.readouterr().out
    assert text == f"{fastinit.plan(fastinit.skip_init(torch.nn.Linear, 3, 2))}\n"


def test_the_plan_of_a_callable_in_a_file(module: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "neighbour.py").write_text(MODULE)
    (tmp_path / "folder" / "a_file.py").write_text("from neighbour import build")
    for path in (f"{module}.py", f"./{module}.py", str(tmp_path / f"{module}.py"), "folder/a_file.py"):
        assert main(["plan", f"{path}:build"]) == 0
        assert capsys.readouterr().out.startswith("name ")
    for path, message in (
        (f"{module}.py", f"is Python: name what builds the model, as in {module}.py:build"),
        ("folder", "the folder folder has no config.json"),
    ):
        assert main(["plan", path]) == 1
        assert message in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"torch_fastinit {fastinit.__version__}\n"


@pytest.mark.parametrize(
    "path, message",
    [
        ("none", "has no 'none'"),
        ("model", "is a module already: name the function or the class that builds it"),
        ("answer", "is of type int, which cannot be called"),
        ("number", "returned int, and not a torch.nn.Module"),
        ("broken", "could not be built: ValueError: no such size"),
    ],
)
def test_a_callable_that_will_not_do(path: str, message: str, module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", f"{module}:{path}"]) == 1
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


def test_a_module_that_cannot_be_imported(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "no_such_module_of_a_test:build"]) == 1
    assert "could not be imported: ModuleNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize("architectures, first", [(["GPT2LMHeadModel"], "transformer.wte.weight"), ([], "wte.weight")])
def test_the_plan_of_a_configuration(
    architectures: list[str], first: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"model_type": "gpt2", "n_layer": 1, "n_embd": 16, "n_head": 2, "architectures": architectures}
    (tmp_path / "config.json").write_text(json.dumps(small))
    for path in (tmp_path / "config.json", tmp_path):
        assert main(["plan", str(path)]) == 0
        assert capsys.readouterr().out.splitlines()[2].startswith(f"{first} ")


def test_a_file_that_is_no_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert main(["plan", str(tmp_path / "config.json")]) == 1
    assert "is no configuration that transformers reads" in capsys.readouterr().err


# --- bench ------------------------------------------------------------------------------------------------------------


def test_bench_compares_with_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in {"_SIZE": 64, "_LAYERS": 1, "_WIDTH": 16, "_VOCABULARY": 8}.items():
        monkeypatch.setattr(bench, name, value)
    assert main(["bench", "--seconds", "1", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    for row in results["rows"]:
        assert row["torch_ms"] > 0 and row["torch_fastinit_ms"] > 0 and 3 <= row["rounds"] <= 50
    assert {row["what"].split()[0] for row in results["rows"]} == {
        "uniform_",
        "normal_",
        "trunc_normal_",
        "zeros_",
        "a",
    }
    text = bench.as_text(results)
    assert "speed-up" in text and f"torch: {torch.__version__}" in text


# --- words ------------------------------------------------------------------------------------------------------------


def written(which: list[words.Stream], count: int) -> torch.Tensor:
    """What comes out of a pipe, a row for each word of all streams."""
    read, write = os.pipe()
    parts: list[bytes] = []

    def collect() -> None:
        with os.fdopen(read, "rb") as pipe:
            parts.append(pipe.read())

    reader = threading.Thread(target=collect)
    reader.start()
    try:
        words.write(write, which, count)
    finally:
        os.close(write)
        reader.join()
    assert len(parts[0]) == 4 * count
    numbers = [int.from_bytes(parts[0][i : i + 4], "little") for i in range(0, 4 * count, 4)]
    return torch.tensor(numbers).reshape(-1, len(which))


def expected(seed: int, stream: int, count: int) -> torch.Tensor:
    found = fastinit.random_bits_(torch.empty(count, dtype=torch.int32), seed=seed, stream=stream)
    return found.long() % 2**32


def test_words_of_one_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_BUFFER", 1 << 10)  # so that there are many
    found = written(words.streams(7, "lm_head.weight"), 5000)[:, 0]
    assert torch.equal(found, expected(7, stream_id("lm_head.weight"), 5000))


@pytest.mark.parametrize(
    "options, seed_of, name_of",
    [
        ({"names": 3}, lambda i: 5, lambda i: f"weight.{i}"),
        ({"names": 70}, lambda i: 5, lambda i: f"weight.{i}"),  # too many to be written side by side
        ({"seeds": 3}, lambda i: 5 + i, lambda i: "weight"),
        ({"seeds": 1}, lambda i: 5, lambda i: "weight"),
    ],
    ids=["names", "many names", "seeds", "one seed"],
)
def test_words_of_several_streams_in_turns(
    options: dict[str, int],
    seed_of: Callable[[int], int],
    name_of: Callable[[int], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(words, "_BUFFER", 1 << 9)
    monkeypatch.setattr(words, "_LEAST", 1 << 8)  # so that there are many, here too
    which = words.streams(5, "weight", **options)
    found = written(which, 1200 * len(which))
    for i in range(len(which)):
        assert torch.equal(found[:, i], expected(seed_of(i), stream_id(name_of(i)), 1200))


def test_words_to_a_file(tmp_path: Path) -> None:
    with open(tmp_path / "words", "wb") as file:
        words.write(file.fileno(), words.streams(0, "weight"), 10)
    data = (tmp_path / "words").read_bytes()
    assert data[:4] == int(expected(0, stream_id("weight"), 1)).to_bytes(4, "little") and len(data) == 40


def test_an_error_of_writing_is_raised() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        words.write(full.fileno(), words.streams(0, "weight"))


# --- how a process ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["none"], "invalid choice"),
        (["plan", "none"], "there is no file 'none', and a callable is named as in"),
        (["words", "--names", "0"], "'0' is not a whole number, 1 or more"),
        (["words", "--names", "2", "--seeds", "2"], "not allowed with"),
        (["bench", "--seconds", "soon"], "'soon' is not a whole number"),
        (["--json", "plan", "none:none"], "plan has no JSON"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    assert ended.value.code == 2 and out == "" and message in err


def test_a_closed_pipe_ends_words_quietly() -> None:
    with subprocess.Popen([*COMMAND, "words"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        first = process.stdout.read(8)
        process.stdout.close()
        assert process.wait(60) == 0 and process.stderr.read() == b""
    assert first == b"".join(int(word).to_bytes(4, "little") for word in expected(0, stream_id("weight"), 2))


def test_a_failure_ends_with_1_and_without_a_traceback() -> None:
    done = subprocess.run([*COMMAND, "plan", "torch.nn:Linear"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("python -m torch_fastinit: error: torch.nn:Linear could not be built: TypeError: ")
    assert done.stderr.count("\n") == 1


def test_words_are_not_for_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    with pytest.raises(SystemExit) as ended:
        main(["words"])
    assert ended.value.code == 2 and "words are binary" in capsys.readouterr().err
