"""The command line: what is asked for, and how it ends."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence

import torch_fastinit as fastinit
from torch_fastinit.commands.errors import CommandError

PROGRAM = "python -m torch_fastinit"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0, or 1 if it failed. (Wrong usage exits with 2.)"""
    parser = _parser()
    options = parser.parse_args(arguments)
    if sys.stdout is None:
        print(f"{PROGRAM}: error: standard output is closed", file=sys.stderr)
        return 1
    if options.json and options.command in ("plan", "words"):
        parser.error(f"--json goes without a command, or with bench: {options.command} has no JSON")
    try:
        _run(options, parser)
        sys.stdout.flush()
    except CommandError as error:
        print(f"{PROGRAM}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # nobody reads any more, and nobody is to be told so when Python flushes at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        print(f"{PROGRAM}: error: standard output: {error.strerror or error}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python flushes what is left
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=PROGRAM, description="Without a command: what a bug report needs to know of this machine and installation."
    )
    parser.add_argument("--version", action="version", version=f"torch_fastinit {fastinit.__version__}")
    parser.add_argument("--json", action="store_true", help="as JSON")
    commands = parser.add_subparsers(dest="command", metavar="command")

    plan = commands.add_parser("plan", help="what materialize would do with a model, tensor by tensor")
    plan.add_argument(
        "model",
        help="module:callable or file.py:callable, which returns a model, or a Hugging Face config.json (or a folder "
        "with one)",
    )

    bench = commands.add_parser("bench", help="fills and a model against torch, on this machine: about a minute")
    bench.add_argument("--seconds", type=_positive, default=60, help="about how long to measure (default: 60)")
    bench.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="as JSON")

    words = commands.add_parser(
        "words",
        help="the random stream's words on standard output, as little-endian 32-bit integers, without end",
        description="The random stream's words on standard output, as little-endian 32-bit integers, for batteries "
        "such as PractRand, TestU01 and dieharder.",
    )
    words.add_argument("--seed", type=int, default=0, help="default: 0")
    words.add_argument("--name", default="weight", help='name of the tensor (default: "weight")')
    several = words.add_mutually_exclusive_group()
    several.add_argument(
        "--names", type=_positive, metavar="N", help="word 0 of N tensors, NAME.0 to NAME.N-1, then word 1 of each, ..."
    )
    several.add_argument(
        "--seeds",
        type=_positive,
        metavar="N",
        help="word 0 under N seeds, SEED to SEED + N - 1, then word 1 of each, ...",
    )
    words.add_argument("--count", type=_positive, help="how many words in all (default: no end)")
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, 1 or more")
    return int(text)


def _run(options: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    if options.command == "plan":
        from torch_fastinit.commands.plans import plan_of

        if not os.path.exists(options.model) and ":" not in options.model.strip(":"):
            parser.error(f"there is no file {options.model!r}, and a callable is named as in my_package.models:build")
        print(plan_of(options.model))
    elif options.command == "bench":
        from torch_fastinit.commands import bench

        results = bench.measure(options.seconds)
        print(json.dumps(results, indent=2) if options.json else bench.as_text(results))
    elif options.command == "words":
        from torch_fastinit.commands.words import streams, write

        if sys.stdout.isatty():
            parser.error("words are binary: send them to a program or a file, as in `words | RNG_test stdin32`")
        sys.stdout.flush()
        which = streams(options.seed, options.name, options.names, options.seeds)
        write(sys.stdout.fileno(), which, options.count)
    else:
        from torch_fastinit.commands import about

        found = about.about()
        print(json.dumps(found, indent=2) if options.json else about.as_text(found))
