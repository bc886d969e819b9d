"""MLflow as a destination of events: one server per account."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from turnwise.domain.job import Job, JobKind
from turnwise.ports import Clock, Resources, Store
from turnwise.tracking.details import run_state
from turnwise.tracking.feed import Feed
from turnwise.tracking.mlflow import Mlflow


class MlflowRuns:
    """A run and its traces for each job that asks for them."""

    name = "mlflow"

    def __init__(
        self,
        *,
        store: Store,
        resources: Resources,
        address: Callable[[str], Awaitable[str]],
        clock: Clock,
        largest_step: Callable[[Job], Awaitable[int]],
        traces_per_step: int,
    ) -> None:
        """`address` gives the socket of an account's MLflow; `largest_step` how many rollouts a
        job makes in its largest step, validation included (0: unknown).
        """
        self._store = store
        self._resources = resources
        self._address = address
        self._clock = clock
        self._largest_step = largest_step
        self._traces_per_step = traces_per_step
        self._clients: dict[str, Mlflow] = {}  # by account

    def wants(self, job: Job) -> bool:
        """Whether the job asks for it."""
        return job.spec.tracking.mlflow

    def feed(self, job: Job) -> Feed:
        """What tells its events."""
        return Feed(
            job,
            store=self._store,
            resources=self._resources,
            mlflow=self._client(job.account_id),
            clock=self._clock,
            share=self._share,
        )

    async def told(self, job: Job) -> int | None:
        """The newest event that is told, with all before it; None before there is a run."""
        state = await run_state(self._resources, job.account_id, job.job_id)
        return None if state is None else min(state.told, state.traced)

    async def close(self) -> None:
        """Free connections."""
        for client in self._clients.values():
            await client.close()

    def _client(self, account_id: str) -> Mlflow:
        if account_id not in self._clients:
            self._clients[account_id] = Mlflow(lambda: self._address(account_id))
        return self._clients[account_id]

    async def _share(self, job: Job) -> float:
        """The part of a job's rollouts that are traced, so that no step has too many."""
        largest = await self._largest_step(job)
        if job.spec.kind is JobKind.TRAIN:
            largest = max(largest, job.spec.batch.global_batch_size * job.spec.batch.group_size)
        return min(1.0, self._traces_per_step / largest) if largest else 1.0
