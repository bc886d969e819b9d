"""The AWS door with S3 behind it on a real HTTP server, and a client of botocore's for it."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import botocore.session
import uvicorn
from botocore.config import Config

from turnwise import errors
from turnwise.access import sigv2, sigv4
from turnwise.control.objects.buckets import Buckets
from turnwise.domain.access import ALL_ACTIONS, Account, Principal
from turnwise.storage.blobs import FolderBlobs
from turnwise.storage.sql import SqlStore
from turnwise.system import SYSTEM_CLOCK, new_id
from turnwise.wire.aws.door import AnySignature, AwsDoor, Outcome
from turnwise.wire.aws.s3.service import S3
from turnwise.wire.aws.service import Call

REGION = "us-west-2"
SECRET = "a-secret"


class Served:
    """A server, its buckets, and what its door has told the audit trail."""

    def __init__(self, folder: Path, store: SqlStore) -> None:
        self.blobs = FolderBlobs(folder / "blobs")
        self.buckets = Buckets(store, self.blobs, SYSTEM_CLOCK, new_id)
        self.url = ""
        self.outcomes: list[Outcome] = []
        self.principals = {
            "ALICE": Principal(account_id="acc_alice", name="alice"),
            "BOB": Principal(account_id="acc_bob", name="bob"),
            "READER": Principal(account_id="acc_alice", actions=frozenset({"read"})),
            "AGENT": Principal(account_id="acc_alice", actions=ALL_ACTIONS - {"read", "manage"}),
            "NARROW": Principal(account_id="acc_alice", job_ids=frozenset({"job_a"})),
        }

    def door(self) -> AwsDoor:
        return AwsDoor(
            [S3(self.buckets)],
            verify=self._verify,
            account=self._account,
            region=REGION,
            observe=self._observe,
        )

    async def _verify(self, request: sigv4.SignedRequest, signature: AnySignature) -> Principal:
        if signature.access_key_id not in self.principals:
            raise errors.UnknownKey("this key does not exist")
        if isinstance(signature, sigv2.PresignedUrl):
            sigv2.check_time(signature, SYSTEM_CLOCK.now())
            sigv2.check_signature(request, signature, SECRET)
        else:
            sigv4.check_time(signature, SYSTEM_CLOCK.now())
            sigv4.check_signature(request, signature, SECRET)
        return self.principals[signature.access_key_id]

    async def _account(self, account_id: str) -> Account:
        number = {"acc_alice": "000000000001", "acc_bob": "000000000002"}[account_id]
        return Account(account_id=account_id, slug=account_id[4:], number=number)

    async def _observe(self, call: Call, outcome: Outcome) -> None:
        self.outcomes.append(outcome)

    def client(self, who: str = "ALICE", secret: str = SECRET, **config: Any) -> Any:
        """botocore's own client; it blocks, so call it in a thread."""
        settings: dict[str, Any] = {
            "retries": {"total_max_attempts": 1},
            "read_timeout": 10,
        } | config
        session = botocore.session.get_session()
        return session.create_client(
            "s3",
            region_name=REGION,
            endpoint_url=self.url,
            aws_access_key_id=who,
            aws_secret_access_key=secret,
            config=Config(**settings),
        )


@contextlib.asynccontextmanager
async def served(folder: Path, store: SqlStore) -> AsyncIterator[Served]:
    made = Served(folder, store)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    config = uvicorn.Config(
        made.door(),
        lifespan="off",
        ws="none",
        http="httptools",
        log_config=None,
        timeout_graceful_shutdown=1,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    made.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield made
    finally:
        await server.shutdown(sockets=[listener])
