"""Where units run: the only file that knows Dask's resources.

A stage that wants a GPU is submitted with ``resources={"GPU": 1}`` at submission, because annotations on
bags are lost to graph fusion; and it is checked first that some worker offers one, because a resource that
nobody offers waits for ever.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from daskpipe.core.errors import ClusterError
from daskpipe.engine.attempts import Mark
from daskpipe.engine.dispatcher import Call, WorkerLost
from daskpipe.engine.units import Receipt, Unit

if TYPE_CHECKING:
    from distributed import Client

GPU = "GPU"
"""Name of the Dask resource that a worker with a GPU offers, one a GPU."""

CPU = "CPU"
"""Name of the Dask resource that a worker of a site's pool without GPUs offers, one a thread."""


class Supply(Protocol):
    """What brings workers when units wait for them: the pools of a site."""

    @property
    def resources(self) -> frozenset[str]:
        """The resources, `GPU` and `CPU`, that can be had, whether or not a worker offers them now."""

    def want(self, resource: str, n_units: int) -> None:
        """Tell how many units that need a resource wait or are under way; return at once.

        Raises
        ------
        ClusterError
            If workers that offer it cannot be had.
        """


@dataclass(frozen=True)
class Workers:
    """Connected client that units run on, with an optional supply of workers and an optional check of each worker."""

    client: Client
    supply: Supply | None = None
    admit: Callable[[Collection[str]], set[str]] | None = None
    """Returns which of the living workers, by address, may get units; all if it is None."""


def offers(client: Client) -> dict[str, dict[str, float]]:
    """Return what each living worker offers, by address."""
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return {address: dict(worker["resources"]) for address, worker in workers.items()}


def gpu_stages(workers: Workers, devices: dict[str, str]) -> frozenset[str]:
    """Return the stages that run on GPU workers.

    Parameters
    ----------
    workers
        Those that there are, and those that can be had.
    devices
        Device of each stage that uses a potential: ``auto``, ``cuda`` or ``cpu``. ``auto`` takes GPU workers
        where there are any.

    Raises
    ------
    ClusterError
        If a stage needs ``cuda`` and no worker offers a GPU.
    """
    offered = offers(workers.client)
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
    """Return what workers offer, in words."""
    if not offered:
        return "no workers"
    return "; ".join(
        f"{address}: " + (", ".join(f"{name}={amount:g}" for name, amount in resources.items()) or "nothing")
        for address, resources in sorted(offered.items())
    )


class DaskPool:
    """Submits units to a Dask scheduler.

    Parameters
    ----------
    workers
        Those that there are, and those that can be had; not closed here.
    on_gpu
        Stages that are held to workers which offer a GPU.
    """

    def __init__(self, workers: Workers, on_gpu: frozenset[str]) -> None:
        self.client = workers.client
        self.supply = workers.supply
        self.on_gpu = on_gpu
        self.admit = workers.admit
        self._admitted: set[str] | None = None
        """Addresses of the workers that may get units; None while there has been no other."""
        self._bound: dict[Any, set[str]] = {}
        """Addresses of the workers that a future is bound to, if it is."""
        self._living: set[str] = set()
        self._find: dict[Any, Callable[[], Receipt | None]] = {}
        """How the receipt of each future is found on disk."""
        self._slots: tuple[str, float, int] | None = None
        """Stage, until when it holds, and how many slots there are: asking the scheduler takes as long as a commit."""

    def _resource(self, stage: str) -> str | None:
        """Resource that units of a stage are held to; a site with pools for both keeps CPU work off its GPUs."""
        if stage in self.on_gpu:
            return GPU
        return CPU if self.supply is not None and CPU in self.supply.resources else None

    def want(self, stage: str, n_units: int) -> bool:
        """Tell what brings workers how many units of a stage are not committed; whether there is such a thing."""
        if self.supply is None:
            return False
        self.supply.want(self._resource(stage) or GPU, n_units)
        return True

    def slots(self, stage: str) -> int:
        """One unit a GPU for GPU stages; else one a thread, and one more a worker so that none waits for the driver."""
        now = time.monotonic()
        if self._slots is not None and self._slots[0] == stage and now < self._slots[1]:
            return self._slots[2]
        n_slots = self._count_slots(stage)
        self._slots = (stage, now + SLOTS_SECONDS, n_slots)
        return n_slots

    def _count_slots(self, stage: str) -> int:
        try:
            living = self.client.scheduler_info(n_workers=-1)["workers"]
        except (OSError, KeyError):  # the scheduler does not answer, or has just gone: nobody works now
            return 0
        workers = living.values()
        if self.admit is not None:
            admitted = self.admit(living)
            self._living = set(living)
            # Once there was one: a worker that a unit ends comes back under another address, and the next would end it.
            if self._admitted is not None or len(admitted) < len(living):
                self._admitted = admitted
            workers = [living[address] for address in admitted]
        resource = self._resource(stage)
        if resource == GPU:
            return int(sum(worker["resources"].get(GPU, 0) for worker in workers))
        return sum(
            worker["nthreads"] + 1 for worker in workers if resource is None or worker["resources"].get(resource)
        )

    def submit(self, unit: Unit, call: Call) -> Any:
        """Submit one unit, with its resources, as one task: there is no graph whose fusion could lose them.

        No two tasks have one name: of a name that it still holds, the client hands out the old future, with the error
        for which the unit is submitted again; and on a scheduler that others use, another run's receipt is not ours.
        """
        resource = self._resource(unit.stage)
        resources = None if resource is None else {resource: 1}
        name = f"{call.name}-{uuid.uuid4().hex[:16]}"
        bound = None if self._admitted is None else sorted(self._admitted)
        handle = self.client.submit(call.function, key=name, resources=resources, workers=bound, retries=0, pure=False)
        self._find[handle] = call.find
        if bound is not None:
            self._bound[handle] = set(bound)
        return handle

    def _is_stranded(self, handle: Any) -> bool:
        """Tell whether all workers that a future is bound to are gone; Dask would wait for them for ever."""
        bound = self._bound.get(handle)
        return bound is not None and handle.status == "pending" and not bound & self._living

    def wait(self, handles: Iterable[Any], timeout: float) -> set[Any]:
        """Return the futures that are done, those that went with the scheduler among them."""
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

    def result(self, handle: Any) -> Receipt:
        """Return a receipt and release its future at once."""
        from concurrent.futures import CancelledError

        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker, NoValidWorkerError

        try:
            if self._is_stranded(handle):
                raise WorkerLost("all workers that it could run on went away")
            find = self._find.get(handle)
            found = find() if find is not None and handle.status == "finished" else None
            receipt: Receipt = found or handle.result()
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

    def cancel(self, handles: Iterable[Any]) -> None:
        """Cancel units that are under way, if the scheduler still answers."""
        handles = list(handles)
        if handles and self.client.status == "running":
            self.client.cancel(handles, force=True)
        for handle in handles:
            # Now, and not when it is garbage: an error's traceback may hold it while the unit is submitted again, and
            # the new result would stay on the cluster.
            self._find.pop(handle, None)
            self._bound.pop(handle, None)
            handle.release()

    def died(self, mark: Mark) -> bool:
        """Whether the process that made a mark is gone while its nanny lives on: it died, and its machine did not.

        A nanny whose job is cancelled ends its worker first, so it is asked a second time.
        """
        if not mark.nanny or self._ask(mark.nanny, partial(_process_lives, mark.pid)) is not False:
            return False
        time.sleep(NANNY_SECONDS)
        return self._ask(mark.nanny, partial(_process_lives, mark.pid)) is False

    def end(self, mark: Mark) -> None:
        """End the process that made a mark; its nanny starts another one."""
        if mark.nanny:
            self._ask(mark.nanny, partial(_end_process, mark.pid))

    def _ask(self, nanny: str, question: Callable[..., Any]) -> Any:
        """Call a function where a nanny runs; ``None`` if that does not answer or is about to end."""
        from distributed import rpc
        from distributed.protocol.pickle import dumps

        async def ask() -> Any:
            async with rpc(nanny, connection_args=self.client.connection_args, timeout=NANNY_SECONDS) as remote:
                return await asyncio.wait_for(remote.run(function=dumps(question)), NANNY_SECONDS)

        try:
            answer = self.client.sync(ask)
        except (OSError, TimeoutError):  # distributed's errors of connections are OSErrors
            return None
        return answer["result"] if answer["status"] == "OK" else None


SLOTS_SECONDS = 0.5
"""How long the number of slots is taken to stay as it was."""

NANNY_SECONDS = 2.0
"""Time in which a nanny must answer."""


def _process_lives(pid: int, dask_worker: Any) -> bool | None:
    """Whether a nanny's process is still the one with this id; ``None`` if the nanny is about to end."""
    import psutil
    from distributed import Status

    if dask_worker.status in (Status.closing, Status.closed, Status.closing_gracefully):
        return None
    process = dask_worker.process
    if process is None or process.pid != pid:
        return False
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)


def _end_process(pid: int, dask_worker: Any) -> None:
    if dask_worker.process is not None and dask_worker.process.pid == pid:
        os.kill(pid, signal.SIGKILL)


RETIRE_SECONDS = 1.0
"""Time that a worker leaves to what it has to say about its last unit."""


def retire() -> None:
    """Close the worker that this runs on as soon as it has nothing more to do; its job ends with its last worker.

    When this returns the scheduler gives it no unit any more: one that it hands on must not come back to it.
    """
    from distributed import get_worker
    from distributed.utils import sync

    worker = get_worker()
    retired = {"close_workers": False, "remove": False, "stimulus_id": "the worker ends soon"}
    sync(worker.loop, worker.scheduler.retire_workers, workers=[worker.address], **retired)

    async def close() -> None:
        while worker.state.executing_count:
            await asyncio.sleep(0.05)
        await asyncio.sleep(RETIRE_SECONDS)
        await worker.close(nanny=True, reason="the worker ends soon")

    worker.loop.add_callback(close)
