from collections.abc import Sequence

def fill_cpu(info: Sequence[int], recipe: Sequence[int], params: Sequence[float], threads: int) -> None:
    """Run a batch of fills on ``threads`` threads, without the GIL."""

def instruction_set() -> str:
    """The instruction set in use."""

def instruction_sets() -> list[str]:
    """The instruction sets that this machine and this build have, best first."""

def set_instruction_set(name: str) -> None:
    """Use this one of ``instruction_sets()`` from now on; ValueError if it is not among them."""
