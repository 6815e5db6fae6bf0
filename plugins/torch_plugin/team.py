"""The processes of one run: how they find each other, and what they hand each other.

The first holds the run; the others do what it says (distributed.py). torchrun starts them, or the first starts the others
itself, on this machine. What they hand each other on the CPU goes through gloo, gradients on GPUs through NCCL.
"""

import os
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed as dist

from layerwise_lr import framework as core

PATIENCE = timedelta(days=1)
"""The first may load and decode as long as it takes; a process that dies is noticed at once, its connection closes."""
JOINING = 300.0
"""Seconds within which the others have begun."""
_POLL, _WORDS = 0.05, 2.0


class Head(NamedTuple):
    """What must be known of an array before it comes."""

    shape: tuple[int, ...]
    dtype: Any

    @classmethod
    def of(cls, array: np.ndarray) -> "Head":
        """An array's."""
        return cls(array.shape, array.dtype)


class Team:
    """All processes of a run, seen by one of them.

    Args:
        rank: this one; 0 is the first.
        size: how many there are.
        store: where one that fails leaves word.
        children: those that this one has started.
    """

    def __init__(self, rank: int, size: int, store: dist.Store, children: Mapping[int, Any]) -> None:
        self.rank, self.size, self.store, self.children = rank, size, store, dict(children)
        self.busy, self.dropped, self._count = False, list[int](), 0
        if rank:
            store.set(f"here/{rank}", "")
        else:
            self._await()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(
            backend, timeout=PATIENCE, store=dist.PrefixStore("team", store), rank=rank, world_size=size
        )

    def _await(self) -> None:
        """Until all others are here, or one that was started has ended."""
        names, until = [f"here/{rank}" for rank in range(1, self.size)], time.monotonic() + JOINING
        while names and not self.store.check(names):
            if any(child.poll() is not None for child in self.children.values()) or time.monotonic() > until:
                for child in self.children.values():
                    child.kill()
                raise core.ProcessDied(f"of {self.size} processes not all have begun{self._how()}")
            time.sleep(_POLL)

    def next(self) -> int:
        """A number for what is about to be made in every process."""
        self._count += 1
        return self._count

    def name(self, made: Any, number: int) -> None:
        """It has that number; the others drop theirs when the first has it no more."""
        made.number = number
        weakref.finalize(made, self.dropped.append, number)

    @contextmanager
    def together(self, verb: str, *words: Any) -> Iterator[None]:
        """What all do: the first tells the others; inside, each does its part.

        Raises:
            ProcessDied: one of the others did not.
        """
        if self.rank:
            yield
            return
        self.busy = True
        try:
            told = (verb, words, tuple(self.dropped))
            self.dropped.clear()
            dist.broadcast_object_list([told], 0, device=torch.device("cpu"))
            yield
        except RuntimeError as error:
            if died := self._died(error):
                raise core.ProcessDied(died) from error
            raise
        self.busy = False

    def hear(self) -> tuple[str, tuple[Any, ...], tuple[int, ...]]:
        """What the first says next: the verb, its words, the numbers of what may go."""
        held: list[Any] = [None]
        dist.broadcast_object_list(held, 0, device=torch.device("cpu"))
        verb, words, dropped = held[0]
        return verb, words, dropped

    def bounds(self, rows: int, rank: int | None = None) -> tuple[int, int]:
        """Which of so many rows are a process's (this one's), from and to: none or one more than another's."""
        rank = self.rank if rank is None else rank
        return rows * rank // self.size, rows * (rank + 1) // self.size

    def deal(self, whole: np.ndarray | Head, cuts: int = 1) -> np.ndarray:
        """This process's rows of each of `cuts` equal parts of an array that the first has."""
        each = whole.shape[0] // cuts
        if isinstance(whole, Head):
            begin, end = self.bounds(each)
            mine = np.empty((cuts * (end - begin), *whole.shape[1:]), whole.dtype)
            if mine.size:
                dist.recv(torch.from_numpy(mine), 0)
            return mine
        hands = []
        for rank in range(self.size):
            begin, end = self.bounds(each, rank)
            rows = [whole[at + begin : at + end] for at in range(0, cuts * each, each)]
            hands.append(np.ascontiguousarray(rows[0] if cuts == 1 else np.concatenate(rows)))
        for rank in range(1, self.size):
            if hands[rank].size:
                dist.send(torch.from_numpy(hands[rank]), rank)
        return hands[0]

    def collect(self, mine: np.ndarray, rows: int) -> np.ndarray:
        """The reverse, for one part: all rows at the first, its own at any other."""
        if self.rank:
            if mine.size:
                dist.send(torch.from_numpy(np.ascontiguousarray(mine)), 0)
            return mine
        found = [mine]
        for rank in range(1, self.size):
            begin, end = self.bounds(rows, rank)
            theirs = np.empty((end - begin, *mine.shape[1:]), mine.dtype)
            if theirs.size:
                dist.recv(torch.from_numpy(theirs), rank)
            found.append(theirs)
        return np.concatenate(found)

    def spread(self, array: np.ndarray | None, head: Head) -> np.ndarray:
        """An array that the first has, in every process."""
        held = np.empty(head.shape, head.dtype) if array is None else np.array(array, head.dtype, order="C")
        dist.broadcast(torch.from_numpy(held), 0)
        return held

    def fail(self, error: BaseException) -> None:
        """Leave word of what ended this process; that another is gone is not it, and nobody may be left to read it."""
        told = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
        print(f"process {self.rank} of {self.size}: {told}", file=sys.stderr, flush=True)
        if "onnection" not in told:
            with suppress(RuntimeError):
                self.store.set(f"failed/{self.rank}", told)

    def end(self) -> None:
        """No run is left. In the middle of one, the others notice that we are gone."""
        if self.busy:
            for child in self.children.values():
                child.terminate()
        elif not self.rank:
            with suppress(RuntimeError, core.ProcessDied), self.together("end"):
                pass
        dist.destroy_process_group()
        for child in self.children.values():
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _died(self, error: RuntimeError) -> str:
        """Whether an error means that another process is gone, in one line; "": it is our own."""
        until, how = time.monotonic() + _WORDS, ""
        lost = "onnection" in str(error) or "gloo" in str(error) or isinstance(error, dist.DistError)
        while not (how := self._how()) and lost and time.monotonic() < until:
            time.sleep(_POLL)
        if not lost and not how:
            return ""
        return f"of {self.size} processes that train together one is gone{how}; resume goes on from what is kept"

    def _how(self) -> str:
        """What is known of one that is gone: that it was killed, else what it said."""
        for rank, child in self.children.items():
            if (code := child.poll()) is not None and code < 0:
                return f": process {rank} was ended by signal {-code}"
        said = {}
        for rank in range(1, self.size):
            with suppress(RuntimeError):
                if self.store.check([f"failed/{rank}"]):
                    said[rank] = self.store.get(f"failed/{rank}").decode()
        return next((f": process {rank} failed, {words}" for rank, words in said.items()), "")


def lead(size: int) -> Team:
    """The team of `size` whose first process this is: the others are started where no launcher has."""
    if "RANK" in os.environ:
        store, rank, size = next(dist.rendezvous("env://"))
        return Team(rank, size, store, {})
    store = dist.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "WORLD_SIZE": str(size)}
    command = [sys.executable, "-m", f"{__package__}.follower"]
    children = {
        rank: subprocess.Popen(
            command,
            env={**os.environ, **told, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        for rank in range(1, size)
    }
    return Team(0, size, store, children)


def join() -> Team:
    """The team whose launcher, or whose first process, has started this one."""
    store, rank, size = next(dist.rendezvous("env://"))
    return Team(rank, size, store, {})
