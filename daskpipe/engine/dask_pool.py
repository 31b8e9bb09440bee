"""Run units on Dask workers; this is the only module that knows Dask's resources.

Units of a stage that needs a GPU are submitted with ``resources={"GPU": 1}``, because graph fusion loses annotations on
bags. Before that `gpu_stages` checks that some worker offers a GPU, because Dask waits for ever for a resource that no
worker offers.
"""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from daskpipe.core.errors import ClusterError
from daskpipe.engine.attempts import Mark
from daskpipe.engine.dispatcher import UnitCall, WorkerLost
from daskpipe.engine.units import Receipt, Unit

if TYPE_CHECKING:
    from distributed import Client

GPU = "GPU"
"""Name of the Dask resource that a worker with a GPU offers, one a GPU."""

CPU = "CPU"
"""Name of the Dask resource that a worker of a site's pool without GPUs offers, one a thread."""


NOTICES = "daskpipe-notices"
"""Topic of Dask's log of events under which workers send what `daskpipe.core.notices.send_notice` tells."""


class WorkerSupply(Protocol):
    """Start workers when units wait for them; `daskpipe.cluster.job_scaler` does it for the pools of a site."""

    @property
    def resources(self) -> frozenset[str]:
        """Resources, `GPU` and `CPU`, that it can start workers for."""

    def request_workers(self, resource: str, n_units: int) -> None:
        """Ask for workers for the units that need a resource and wait or are under way; return at once.

        Raises
        ------
        ClusterError
            If no worker with that resource can be started.
        """


@dataclass(frozen=True)
class Workers:
    """Hold a connected client, with an optional supply of workers and an optional check of each worker."""

    client: Client
    supply: WorkerSupply | None = None
    admit: Callable[[Collection[str]], set[str]] | None = None
    """Return the addresses, out of those of all living workers, that may get units; None admits all."""


def read_offers(client: Client) -> dict[str, dict[str, float]]:
    """Return the resources that each living worker offers, by address and name."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address: dict(worker["resources"]) for address, worker in workers.items()}


def gpu_stages(workers: Workers, devices: dict[str, str]) -> frozenset[str]:
    """Return the stages that run on GPU workers.

    Parameters
    ----------
    workers
        Those that are connected, and those that can be started.
    devices
        Device of each stage that uses a potential: ``auto``, ``cuda`` or ``cpu``. ``auto`` takes GPU workers
        where there are any.

    Raises
    ------
    ClusterError
        If a stage needs ``cuda`` and no worker offers a GPU.
    """
    offered = read_offers(workers.client)
    has_gpu = any(worker.get(GPU, 0) >= 1 for worker in offered.values())
    has_gpu |= workers.supply is not None and GPU in workers.supply.resources
    for stage, device in devices.items():
        if device == "cuda" and not has_gpu:
            raise ClusterError(
                f"{stage}.device=cuda needs a worker that offers {GPU}=1, and none of the {len(offered)} workers does; "
                f"they offer: {describe_offers(offered)}. Give cluster.gpus=1 (or start workers with "
                f'--resources "{GPU}=1"), or {stage}.device=auto'
            )
    return frozenset(stage for stage, device in devices.items() if has_gpu and device != "cpu")


def describe_offers(offered: dict[str, dict[str, float]]) -> str:
    """Return the resources that workers offer as text."""
    if not offered:
        return "no workers"
    return "; ".join(
        f"{address}: " + (", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "nothing")
        for address, resources in sorted(offered.items())
    )


class DaskPool:
    """Submit units to a Dask scheduler; this is the pool that `daskpipe.engine.dispatcher` uses in a run.

    Parameters
    ----------
    workers
        Those that are connected, and those that can be started. The pool does not close them.
    on_gpu
        Stages that run only on workers which offer a GPU.
    """

    def __init__(self, workers: Workers, on_gpu: frozenset[str]) -> None:
        self.client = workers.client
        self.supply = workers.supply
        self.on_gpu = on_gpu
        self.admit = workers.admit
        self._admitted: set[str] | None = None
        """Addresses of the workers that may get units; None while all were admitted."""
        self._bound: dict[Any, set[str]] = {}
        """Addresses of the workers that a future is bound to, for the futures that are."""
        self._living: set[str] = set()
        self._find: dict[Any, Callable[[], Receipt | None]] = {}
        """Function that reads the receipt of each future from disk."""
        self._slots: tuple[str, float, int] | None = None
        """Stage, end of validity and number of slots: kept, because asking the scheduler takes as long as a commit."""
        self._notices: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._taken: set[str] = set()
        # The handler runs in the client's thread, where nothing may be emitted.
        self.client.subscribe_topic(NOTICES, lambda event: self._notices.put(event[1]))

    def take_notices(self) -> list[str]:
        """Return the messages that units have sent by `daskpipe.core.notices.send_notice`, each of them once."""
        found = []
        while not self._notices.empty():
            if (message := self._notices.get()) not in self._taken:
                self._taken.add(message)
                found.append(message)
        return found

    def _resource_of(self, stage: str) -> str | None:
        """Return the resource that units of a stage need; a site with pools for both keeps CPU work off its GPUs."""
        if stage in self.on_gpu:
            return GPU
        return CPU if self.supply is not None and CPU in self.supply.resources else None

    def request_workers(self, stage: str, n_units: int) -> bool:
        """Ask for workers for the units of a stage that are not committed; return whether anything starts workers."""
        if self.supply is None:
            return False
        self.supply.request_workers(self._resource_of(stage) or GPU, n_units)
        return True

    def count_slots(self, stage: str) -> int:
        """Return how many units of a stage keep all workers busy.

        That is one unit a GPU for GPU stages; else one a thread, and one more a worker, so that no worker waits for the
        driver.
        """
        now = time.monotonic()
        if self._slots is not None and self._slots[0] == stage and now < self._slots[1]:
            return self._slots[2]
        n_slots = self._ask_for_slots(stage)
        self._slots = (stage, now + SLOTS_SECONDS, n_slots)
        return n_slots

    def _ask_for_slots(self, stage: str) -> int:
        try:
            living = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, KeyError):  # the scheduler does not answer, or has just gone
            return 0
        workers = living.values()
        if self.admit is not None:
            admitted = self.admit(living)
            self._living = set(living)
            # It stays set: a worker that ended comes back under another address, and must be checked again.
            if self._admitted is not None or len(admitted) < len(living):
                self._admitted = admitted
            workers = [living[address] for address in admitted]
        resource = self._resource_of(stage)
        if resource == GPU:
            return int(sum(worker["resources"].get(GPU, 0) for worker in workers))
        return sum(
            worker["nthreads"] + 1 for worker in workers if resource is None or worker["resources"].get(resource)
        )

    def submit_unit(self, unit: Unit, call: UnitCall) -> Any:
        """Submit one unit, with its resources, as one task: there is no graph whose fusion could lose them.

        Each task has a name of its own. For a name that it still holds, a client returns the old future, with the error
        for which the unit is submitted again; and on a shared scheduler another run may use the same name.
        """
        resource = self._resource_of(unit.stage)
        resources = None if resource is None else {resource: 1}
        name = f"{call.name}-{uuid.uuid4().hex[:16]}"
        bound = None if self._admitted is None else sorted(self._admitted)
        handle = self.client.submit(call.function, key=name, resources=resources, workers=bound, retries=0, pure=False)
        self._find[handle] = call.find_receipt
        if bound is not None:
            self._bound[handle] = set(bound)
        return handle

    def _is_stranded(self, handle: Any) -> bool:
        """Return whether all workers that a future is bound to are gone; Dask would wait for them for ever."""
        bound = self._bound.get(handle)
        return bound is not None and handle.status == "pending" and not bound & self._living

    def wait_for_any(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Wait until a future is done, at most `timeout` seconds; return those that are done or were lost."""
        from distributed import wait
        from distributed.client import FuturesCancelledError

        handles = list(handles)
        try:
            with self.client.as_current():
                return set(wait(handles, timeout=timeout, return_when="FIRST_COMPLETED").done)
        except TimeoutError:
            return {handle for handle in handles if self._is_stranded(handle)}
        except FuturesCancelledError:
            return {handle for handle in handles if handle.done()}

    def take_receipt(self, handle: Any) -> Receipt:
        """Return the receipt of a future that is done, and release the future; raise the error of the unit, if any.

        Raises
        ------
        WorkerLost
            If the worker went away.
        """
        from concurrent.futures import CancelledError

        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker, NoValidWorkerError

        try:
            if self._is_stranded(handle):
                raise WorkerLost("all workers that it could run on went away")
            find = self._find.get(handle)
            on_disk = find() if find is not None and handle.status == "finished" else None
            receipt: Receipt = on_disk or handle.result()
        except KilledWorker as error:
            self._slots = None
            address = error.last_worker.address
            raise WorkerLost(f"worker {address} went away", address) from error
        except (NoValidWorkerError, CancelledError, FutureCancelledError) as error:
            raise WorkerLost(str(error)) from error
        finally:
            self._find.pop(handle, None)
            self._bound.pop(handle, None)
            handle.release()
        return receipt

    def cancel_units(self, handles: Iterable[Any]) -> None:
        """Cancel units that are under way, if the scheduler still answers."""
        handles = list(handles)
        if handles and self.client.status == "running":
            self.client.cancel(handles, force=True)
        for handle in handles:
            # Released now, and not by the garbage collector: the traceback of an error may keep it while the unit is
            # submitted again, and then the new result would stay on the cluster.
            self._find.pop(handle, None)
            self._bound.pop(handle, None)
            handle.release()

    def has_died(self, mark: Mark) -> bool:
        """Return whether the process that made a mark died while its machine lives: its nanny still answers.

        A nanny whose job is cancelled ends its worker first, so it is asked a second time.
        """
        if not mark.nanny or self._run_on_nanny(mark.nanny, partial(_process_lives, mark.pid)) is not False:
            return False
        time.sleep(NANNY_SECONDS)
        return self._run_on_nanny(mark.nanny, partial(_process_lives, mark.pid)) is False

    def end_process(self, mark: Mark) -> None:
        """Kill the process that made a mark; its nanny starts another one."""
        if mark.nanny:
            self._run_on_nanny(mark.nanny, partial(_kill_process, mark.pid))

    def _run_on_nanny(self, nanny: str, question: Callable[..., Any]) -> Any:
        """Call a function in the process of a nanny; return ``None`` if that does not answer or is about to end."""
        from distributed import rpc
        from distributed.protocol.pickle import dumps

        async def call_nanny() -> Any:
            async with rpc(nanny, connection_args=self.client.connection_args, timeout=NANNY_SECONDS) as remote:
                return await asyncio.wait_for(remote.run(function=dumps(question)), NANNY_SECONDS)

        try:
            answer = self.client.sync(call_nanny)
        except (OSError, TimeoutError):  # connection errors of distributed are OSErrors
            return None
        return answer["result"] if answer["status"] == "OK" else None


SLOTS_SECONDS = 0.5
"""Seconds for which the number of slots is kept before the scheduler is asked again."""

NANNY_SECONDS = 2.0
"""Seconds in which a nanny must answer."""


def _process_lives(pid: int, dask_worker: Any) -> bool | None:
    """Return whether the process of a nanny still is the one with this id; ``None`` if the nanny is about to end."""
    import psutil
    from distributed import Status

    if dask_worker.status in (Status.closing, Status.closed, Status.closing_gracefully):
        return None
    process = dask_worker.process
    if process is None or process.pid != pid:
        return False
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def _kill_process(pid: int, dask_worker: Any) -> None:
    """Kill the process of a nanny if it is the one with this id."""
    if dask_worker.process is not None and dask_worker.process.pid == pid:
        os.kill(pid, signal.SIGKILL)


RETIRE_SECONDS = 1.0
"""Seconds that a worker waits before it closes, so that the result of its last unit is sent."""


def retire_worker() -> None:
    """Close the worker that this runs on as soon as it is idle; its job ends with its last worker.

    When this returns, the scheduler gives the worker no more units: a unit that it hands on must not come back to it.
    """
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    retired = {"close_workers": False, "remove": False, "stimulus_id": "the worker ends soon"}
    sync(worker.loop, worker.scheduler.retire_workers, workers=[worker.address], **retired)

    async def close_when_idle() -> None:
        while worker.state.executing_count:
            await asyncio.sleep(0.05)
        await asyncio.sleep(RETIRE_SECONDS)
        await worker.close(nanny=True, reason="the worker ends soon")

    worker.loop.add_callback(close_when_idle)
