"""The benchmarks run, measure what they say, and their checks find what they are for."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    """As many threads as before, whatever a benchmark sets."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def run(*command: str | Path, cwd: Path) -> str:
    """Run Python in ``cwd``, with the repository's folders to import from."""
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, *command], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# bench.py -------------------------------------------------------------------------------------------------------------


def test_bench_writes_a_row_for_every_case(tmp_path: Path) -> None:
    arguments = ("--elements", "4096", "--rounds", "3", "--only", "normal_ float32", "--json", "bench.json")
    out = run("-m", "benchmarks.bench", *arguments, "--markdown", "bench.md", cwd=tmp_path)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert (tmp_path / "bench.md").read_text() == out
    labels = [result["case"] for result in report["results"]]
    assert labels[:2] == ["normal_ float32", "trunc_normal_ float32"]
    for label, result in zip(labels, report["results"], strict=True):
        assert f"| {label} " in out
        assert [len(seconds) for seconds in result["seconds"].values()] == [3, 3, 3]
        assert {"torch", "ours", "zero_"} == result["seconds"].keys() == result["peak"].keys()
        assert result["speedup"] == pytest.approx(result["GB/s"]["ours"] / result["GB/s"]["torch"])
    assert {"torch", "cpu", "threads", "instruction set", "load average"} <= report["environment"].keys()
    assert "sizes" not in report


def test_an_unknown_case_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="no case contains 'cauchy_'; there are: uniform_ float32"):
        run("-m", "benchmarks.bench", "--only", "cauchy_", cwd=tmp_path)


def test_sweeps_are_in_the_tables_the_json_and_the_pictures(tmp_path: Path) -> None:
    sizes = ("--elements", "20000", "--largest", "1000", "--tensors", "100", "--rounds", "2", "--patience", "0.2")
    parts = ("--parts", "fills", "sizes", "tensors", "threads", "--quick")
    out = run("-m", "benchmarks.bench", *parts, *sizes, "--json", "bench.json", "--plots", "plots", cwd=tmp_path)
    report = json.loads((tmp_path / "bench.json").read_text())
    assert [row["case"] for row in report["sizes"]] == [
        "uniform_ float32",
        "normal_ float32",
        "normal_ bfloat16",
        "trunc_normal_ float32",
    ]
    for row in report["sizes"]:
        assert [p["elements"] for p in row["points"]] == [1, 10, 100, 1000]
        assert f"### {row['case']}" in out
    assert [row["tensors"] for row in report["tensors"]] == [10, 100]
    assert all(len(row["seconds"]) == 5 and min(row["seconds"].values()) > 0 for row in report["tensors"])
    for row in report["threads"]:
        assert row["gain"]["1"] == 1
        assert row["bytes"] == 20_000 * (2 if "bfloat16" in row["what"] else 4)
        assert f"| {row['what']} " in out
    drawn = {path.stem.removeprefix("bench-") for path in (tmp_path / "plots").glob("*.svg")}
    assert drawn == {"sizes", "dtypes", "distributions", "instructions", "threads", "tensors"}
    for path in (tmp_path / "plots").glob("*.svg"):
        assert ">GB/s</text>" in path.read_text() or ">seconds</text>" in path.read_text()
        assert path.stat().st_size < 30_000


def test_models_with_warm_memory_and_with_new(tmp_path: Path) -> None:
    out = run("-m", "benchmarks.bench", "--parts", "models", "pages", "--quick", "--json", "bench.json", cwd=tmp_path)
    report = json.loads((tmp_path / "bench.json").read_text())
    (row,) = report["models"]
    assert (row["model"], row["dtype"], row["parameters"]) == ("GPT-2 124M", "float32", 198_400)
    assert [len(rounds) for rounds in row["rounds"].values()] == [3, 3]
    assert 0 < row["parts"]["construct"] < row["seconds"]["fastinit"]
    assert row["beyond"].keys() == {"from_config", "fastinit"}
    assert "| GPT-2 124M, float32 " in out
    # What is freed is found again: a build touches few pages for the first time.
    assert max(row["faults"].values()) < row["bytes"] / 4096 / 4, row["faults"]
    (row,) = report["pages"]
    assert (row["model"], row["dtype"]) == ("GPT-2 124M", "float32")
    assert {wish: len(seconds) for wish, seconds in row["huge pages"].items()} == {"0": 3, "1": 3}
    assert all(0 < s < 10 for seconds in row["huge pages"].values() for s in seconds)
    assert "## Huge pages" in out


def test_a_smaller_picture_draws_the_same() -> None:
    """Shapes, their places to a tenth, their styles and their texts; names and groups are for no one."""
    from benchmarks.svg import smaller

    head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"><defs><style>*{}</style>'
    text = f"""{head}</defs>
      <g id="figure_1"><g id="patch_1">
       <path d="M 0 20.06 \nL 7.123 20.06 \nL 7.123 -0.01 \nL 3 4 \nz\n" clip-path="url(#p01)" style="fill: #ffffff"/>
      </g>
      <defs><path id="m5" d="M 0 0 \nL 0 3.5 \n" style="stroke: #000000"/></defs>
      <g><use xlink:href="#m5" x="63.16" y="264.5" style="stroke: #000000"/></g>
      <g transform="translate(17.04 3.0)"><text style="font-size: 8px; font-family: 'DejaVu Sans', 'Arial', sans-serif"
        x="1.26" y="2" transform="rotate(-0 1.26 2)">4 &lt; 5</text></g></g>
      <defs><clipPath id="p01"><rect x="1.04" y="0" width="9.5" height="8"/></clipPath></defs></svg>"""
    new = smaller(text)
    rules = "*{}.a{fill:#ffffff}.b{stroke:#000000}.c{font-size:8px;font-family:sans-serif}"
    assert new.replace("\n", "") == (
        f"{head}</defs>".replace("*{}", rules)
        + '<path d="M0 20.1H7.1V0L3 4z" clip-path="url(#i0)" class="a"/>'
        + '<defs><path id="i1" d="M0 0V3.5" class="b"/></defs><use xlink:href="#i1" x="63.2" y="264.5"/>'
        + '<g transform="translate(17 3)"><text x="1.3" y="2" class="c">4 &lt; 5</text></g>'
        + '<defs><clipPath id="i0"><rect x="1" y="0" width="9.5" height="8"/></clipPath></defs></svg>'
    )


def test_pytest_benchmark_has_every_case() -> None:
    out = run("-m", "pytest", "benchmarks", "--benchmark-disable", "-p", "no:cacheprovider", "-q", cwd=ROOT)
    assert " passed" in out
    assert "skipped" not in out


def test_ours_and_theirs_have_one_distribution() -> None:
    from benchmarks.cases import cases

    torch.manual_seed(0)
    alone = set()
    for case in cases(side=256, tail=1 << 13):
        if case.theirs is None:
            alone.add(str(case.dtype))
            continue
        theirs, ours = (case.tensor(1 << 16) for _ in range(2))
        case.theirs(theirs)
        with case.forced():
            case.ours(ours)
        if case.name in ("eye_", "ones_"):
            assert torch.equal(theirs, ours), case.label
            continue
        # Six standard errors of the difference, for the kurtosis that the values have. In float64, where float16 would
        # overflow.
        a, b = theirs.double().flatten(), ours.double().flatten()
        kurtosis = ((a - a.mean()) ** 4).mean().item() / a.var().item() ** 2
        error = a.std().item() * math.sqrt(2 / a.numel())
        assert b.std().item() == pytest.approx(a.std().item(), abs=6 * error * math.sqrt(kurtosis - 1) / 2), case.label
        assert b.mean().item() == pytest.approx(a.mean().item(), abs=6 * error), case.label
    assert alone == {"torch.float8_e4m3fn", "torch.float8_e5m2"}


def test_slow_speeds_keep_their_digits() -> None:
    from benchmarks.bench import speed

    assert [speed(v) for v in (None, 12.345, 0.123, 0.00012345)] == ["-", "12.35", "0.12", "0.00012"]


# The one way to measure -----------------------------------------------------------------------------------------------


def test_contestants_take_turns_after_a_discarded_round() -> None:
    from benchmarks.cases import Contestant, alternate

    order: list[str] = []
    racing = [Contestant(name, lambda _, name=name: order.append(name)) for name in "ab"]
    results = alternate(racing, rounds=3)
    assert order == list("abababab")
    assert [len(results[name].seconds) for name in "ab"] == [3, 3]


def test_preparing_is_not_timed_and_what_it_returns_is_used() -> None:
    from benchmarks.cases import Contestant, alternate

    def prepare() -> int:
        time.sleep(0.05)
        return 7

    got: list[int] = []
    seconds = alternate([Contestant("a", got.append, prepare)], rounds=2)["a"].seconds
    assert got == [7, 7, 7]
    assert max(seconds) < 0.04


def test_the_slow_have_fewer_rounds_and_the_quick_more_calls() -> None:
    from benchmarks.cases import Contestant, alternate

    calls = dict.fromkeys(("slow", "quick", "limited"), 0)

    def count(name: str, seconds: float) -> None:
        calls[name] += 1
        time.sleep(seconds)

    racing = [
        Contestant("slow", lambda _: count("slow", 0.1)),
        Contestant("quick", lambda _: count("quick", 0.001)),
        Contestant("limited", lambda _: count("limited", 0.05), warm_up=lambda _: None, rounds=1),
    ]
    results = alternate(racing, rounds=4, patience=0.25, least=0.02)
    assert len(results["slow"].seconds) in (1, 2)
    assert calls["quick"] > 4 * 5
    assert 0.0009 < results["quick"].median < 0.02  # of one call
    assert len(results["limited"].seconds) == 1


def test_peak_memory_of_a_run() -> None:
    from benchmarks.cases import Contestant, alternate

    size = 64 << 20
    racing = [
        Contestant("much", lambda _: torch.ones(size, dtype=torch.uint8).add_(1)),
        Contestant("none", lambda _: None),
    ]
    results = alternate(racing, rounds=2, memory=True)
    slack = 16 << 20  # the kernel counts resident pages in batches
    assert size - slack <= results["much"].peak <= size + slack
    assert results["none"].peak <= slack
    assert min(results["much"].faults) >= size / (2 << 20)  # one for each page, of the largest kind


def test_stateless_generators_are_asked_for_and_their_absence_is_explained() -> None:
    from benchmarks.cases import stateless, stateless_fill

    module, reason = stateless(torch.float32)
    assert (module is None) == bool(reason)
    fill = stateless_fill("normal_", torch.float32)
    assert (fill is None) == (module is None)
    if fill:
        t = torch.zeros(4096)
        fill(t)
        assert 0.8 < t.std() < 1.2
    assert stateless_fill("trunc_normal_", torch.float32) is None


def test_the_floor_is_the_slower_of_our_best_rate_and_the_roof() -> None:
    from benchmarks.sweeps import _floor

    points: list[dict[str, Any]] = [
        {"elements": 10, "seconds": {"ours": 1.0, "zero_": 0.1}},
        {"elements": 1_000_000, "seconds": {"ours": 1.0, "zero_": 0.1}},
        {"elements": 2_000_000, "seconds": {"ours": 3.0, "zero_": 0.1}},
        {"elements": 4_000_000, "seconds": {"ours": 10.0, "zero_": 8.0}},
    ]
    assert _floor(points) == {"compute rate": 1_000_000}
    assert [p["over floor"] for p in points] == [None, 1.0, 1.5, 1.25]


# Phases ---------------------------------------------------------------------------------------------------------------


def event(name: str, start: float, end: float, thread: int = 1) -> Any:
    return SimpleNamespace(name=name, thread=thread, time_range=SimpleNamespace(start=start, end=end))


def test_time_of_operations_is_counted_once() -> None:
    from benchmarks.observe import _split

    events = [
        event("PythonDispatchMode", 0, 100e6),
        event("aten::empty", 1e6, 2e6),
        event("aten::zeros", 10e6, 20e6),  # an allocation in it, and a fill
        event("aten::empty", 10e6, 13e6),
        event("aten::zero_", 13e6, 19e6),
        event("detach", 30e6, 40e6),
        event("aten::normal_", 50e6, 55e6),
        event("aten::fill_", 50e6, 60e6, thread=2),
    ]
    assert _split(events) == (pytest.approx(1 + 3), pytest.approx(7 + 5 + 10))


def test_phases_add_up_and_are_where_they_belong() -> None:
    from benchmarks.observe import Phases

    phases = Phases()
    time.sleep(0.05)
    t = torch.ones(1 << 20)  # outside: construction
    with phases.watched():
        start = time.perf_counter()
        time.sleep(0.05)
        u = torch.empty(1 << 24)
        filling = time.perf_counter()
        u.normal_()
        filled = time.perf_counter() - filling
        watched = time.perf_counter() - start
    seconds = phases.stop()
    assert t.shape == (1 << 20,)
    assert seconds["construct"] >= 0.1
    assert 0.5 * filled < seconds["fill"] <= filled
    assert 0 < seconds["allocate"] < watched - filled
    assert sum(seconds.values()) >= watched + 0.05


# startup.py -----------------------------------------------------------------------------------------------------------


def test_startup_checks_what_it_measures(tmp_path: Path) -> None:
    """On a small GPT-2: reset_parameters alone leaves it with a broken tie and with memory that nobody wrote."""
    ways = ["eager", "reset_parameters", "fastinit"]
    arguments = ("--tiny", "--models", "gpt2", "--dtypes", "bfloat16", "--rounds", "1", "--ways", *ways[1:])
    files = ("--json", "startup.json", "--markdown", "startup.md", "--picture", "startup.svg")
    out = run("-m", "benchmarks.startup", *arguments, *files, cwd=tmp_path)
    report = json.loads((tmp_path / "startup.json").read_text())
    assert (tmp_path / "startup.md").read_text() == out
    runs = report["models"]["gpt2"]["bfloat16"]
    assert list(runs) == ways
    for how, result in runs.items():
        assert result["parameters"] == 198_400 + (how == "reset_parameters") * 512 * 64  # the tie that it breaks
        assert list(result["seconds"]) == ["import", "construct", "allocate", "fill"]
        assert min(result["seconds"].values()) > 0
        assert result["total"] == pytest.approx(sum(result["seconds"].values()))
        assert result["check"]["poisoned"] is True, how
        assert (result["check"]["wrong tensors"] > 0) == (how == "reset_parameters"), result["check"]
    kinds = runs["reset_parameters"]["check"]["kinds"]
    assert kinds["ties broken or made"] == 1
    assert kinds["not eager's bits where eager has the same under every seed"] > 0  # biases that nobody wrote
    assert kinds["another distribution"] > 0
    assert "**wrong**" in out
    picture = (tmp_path / "startup.svg").read_text()
    assert ">seconds from the start of the process</text>" in picture
    assert "WRONG VALUES" in picture


def test_garbage_where_the_c_library_gives_none(tmp_path: Path) -> None:
    """As on a GPU: torch itself spoils what it allocates, and a buffer that nobody writes shows it."""
    arguments = ("swin-l", "reset_parameters", "float32", "--tiny", "--poison", "--describe")
    result = json.loads(run("-m", "benchmarks.one_model", *arguments, cwd=tmp_path).splitlines()[-1])
    assert result["poisoned"] is True
    unwritten = [name for name, t in result["tensors"].items() if "mean" in t and not t["finite"]]
    assert any("relative_position_bias_table" in name for name in unwritten)


def test_faults_are_counted_by_kind() -> None:
    from benchmarks.startup import count_kinds

    lines = [
        "a: tied_to is a, eager has b",
        "b: mean is 1, eager has 2, and chance allows 0.1",
        "b: std is 1, eager has 2, and chance allows 0.1",
        "c: std is 1, eager has 2, and chance allows 0.1",
        "d: missing",
    ]
    assert count_kinds(lines) == {
        "another distribution": 2,
        "another shape, dtype or name": 1,
        "ties broken or made": 1,
    }


def test_a_way_that_fails_is_a_row_that_says_so() -> None:
    from benchmarks.startup import markdown

    good = {
        "seconds": dict.fromkeys(("import", "construct", "allocate", "fill"), 1.0),
        "total": 4.0,
        "built": 3.0,
        "peak": 10,
        "bytes": 10,
        "check": None,
    }
    bad = {"error": "NotImplementedError: no", "check": None}
    text = markdown({"gpt2": {"float32": {"eager": good, "fastinit": bad}}}, "cpu")
    assert "| GPT-2 124M | float32 | torch eager | 1.000 |" in text
    assert "| torch_fastinit | failed |" in text
    assert "failed: NotImplementedError: no" in text


def test_the_slow_way_has_one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import startup

    ran: list[str] = []

    def build(model: str, how: str, dtype: str, options: list[str]) -> dict[str, Any]:
        ran.append(how)
        seconds = {
            "import": 100.0,
            "construct": 1.0,
            "allocate": 0.0,
            "fill": 50.0 if how == "eager" else float(len(ran)),
        }
        return {"seconds": seconds, **dict.fromkeys(("peak", "device peak", "parameters", "bytes", "threads"), 1)}

    monkeypatch.setattr(startup, "build", build)
    results = startup.compare("gpt2", "float32", ["eager", "fastinit"], 3, 30.0, False, [], lambda text: None)
    assert ran == ["eager", "fastinit", "fastinit", "fastinit"]
    assert results["eager"]["totals"] == [151.0]
    assert results["fastinit"]["totals"] == [103.0, 104.0, 105.0]
    assert results["fastinit"]["total"] == 104.0
    assert results["fastinit"]["built"] == 4.0
    assert results["fastinit"]["seconds"]["fill"] == 3.0


def test_models_have_the_sizes_of_their_names() -> None:
    import transformers

    from benchmarks.models import MODELS

    millions = {"gpt2": 124, "gpt2-xl": 1558, "llama-1b": 1236, "vit-l": 303, "swin-l": 195, "bert-l": 335}
    millions |= {"mamba": 129, "t5": 223, "llama": 853}
    assert millions.keys() == MODELS.keys()
    for name, model in MODELS.items():
        with torch.device("meta"):
            built = getattr(transformers, model.auto).from_config(model.make_config())
        assert round(sum(p.numel() for p in built.parameters()) / 1e6) == millions[name], name


def test_overheads_prints_its_tables(tmp_path: Path) -> None:
    arguments = "--pairs 1 --rounds 2 --tensors 10 20 --repeats 2 --tiny --json overheads.json".split()
    out = run("-m", "benchmarks.overheads", *arguments, cwd=tmp_path)
    report = json.loads((tmp_path / "overheads.json").read_text())
    assert "| torch_fastinit alone, after torch " in out
    assert {"normal_", "uniform_", "ones_", "trunc_normal_"} <= report["eager"].keys()
    for name, least in report["eager"].items():
        assert f"| {name} " in out
        assert 0 < least["ours"] < 1
    assert len(report["recording"]) == 3
    for name, least in report["recording"].items():
        assert f"| {name} " in out
        assert min(least.values()) > 0
    assert list(report["many"]) == ["10", "20"]
    for least in report["many"].values():
        rest = least["materialize"] - least["fills"] - least["memory"]
        assert 0 < least["planning and binding"] == pytest.approx(rest)
