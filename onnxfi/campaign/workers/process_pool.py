"""A pool of worker processes, each of which runs tasks in one or several threads.

A worker process imports this module first, so it imports little: the process is set up before anything large is loaded.
"""

from __future__ import annotations

import atexit
import os
import signal
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.reduction import ForkingPickler
from typing import Any

from onnxfi.errors import DeviceError
from onnxfi.graph.write.scratch_folder import remove_abandoned
from onnxfi.runtime.engine.cuda import WORKER_NUMBER

#: Exit code of a worker process that can no longer use its device.
DEVICE_EXIT = 70


def begin() -> None:
    """Make this worker process end with its parent, ignore Ctrl-C, and be the first killed when memory ends."""
    import multiprocessing

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # The threads of numpy's BLAS, which is not used here, spin at first: 0.1 s of a core in each worker.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("500")
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def _held_back() -> Iterator[None]:
    """Block Ctrl-C; a process that is started meanwhile begins with it blocked."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    from multiprocessing import resource_tracker

    resource_tracker.ensure_running()  # else it starts with the process, and lets Ctrl-C come before that has begun
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _serve(pipe: Any) -> None:
    """Run the tasks of a worker process; the first message is how many threads run them, and its own number."""
    atexit.register(os._exit, 0)  # what a worker holds goes with its process, not object by object, which takes longer
    begin()
    import onnxfi.campaign.workers.worker  # noqa: F401 (what it is started for)

    speaking = threading.Lock()

    def do(number: int, request: bytes) -> None:
        try:
            call, given, named = ForkingPickler.loads(request)
            answer = _packed(call(*given, **named), None)
        except DeviceError:  # nothing that this process runs later would have an answer
            os._exit(DEVICE_EXIT)
        except BaseException as error:
            answer = _serialised_error(error)
        with speaking:
            pipe.send((number, answer))

    with suppress(EOFError):
        many, number = pipe.recv()
        os.environ[WORKER_NUMBER] = str(number)
        with ThreadPoolExecutor(many) as threads:
            while (request := pipe.recv()) is not None:
                threads.submit(do, *request)


def _packed(found: Any, error: BaseException | None) -> bytes:
    """Serialise an answer; raise where that is impossible."""
    return bytes(ForkingPickler.dumps((found, error)))


def _unpacked(answer: bytes) -> tuple[Any, BaseException | None]:
    """Return the result of an answer and its error, also one of reading it."""
    try:
        found, error = ForkingPickler.loads(answer)
    except Exception as wrong:
        return None, wrong
    return found, error


def _serialised_error(error: BaseException) -> bytes:
    """Serialise an error of a worker: itself, or its message where it cannot be read back."""
    said = traceback.format_exc()
    error.add_note(said)
    with suppress(Exception):
        answer = _packed(None, error)
        if type(_unpacked(answer)[1]) is type(error):
            return answer
    return _packed(None, RuntimeError(said))


class WorkerExited(BrokenExecutor):
    """A worker process has ended; `exit_code` is how, as `Process.exitcode` has it (None: nobody knows)."""

    def __init__(self, exit_code: int | None) -> None:
        super().__init__("a worker has died")
        self.exit_code = exit_code


@dataclass
class WorkerProcess:
    """A worker process, the pipe to it, and the tasks that it runs, at most `threads_per_process` at a time."""

    process: Any
    pipe: Any
    threads_per_process: int
    doing: dict[int, Future[Any]] = field(default_factory=dict)

    @classmethod
    def start(cls) -> WorkerProcess:
        """Start a process, whose first message is to be its number of threads."""
        import multiprocessing

        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,))
        with _held_back():
            process.start()
        atexit.register(_end, process)  # a daemon would end too, but its data could have no processes of its own
        theirs.close()
        return cls(process, ours, 0)


def _end(process: Any) -> None:
    """End a worker process, and remove what it could not: copies of a model that it was about to open."""
    process.kill()
    process.join()
    remove_abandoned()


@contextmanager
def spare_process() -> Iterator[list[WorkerProcess]]:
    """Start a worker before it is known what for, so that it loads what it needs while this process does.

    The first pool that is given the list takes the worker out of it; one that is left ends with the context.
    """
    spare = [WorkerProcess.start()]
    try:
        yield spare
    finally:
        for worker in spare:
            worker.process.kill()


class ProcessPool(Executor):
    """So many workers, up to `threads_per_process` of them threads of one process that share what it has open.

    Processes have a clean interpreter, and start when there is something to do. Where one dies, all end, and who waits
    for any of them gets BrokenExecutor. The first is taken out of `spare`, where there is one.
    """

    def __init__(self, size: int, threads_per_process: int = 1, spare: list[WorkerProcess] | None = None) -> None:
        many = -(-size // threads_per_process)
        self._to_start = deque(len(range(k, size, many)) for k in range(many))
        self._workers: list[WorkerProcess] = []
        self._waiting: deque[tuple[Future[Any], bytes]] = deque()
        self._listeners: list[threading.Thread] = []
        self._numbers = count()
        self._lock = threading.RLock()
        self._broken = self._over = False
        self._spare = spare

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a function in a worker; BrokenExecutor where one has died."""
        future, request = Future[Any](), bytes(ForkingPickler.dumps((fn, args, kwargs)))
        with self._lock:
            if self._broken or self._over:
                raise BrokenExecutor("a worker has died" if self._broken else "the pool of workers is shut down")
            self._waiting.append((future, request))
            self._deal()
        return future

    def _deal(self) -> None:
        """Send waiting tasks to idle workers, and release idle workers of a pool that is shut down."""
        while self._waiting and (free := self._free()) is not None:
            future, request = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                number = next(self._numbers)
                free.doing[number] = future
                with suppress(OSError):  # it has died; who listens to it finds out
                    free.pipe.send((number, request))
        if self._over and not self._waiting:
            for worker in self._workers:
                if not worker.doing:
                    with suppress(OSError):
                        worker.pipe.send(None)

    def _free(self) -> WorkerProcess | None:
        for worker in self._workers:
            if len(worker.doing) < worker.threads_per_process:
                return worker
        if not self._to_start:
            return None
        worker = self._spare.pop() if self._spare else WorkerProcess.start()
        worker.threads_per_process = self._to_start.popleft()
        with suppress(OSError):  # as below
            worker.pipe.send((worker.threads_per_process, len(self._workers)))
        self._workers.append(worker)
        self._listeners.append(threading.Thread(target=self._listen, args=(worker,), daemon=True))
        self._listeners[-1].start()
        return worker

    def _listen(self, worker: WorkerProcess) -> None:
        """Pass on the replies of a worker until it ends."""
        with suppress(EOFError, OSError):
            while True:
                number, answer = worker.pipe.recv()
                found, error = _unpacked(answer)
                with self._lock:
                    future = worker.doing.pop(number, None)
                    self._deal()
                if future is not None and error is None:
                    future.set_result(found)
                elif future is not None:
                    future.set_exception(error)
        if worker.doing or not self._over:
            self._break(worker)

    def kill(self) -> None:
        """End all workers at once; workers of a pool that is shut down end by themselves when they are done."""
        if self._over and not any(worker.doing for worker in self._workers):
            return
        self._break()
        for worker in self._workers:
            _end(worker.process)

    def _break(self, first: WorkerProcess | None = None) -> None:
        with self._lock:
            first = None if self._broken else first  # it was ended by us, and who did waits for it
            self._broken = True
            for worker in self._workers:
                worker.process.kill()
            lost = [future for worker in self._workers for future in worker.doing.values()]
            lost += [future for future, _ in self._waiting if future.set_running_or_notify_cancel()]
            for worker in self._workers:
                worker.doing.clear()
            self._waiting.clear()
        if first is not None:
            first.process.join()
        for future in lost:
            future.set_exception(WorkerExited(None if first is None else first.process.exitcode))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Release the workers when their tasks are done; with `cancel_futures` only those that run already."""
        with self._lock:
            self._over = True
            while cancel_futures and self._waiting:
                self._waiting.popleft()[0].cancel()
            self._deal()
        for worker, listener in zip(self._workers, self._listeners, strict=True) if wait else ():
            worker.process.join()
            listener.join()


@contextmanager
def started_pool(
    size: int,
    task: Callable[..., Any],
    *args: Any,
    threads_per_process: int = 1,
    instead_of: ProcessPool | None = None,
    spare: list[WorkerProcess] | None = None,
) -> Iterator[ProcessPool | None]:
    """Start `size` workers, each running `task`; they are killed where the block fails."""
    if instead_of is not None:
        instead_of.kill()
    if not size:
        yield None
        return
    pool = ProcessPool(size, threads_per_process, spare)
    try:
        for _ in range(size):
            pool.submit(task, *args)
        yield pool
    except BaseException:
        pool.kill()
        raise


@contextmanager
def reusable_pool(
    pool: Callable[[int], Executor], early: Executor | None = None
) -> Iterator[Callable[[int], Executor]]:
    """Yield a function that returns a pool, the same again until it breaks; the context shuts it down.

    `early` is a pool that was started already.
    """
    kept = [early] if early is not None else []

    def lend(size: int) -> Executor:
        if not (kept and _is_alive(kept[-1])):
            kept.append(pool(size))
        return _BorrowedPool(kept[-1])

    try:
        yield lend
    finally:
        for one in kept:
            one.shutdown(wait=False, cancel_futures=True)


def _is_alive(pool: Executor) -> bool:
    try:
        pool.submit(int)
    except BrokenExecutor:
        return False
    return True


@dataclass
class _BorrowedPool(Executor):
    """An executor whose owner shuts it down: `shutdown` does nothing."""

    pool: Executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.pool.submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        pass
