"""The MLflow server's process: one uvicorn worker on a Unix socket.

    python -m turnwise.launching.mlflow_child FD SOCKET FOLDER

FD is the reading end of a pipe whose other end only the parent holds: when that closes, whatever
the reason, this process leaves. FOLDER holds mlflow.db and artifacts/. Once SOCKET exists, the
database is migrated and requests are answered.

MLflow's command line would start four workers and a job runner, 2.7 GB in all; the same application
in one worker takes 250 MB. Its configuration then has to be given by variables that MLflow calls
private, so they are tied to the version that the project pins.
"""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Training has the processor first.
_NICENESS = 5


def main(argv: list[str]) -> None:
    """Serve until the parent leaves."""
    descriptor, address, folder = int(argv[0]), Path(argv[1]), Path(argv[2])
    # Ctrl-C in a terminal reaches the whole process group; the server decides when we end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, args=(descriptor,), daemon=True).start()
    os.umask(0o077)
    database, artifacts = folder / "mlflow.db", folder / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    _set_write_ahead(database)
    os.environ.update(_environment(database, artifacts))
    app = _application(artifacts)
    os.nice(_NICENESS)  # not earlier: somebody waits for the start
    _serve(app, address)


def _leave_with_parent(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os._exit(0)  # SQLite's log makes an end at any moment safe


def _set_write_ahead(database: Path) -> None:
    """Readers and the writer then do not wait for each other; the file remembers it."""
    connection = sqlite3.connect(database)
    try:
        connection.execute("pragma journal_mode=wal")
    finally:
        connection.close()


def _environment(database: Path, artifacts: Path) -> dict[str, str]:
    return {
        "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_REGISTRY_STORE": f"sqlite:///{database}",
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(artifacts),
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "HOME": str(database.parent),
    }


def _application(artifacts: Path) -> Any:
    """MLflow's ASGI app, its database migrated, that touches no files but its own."""
    from mlflow.server import handlers
    from mlflow.server.fastapi_app import app

    _confine(artifacts)
    handlers._get_tracking_store()
    return app


def _confine(artifacts: Path) -> None:
    """Let artifacts be nowhere but in that folder.

    A client names where an experiment's or a model's artifacts are, and MLflow would read and
    write there with this process's rights: other accounts' files, or another host.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact import artifact_repository_registry as registry
    from mlflow.utils import file_utils

    local_path: Callable[[str], str] = file_utils.local_file_uri_to_path
    repositories: dict[str, Any] = registry.get_registered_artifact_repositories()
    local, proxied = repositories["file"], repositories["mlflow-artifacts"]

    def guarded_local(artifact_uri: str, *args: Any, **kwargs: Any) -> Any:
        # As the repository itself reads it: "%2e%2e" in a URI is "..".
        path = Path(local_path(artifact_uri)).resolve()
        if urlsplit(artifact_uri).netloc or not path.is_relative_to(artifacts.resolve()):
            raise MlflowException.invalid_parameter_value(
                "this server keeps artifacts in its own folder only; leave the location out"
            )
        return local(artifact_uri, *args, **kwargs)

    def guarded_proxied(artifact_uri: str, *args: Any, **kwargs: Any) -> Any:
        if urlsplit(artifact_uri).netloc:
            raise MlflowException.invalid_parameter_value(
                "this server reads no other server's artifacts"
            )
        return proxied(artifact_uri, *args, **kwargs)

    kept = {scheme: repositories[scheme] for scheme in ("runs", "models")}
    repositories.clear()
    repositories.update(kept)
    repositories.update(
        {"": guarded_local, "file": guarded_local, "mlflow-artifacts": guarded_proxied}
    )


def _serve(app: Any, address: Path) -> None:
    import uvicorn

    address.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(address))  # for the owner only, by the umask
    listening.listen(256)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        lifespan="off",
        proxy_headers=False,
        timeout_keep_alive=75,  # longer than those who call keep a connection that is not used
    )
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main(sys.argv[1:])
