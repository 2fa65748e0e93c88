"""Several processes that train together: how they begin, and how they end when one of them fails.

Each is told by its environment which one it is, in the words of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR,
MASTER_PORT), whether torchrun has started it or `run_processes`. Whoever fails first says so, in one sentence, and all
others end without a word.
"""

from __future__ import annotations

import datetime
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import torch
import torch.distributed as dist
from joblib import cpu_count
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from hovernet_cyclic.command_faults import path_fault
from hovernet_cyclic.core.errors import HoverNetCyclicError, RecipeError
from hovernet_cyclic.training.devices import with_workers
from hovernet_cyclic.training.signals import Preempted, stop_request
from models.devices import Device, choose_devices, is_out_of_memory
from models.ranks import Ranks

LAUNCHER = "HOVERNET_CYCLIC_LAUNCHER"  # process id of `run_processes`, in the environment of those it started
LONGEST_WAIT = datetime.timedelta(minutes=30)  # for another process, in a collective
GRACE = 5.0  # seconds that the others are given to end by themselves
LONGEST_SAVE = 60.0  # seconds that they are given where one has stopped as it was asked to
STOPPED_UNHEARD = 128 + signal.SIGTERM  # exit code of a run that was stopped before rank 0 could say so
LOST_ANOTHER = 75  # exit code of a process that ended because another had: that one is at fault
GO_ON = "What was finished is kept: give --resume to go on."
# What gloo and NCCL say when the other side of a collective is gone; torch gives gloo's errors no type of their own.
LOST_WORDS = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe", "TCPStore")


# --- the one that starts them -----------------------------------------------------------------------------------------


def run_processes(command: Sequence[str], count: int) -> int:
    """Run `command` in `count` processes of this machine until all have ended; returns their exit code.

    Where one fails the others are ended within GRACE seconds. Rank 0 alone has this process's stdout. SIGTERM is passed
    on, and answered with STOPPED_UNHEARD where it came too early for rank 0 to say so. Ctrl-C ends all once they have
    saved.
    """
    # held here, so that what was said outlives whoever said it; the port is the system's choice
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    children = [_start(command, rank, count, store.port) for rank in range(count)]
    try:
        with _passing_on(signal.SIGTERM, children) as told:
            codes = _first_codes(children, told)
        if told and set(codes) <= {0, None, -signal.SIGTERM, LOST_ANOTHER}:
            return 0 if codes[0] == 0 else STOPPED_UNHEARD
        return _answer(codes, store)
    except KeyboardInterrupt:  # the terminal has told the children too
        _let_save(children)
        if _said_code(store) is None:
            print(f"Stopped. {GO_ON}", file=sys.stderr)
        return 130
    finally:
        for child in children:
            child.kill()
            child.wait()


def _start(command: Sequence[str], rank: int, count: int, port: int) -> subprocess.Popen[bytes]:
    environment = {
        "OMP_NUM_THREADS": str(max(1, cpu_count() // count)),
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # torch's word for: the store is there already
        LAUNCHER: str(os.getpid()),
    }
    return subprocess.Popen(command, env=environment, stdout=None if rank == 0 else subprocess.DEVNULL)


@contextmanager
def _passing_on(number: signal.Signals, children: Sequence[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Inside, a signal is sent on to the children. Yields the list of those that came."""
    came: list[int] = []

    def pass_on(received: int, _: object) -> None:
        came.append(received)
        for child in children:
            child.send_signal(received)

    before = signal.signal(number, pass_on)
    try:
        yield came
    finally:
        signal.signal(number, before)


def _first_codes(children: Sequence[subprocess.Popen[bytes]], told: Sequence[int]) -> list[int | None]:
    """Exit codes (None while one runs) once all have ended well, or one has not and there is no more to learn.

    told: the signals that were passed on to them so far.
    """
    patience, longest = GRACE, LONGEST_SAVE
    while True:
        codes = [child.poll() for child in children]
        failed = {code for code in codes if code}
        if failed - {LOST_ANOTHER} or None not in codes or patience < 0 or longest < 0:
            return codes
        if told and 0 in codes:  # the others may save; or wait for that one, which was stopped before they had met
            longest -= 0.1
        if failed:  # the one at fault may take longer to end than those that miss it
            patience -= 0.1
        time.sleep(0.1)


def _answer(codes: Sequence[int | None], store: Store) -> int:
    """The exit code of all, and a sentence where none of them has said one."""
    if not any(codes):
        return 0
    if codes[0] == 2:  # bad input that all met before they were together: rank 0 has said so
        return 2
    said = _said_code(store)
    if said is None:
        print(_ending(codes), file=sys.stderr)
    return 1 if said is None else said


def _ending(codes: Sequence[int | None]) -> str:
    """What became of the process that ended first, and without a word. codes: exit codes, None while it runs."""
    ended = {rank: code for rank, code in enumerate(codes) if code}
    rank, code = min(ended.items(), key=lambda item: (item[1] == LOST_ANOTHER, item[1]))
    how = f"with exit code {code}"
    if code < 0:
        named = signal.Signals(-code).name
        memory = " (where memory is short the system does that)" if -code == signal.SIGKILL else ""
        how = f"by {named}{memory}"
    return f"Process {rank} of 0 to {len(codes) - 1} was ended {how}, so the others were ended too. {GO_ON}"


def _let_save(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Wait until all have ended; who asked this process alone to stop (kill -INT) has them asked, too."""
    _wait_for(children, GRACE)
    for child in children:
        if child.poll() is None:
            child.terminate()  # a child that is saving already takes no notice
    _wait_for(children, math.inf)


def _wait_for(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    until = time.monotonic() + seconds
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        time.sleep(0.1)


def _said_code(store: Store) -> int | None:
    """The exit code that goes with what a process has said, None where none has said anything."""
    if not (store.check(["failures"]) or store.check(["code"])):
        return None
    with suppress(dist.DistStoreError):  # whoever is about to speak is let finish
        store.wait(["code"], datetime.timedelta(seconds=GRACE))
    return int(store.get("code")) if store.check(["code"]) else 1


# --- those that are started -------------------------------------------------------------------------------------------


def run_as_rank(
    work: Callable[[Device, Ranks], int],
    gpu: str | None,
    workers: int | None,
    log_dir: str,
    stopped: Callable[[], object] = lambda: None,
) -> int:
    """Do `work` as one of several processes, and return what it returns. A failure ends this process.

    gpu: of --gpu; the process takes the device of its place on this machine. workers: of --num_workers. log_dir: the
    run's folder, where the traceback of an error goes that nobody foresaw. stopped: called where SIGTERM has stopped
    the work, which ends this process with 0.
    """
    _end_with_the_launcher()
    store, rank, count = _meet()
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    try:
        device = device_of(gpu, int(os.environ.get("LOCAL_RANK", rank)), here)
        ranks = with_workers(Ranks(rank, count, here), device, workers)
        with _asked_with_others():
            with stop_request().deferred():  # all join, or none
                _join(store, ranks, device)
            stop_request().heed()
            code = work(device, ranks)
            if code:
                store.set("code", str(code))  # what there was to say of it has been said
            ranks.wait()
            dist.destroy_process_group()
        return code
    except Preempted:
        stopped()
        sys.stdout.flush()
        os._exit(0)  # without waiting for the others, which have been asked, too
    except (Exception, KeyboardInterrupt) as error:
        _fail(error, store, f"Process {rank} of 0 to {count - 1}", log_dir)


@contextmanager
def _asked_with_others() -> Iterator[None]:
    """Inside, whoever misses another that has stopped because it was asked to stops for the same reason.

    A signal that training has noted is not asked again: torchrun sends one wherever a process was lost.
    """
    try:
        yield
    except RuntimeError:
        time.sleep(0)  # one that came in the middle of the exchange is heard here, and none is waited for
        raise


def device_of(gpu: str | None, place: int, here: int) -> Device:
    """The device of the process at `place` among those `here`. Raises RecipeError where there are too few GPUs."""
    first = choose_devices(gpu)[0]
    if first.torch_device.type == "cpu":
        return first
    devices = choose_devices(gpu if gpu is not None else ",".join(map(str, range(here))))
    if len(devices) < here:
        raise RecipeError(f"--gpu={gpu}: {here} processes run on this machine: name a GPU for each.")
    return devices[place]


def _meet() -> tuple[Store, int, int]:
    """What all processes read and write, this one's rank, and how many there are. Raises RecipeError."""
    try:
        store, rank, count = next(rendezvous("env://"))
    except (dist.DistError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RecipeError(f"The processes cannot meet at {where} (MASTER_ADDR, MASTER_PORT): {error}.") from error
    return store, rank, count


def _join(store: Store, ranks: Ranks, device: Device) -> None:
    on_gpu = device.torch_device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device.torch_device)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",  # flags and objects travel by gloo, tensors of a GPU by NCCL
        store=PrefixStore("group", store),
        rank=ranks.rank,
        world_size=ranks.count,
        timeout=LONGEST_WAIT,
    )


def _fail(error: BaseException, store: Store, name: str, log_dir: str) -> NoReturn:
    """End at once, and say why unless another process has said already what happened to all."""
    sentence, code = _sentence(error, name)
    if code == LOST_ANOTHER and LAUNCHER in os.environ:
        os._exit(code)  # the launcher sees which one was lost, and says so
    said = False
    with suppress(Exception):  # the store may be gone with the process that held it
        said = store.add("failures", 1) > 1
    if not said:
        if code == 1:
            sentence += _kept_trace(error, Path(log_dir), name)
        print(sentence, file=sys.stderr, flush=True)
        with suppress(Exception):
            store.set("code", str(code))
    sys.stdout.flush()
    os._exit(code)  # the ordinary way out waits for the others


def _sentence(error: BaseException, name: str) -> tuple[str, int]:
    """What to say of a failure, and the exit code."""
    if isinstance(error, HoverNetCyclicError):
        return str(error), 2
    if isinstance(error, KeyboardInterrupt):
        return f"Stopped. {GO_ON}", 130
    if is_out_of_memory(error):
        return f"{name} ran out of memory: give more devices or a smaller batch_size in the recipe. {GO_ON}", 1
    if _is_lost(error):
        return f"{name} has lost another process of this run, and all end. {GO_ON}", LOST_ANOTHER
    if isinstance(error, OSError):
        return path_fault(error), 2
    first_line = (str(error).splitlines() or [""])[0]
    return f"{name} failed, and all end: {type(error).__name__}: {first_line}.", 1


def _is_lost(error: BaseException) -> bool:
    """Whether this is what an exchange raises when another process is gone."""
    return any(word in str(error) for word in LOST_WORDS)


def _kept_trace(error: BaseException, folder: Path, name: str) -> str:
    """Where the traceback was written; '' where there is no folder yet."""
    path = folder / "failure.txt"
    try:
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    except OSError:
        return ""
    return f" Please report it with {path}. {GO_ON}"


def _end_with_the_launcher() -> None:
    """Do not go on where `run_processes` was killed: a second run in the same folder would meet this one."""
    launcher = os.environ.get(LAUNCHER)
    if launcher is None:
        return

    def watch() -> None:
        while os.getppid() == int(launcher):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
