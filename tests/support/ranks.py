"""Functions on ranks of a real (gloo) process group: workers that are forked from one process that imported torch.

A spawned worker takes seconds to import torch; a forked one takes none of that, and what a test process has done with
threads and autograd must not be forked. So a *server*, a fresh process, imports everything once and forks the workers
of each run. `tests/distributed/conftest.py` starts one a session, as the fixture `ranks`.

A run returns what each rank returned. It fails with the traceback and the output of each rank that raised or died, and,
when the time is up, with the stacks of the ranks that still run; then all of them are killed.
"""

from __future__ import annotations

import contextlib
import datetime
import faulthandler
import functools
import importlib
import importlib.util
import inspect
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
ROOT = Path(__file__).resolve().parents[2]
#: What the server imports before the first run.
IMPORTS = """pytest torch torch.distributed torch.distributed.tensor torch.distributed.tensor.parallel
torch.distributed.fsdp torch.distributed.checkpoint torch_fastinit torch_fastinit.materializer""".split()
#: How long the other ranks have after one has failed, in seconds: usually they fail then, too.
GRACE = 5.0


class RanksFailedError(AssertionError):
    """What went wrong on which rank."""


@dataclass
class Request:
    module: str
    file: str
    function: str
    arguments: bytes
    world: int
    timeout: float
    group_timeout: float


# ---- In the test process --------------------------------------------------------------------------------------------


class Ranks:
    """The client of a server: `ranks.run(4, function, *args)`."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        self._server = subprocess.Popen(
            [sys.executable, "-c", f"from support.ranks import serve; serve({theirs.fileno()})"],
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": path, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        )
        theirs.close()

    def run(
        self,
        world: int,
        function: Callable[..., T],
        *args: Any,
        timeout: float = 60.0,
        group_timeout: float | None = None,
        **kwargs: Any,
    ) -> list[T]:
        """What `function(*args, **kwargs)` returns on each of `world` ranks of a gloo group, by rank.

        Args:
            world: how many ranks.
            function: a function at the top level of a module, which a worker imports from its file.
            args: its arguments, pickled.
            timeout: after that many seconds the ranks that still run are killed.
            group_timeout: the timeout of the process group (default: that of the run).
            kwargs: its keyword arguments, pickled.

        Raises:
            RanksFailedError: on some rank it raised, died or did not end.
        """
        if "<" in function.__qualname__:
            raise ValueError(f"{function.__qualname__} is not at the top level of a module")
        file = str(Path(inspect.getfile(function)).resolve())
        arguments = pickle.dumps((args, kwargs))
        self._connection.send(
            Request(
                function.__module__,
                file,
                function.__qualname__,
                arguments,
                world,
                timeout,
                timeout if group_timeout is None else group_timeout,
            )
        )
        outcomes: list[tuple[bool, bytes]] = self._connection.recv()
        bad = [f"rank {rank} of {world}: {pickle.loads(what)}" for rank, (ok, what) in enumerate(outcomes) if not ok]
        if bad:
            raise RanksFailedError("\n".join(bad))
        return [pickle.loads(what) for _, what in outcomes]

    def close(self) -> None:
        """End the server."""
        self._connection.close()
        self._server.wait()


@contextlib.contextmanager
def ranks_server() -> Iterator[Ranks]:
    """A server for as long as the context is open."""
    server = Ranks()
    try:
        yield server
    finally:
        server.close()


# ---- In the server --------------------------------------------------------------------------------------------------


@dataclass
class Worker:
    pid: int
    connection: Connection
    output: str
    stacks: str
    outcome: tuple[bool, bytes] | None = field(default=None)

    def settle(self, ok: bool, what: bytes | str) -> None:
        if isinstance(what, str):
            printed, stacks = Path(self.output).read_text(errors="replace"), Path(self.stacks).read_text()
            parts = [what, printed and f"It printed:\n{printed}", stacks and f"Its stacks:\n{stacks}"]
            what = pickle.dumps("\n".join(filter(None, parts)))
        self.outcome = (ok, what)


def serve(descriptor: int) -> NoReturn:
    """Run requests until the client closes the connection."""
    import torch

    for name in IMPORTS:
        importlib.import_module(name)
    torch.set_num_threads(1)
    client = Connection(descriptor)
    while True:
        try:
            request = client.recv()
        except (EOFError, OSError):
            os._exit(0)  # the tear-down of so many modules takes a second
        with tempfile.TemporaryDirectory() as folder:
            client.send(answer(request, client, folder))


def answer(request: Request, client: Connection, folder: str) -> list[tuple[bool, bytes]]:
    """The outcome of each rank: whether it returned, and what, pickled."""
    try:
        module = load(request.module, request.file)
        function: Any = functools.reduce(getattr, request.function.split("."), module)
    except BaseException:
        return [(False, pickle.dumps(f"no such function:\n{traceback.format_exc()}"))] * request.world
    sys.stdout.flush()
    sys.stderr.flush()
    workers: list[Worker] = []
    try:
        for rank in range(request.world):
            workers.append(fork(rank, request, function, folder, client, [w.connection for w in workers]))
        attend(workers, client, time.monotonic() + request.timeout)
    finally:
        for worker in workers:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitpid(worker.pid, 0)
            worker.connection.close()
    return [worker.outcome or (False, pickle.dumps("nothing")) for worker in workers]


def load(name: str, file: str) -> types.ModuleType:
    """A module, from its file, under the name that it has in the test process: once, before the workers are forked."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None and spec.loader is not None, file
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]


def fork(
    rank: int, request: Request, function: Callable[..., Any], folder: str, client: Connection, others: list[Connection]
) -> Worker:
    ours, theirs = Pipe()
    output, stacks = os.path.join(folder, f"output{rank}"), os.path.join(folder, f"stacks{rank}")
    Path(output).touch()
    Path(stacks).touch()
    pid = os.fork()
    if pid:
        theirs.close()
        return Worker(pid, ours, output, stacks)
    try:
        for connection in (ours, client, *others):
            connection.close()
        work(rank, request, function, folder, theirs, output, stacks)
    finally:
        os._exit(1)  # no clean-up of the server's
    raise AssertionError


def attend(workers: list[Worker], client: Connection, deadline: float) -> None:
    """Wait for all outcomes; some time after a failure, and at the deadline, for no more."""
    late = "did not end in time"
    while running := {worker.connection: worker for worker in workers if worker.outcome is None}:
        ready = wait([*running, client], max(0.0, deadline - time.monotonic()))
        if client in ready:  # nobody asks any more: requests come one at a time
            return
        if not ready:
            for worker in running.values():
                os.kill(worker.pid, signal.SIGUSR1)
            time.sleep(0.3)
            for worker in running.values():
                worker.settle(False, late)
            return
        for connection in ready:
            worker = running[connection]  # type: ignore[index]
            try:
                ok, what = worker.connection.recv()
            except (EOFError, OSError):
                ok, what = False, f"died with {ending(worker.pid)}"
            worker.settle(ok, what)
            if not ok and time.monotonic() + GRACE < deadline:
                deadline = time.monotonic() + GRACE
                late = f"did not end in the {GRACE:g} seconds after another had failed"


def ending(pid: int) -> str:
    info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert info is not None
    if info.si_code == os.CLD_EXITED:
        return f"exit status {info.si_status}"
    return signal.Signals(info.si_status).name


# ---- In a worker ----------------------------------------------------------------------------------------------------


def work(
    rank: int, request: Request, function: Callable[..., Any], folder: str, server: Connection, output: str, stacks: str
) -> None:
    import torch.distributed as dist

    printed = os.open(output, os.O_WRONLY | os.O_APPEND)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    with open(stacks, "w") as trace:
        faulthandler.enable(trace)
        faulthandler.register(signal.SIGUSR1, trace)
        try:
            args, kwargs = pickle.loads(request.arguments)
            dist.init_process_group(
                "gloo",
                store=dist.FileStore(os.path.join(folder, "store"), request.world),
                rank=rank,
                world_size=request.world,
                timeout=datetime.timedelta(seconds=request.group_timeout),
            )
            outcome: tuple[bool, bytes | str] = (True, pickle.dumps(function(*args, **kwargs)))
        except BaseException:
            outcome = (False, traceback.format_exc())
        sys.stdout.flush()
        sys.stderr.flush()
        server.send(outcome)
        if outcome[0]:  # its sockets stay open until all are done; a rank that failed closes them, which others notice
            with contextlib.suppress(EOFError):
                server.recv()
