"""A Ray cluster while a block runs: tasks and actors that are repeated where a worker or a machine is lost.

Ray's processes talk to each other in pickles of their own. So only machines that are trusted may reach a cluster's
ports, as with every Ray cluster; nothing that is pickled is ever read from an index, an image or a server here.
"""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

from ..errors import SeenitError, StoreError, first_line

T = TypeVar("T")
LOCAL = "local"  # Ray on this machine alone, started and ended with the block
FEWEST_CPUS = 2  # of such a one: an actor that embeds, and a task that decodes
CONNECT_S = 5.0
RETRIES = 5  # of a task or a call that lost its worker; what kills five workers is the task's own doing


class Cluster:
    """What a cluster offers; see `open_cluster`."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray
        resources = ray.cluster_resources()
        self.cpus, self.gpus = int(resources.get("CPU", 1)), float(resources.get("GPU", 0))

    def task(self, function: Callable[..., Any], *args: Any, returns: int = 1) -> Any:
        """Begin a call of a function at a module's top level on one core; gives what `wait` takes, one for each result.

        A result that was begun may be an argument: it goes from worker to worker and not through this process.
        """
        remote = self._ray.remote(function).options(num_cpus=1, max_retries=RETRIES, num_returns=returns)
        return remote.remote(*args)

    def actor(self, kind: type, *args: Any, gpus: float = 0.0) -> Any:
        """An object of a class in a process of its own; one that dies is made again, and its calls are repeated."""
        options = {"num_cpus": 1, "num_gpus": gpus, "max_restarts": -1, "max_task_retries": RETRIES}
        return self._ray.remote(kind).options(**options).remote(*args)

    def wait(self, pending: list[Any], timeout_s: float) -> list[Any]:
        """Those of what was begun that are done by now, one at least unless the time is over."""
        done, _ = self._ray.wait(pending, num_returns=1, timeout=timeout_s)
        return list(done)

    def result(self, begun: Any) -> Any:
        """What a call gave; SeenitError where it failed, StoreError where the cluster did."""
        try:
            return self._ray.get(begun)
        except self._ray.exceptions.RayTaskError as error:
            cause = error.cause
            if isinstance(cause, SeenitError):
                raise cause from None
            raise SeenitError(f"a task failed on the cluster: {type(cause).__name__}: {first_line(cause)}") from error
        except self._ray.exceptions.RayError as error:
            raise StoreError(
                f"the cluster lost a worker too often ({type(error).__name__}); run the same command again to go on"
            ) from error

    def share(self, value: Any) -> Any:
        """A value that many calls take as an argument, sent to each machine once."""
        return self._ray.put(value)

    def map(self, function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
        """The results of calls as they are done, in no order of note; begun as workers become free."""
        waiting, pending = iter(arguments), list[Any]()
        try:
            while True:
                pending += [self.task(function, *args) for args in islice(waiting, 2 * self.cpus - len(pending))]
                if not pending:
                    return
                for done in self.wait(pending, 1.0):
                    pending.remove(done)
                    yield self.result(done)
        finally:
            for begun in pending:
                self._ray.cancel(begun, force=False)


@contextmanager
def open_cluster(address: str, cpus: int | None = None) -> Iterator[Cluster]:
    """Connect to the cluster at an address (`auto`: the one that this machine belongs to), or start `local`.

    cpus  of a local one; None: all
    SeenitError where Ray is not installed or no cluster answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what failed is said here, in one line
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise SeenitError("--ray needs Ray; install it with: pip install 'seenit[ray]'") from None
    own: dict[str, Any] = {"num_cpus": max(FEWEST_CPUS, cpus or os.cpu_count() or 1), "include_dashboard": False}
    with _signals_kept():
        try:
            _refuse_nobody(address)
            ray.init(
                address=address,
                logging_level=logging.ERROR,
                log_to_driver=False,
                **(own if address == LOCAL else {}),
            )
        except Exception as error:  # Ray has many, and connection errors of several libraries
            if address == LOCAL:
                raise SeenitError(
                    f"Ray cannot be started here: {first_line(error)}; try again when this machine is less busy, or"
                    " leave --ray out"
                ) from None
            raise SeenitError(
                f"no Ray cluster answers at {address}: {first_line(error)}; start one with: ray start --head, or use"
                f" --ray {LOCAL}"
            ) from None
    try:
        yield Cluster(ray)
    finally:
        with _signals_kept():
            ray.shutdown()


def _refuse_nobody(address: str) -> None:
    """OSError where nothing listens at `host:port`, which Ray itself takes minutes to say."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts a handler of its own in place of ours."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
