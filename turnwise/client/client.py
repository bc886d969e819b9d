"""A synchronous client of a Turnwise server."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import httpx

from turnwise import errors
from turnwise.client.archive import unpack

Json = dict[str, Any]
FINAL = frozenset({"COMPLETED", "FAILED", "STOPPED"})
#: One event request waits this long at the server before it is asked again.
WAIT_S = 20.0
#: An export's files are verified, and torch is imported for a merge, before its first byte comes.
EXPORT_WAIT_S = 600.0
#: A test of an agent waits for the agent twice: for its health, and for an answer.
AGENT_TEST_S = 90.0
DEFAULT_URL = "http://127.0.0.1:8420"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def connect(url: str = "", key: str = "", *, data_dir: Path | None = None) -> Client:
    """A client for `url` with `key`.

    What is not given comes from TURNWISE_URL and TURNWISE_API_KEY, then from the files that a
    server on this machine leaves in its data folder (`server.url`, `admin.key`; the folder is
    `data_dir`, else TURNWISE_DATA_DIR, else "data"). The key file is for that server alone.
    """
    folder = data_dir or Path(os.environ.get("TURNWISE_DATA_DIR", "data"))
    local = _read(folder / "server.url")
    url = url or os.environ.get("TURNWISE_URL", "") or local or DEFAULT_URL
    key = key or os.environ.get("TURNWISE_API_KEY", "")
    if not key and (url.rstrip("/") == local or _host(url) in _LOOPBACK):
        key = _read(folder / "admin.key")
    if not key:
        raise errors.Unauthenticated(
            f"no API key for {url}: set TURNWISE_API_KEY, or name the data folder of a server on "
            f"this machine with --data-dir (looked in {folder})"
        )
    return Client(url, key)


def _host(url: str) -> str:
    try:
        host = httpx.URL(url).host
    except httpx.InvalidURL:
        host = ""
    if not host:
        raise errors.InvalidInput("url", url, "is no HTTP address", remedy="use http://host:port")
    return host


def _read(file: Path) -> str:
    try:
        return file.read_text().strip() if file.is_file() else ""
    except OSError as error:
        raise errors.Denied(f"{file} cannot be read: {error.strerror}") from None


class Client:
    """Calls one server. Raises the same errors as the server's own rooms.

    Use as a context manager, or call `close`.
    """

    def __init__(self, url: str, key: str) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(30.0, read=WAIT_S + 30.0),
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Free connections."""
        self._http.close()

    def whoami(self) -> Json:
        """The caller's account and rights: name, account, account_number, region, access_key_id,
        actions, job_ids, is_operator.
        """
        return self._call("GET", "/api/v1/whoami")

    def aws_environment(self) -> dict[str, str]:
        """The variables that bring AWS's own clients to this server, with this client's key.

        Raises `Conflict` for a key of an earlier version, which cannot sign requests.
        """
        who = self.whoami()
        if not who["access_key_id"]:
            raise errors.Conflict(
                f"the key {who['name']!r} was made by an earlier version and cannot sign requests; "
                "make a new one with `turnwise keys create`"
            )
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_REGION": who["region"],  # for the sagemaker SDK
            "AWS_DEFAULT_REGION": who["region"],  # for boto3
            "AWS_ACCESS_KEY_ID": who["access_key_id"],
            "AWS_SECRET_ACCESS_KEY": self._key,
            "SAGEMAKER_MLFLOW_CUSTOM_ENDPOINT": self.url,
            "RFT_RUNTIME_ENDPOINT": self.url,
            "SAGEMAKER_VALIDATE_ROLE": "false",
        }

    def create_account(self, slug: str) -> Json:
        """A new account: slug and number. For the operator."""
        return self._call("POST", "/api/v1/accounts", json={"slug": slug})

    def accounts(self) -> list[Json]:
        """All accounts. For the operator."""
        found: list[Json] = self._call("GET", "/api/v1/accounts")["accounts"]
        return found

    def create_key(
        self, name: str, *, account: str = "", jobs: Sequence[str] = (), actions: Sequence[str] = ()
    ) -> Json:
        """A new key with its `secret`, which is not shown again.

        `jobs` and `actions` limit it; `account` is another than the caller's, for the operator.
        """
        wanted = {"name": name, "account": account, "jobs": [*jobs], "actions": [*actions]}
        return self._call("POST", "/api/v1/keys", json=wanted)

    def keys(self, *, account: str = "") -> list[Json]:
        """Keys, oldest first, revoked ones included."""
        params = {"account": account}
        found: list[Json] = self._call("GET", "/api/v1/keys", params=params)["keys"]
        return found

    def revoke_key(self, key_id: str, *, account: str = "") -> Json:
        """End a key, at once."""
        path = f"/api/v1/keys/{quote(key_id, safe='')}"
        return self._call("DELETE", path, params={"account": account})

    def create_job(self, job_file: Mapping[str, Any]) -> Json:
        """Validate and start a job; the job."""
        return self._call("POST", "/api/v1/jobs", json=job_file)

    def validate_job(self, job_file: Mapping[str, Any]) -> Json:
        """The job file with every default written out, or `InvalidInput`."""
        return self._call("POST", "/api/v1/jobs/validate", json=job_file)

    def jobs(self, *, status: str | None = None) -> list[Json]:
        """Newest first."""
        found: list[Json] = self._call("GET", "/api/v1/jobs", params={"status": status})["jobs"]
        return found

    def job(self, name: str) -> Json:
        """One job, by name or id."""
        return self._call("GET", _job(name))

    def stop(self, name: str) -> Json:
        """Ask a job to stop."""
        return self._call("POST", _job(name, "/stop"))

    def resume(self, name: str) -> Json:
        """Continue a stopped or failed job."""
        return self._call("POST", _job(name, "/resume"))

    def delete(self, name: str) -> Json:
        """Remove an ended job."""
        return self._call("DELETE", _job(name))

    def events(
        self, name: str, *, after: int = 0, kinds: tuple[str, ...] = (), wait_s: float = 0.0
    ) -> list[Json]:
        """Events past `after`, at most 1000; waits up to `wait_s` for the first."""
        params: Json = {"after": after, "kind": list(kinds), "wait_s": wait_s}
        found: list[Json] = self._call("GET", _job(name, "/events"), params=params)["events"]
        return found

    def follow(self, name: str, *, after: int = 0, kinds: tuple[str, ...] = ()) -> Iterator[Json]:
        """Every event (of these kinds) as it comes, until the job has ended and all are read."""
        while True:
            has_ended = self.job(name)["status"] in FINAL
            page = self.events(name, after=after, wait_s=0.0 if has_ended else WAIT_S)
            yield from (event for event in page if not kinds or event["kind"] in kinds)
            if page:
                after = page[-1]["seq"]
            elif has_ended:
                return

    def wait(self, name: str, *, poll_s: float = 0.5) -> Json:
        """Wait until the job has ended; the job."""
        while (job := self.job(name))["status"] not in FINAL:
            time.sleep(poll_s)
        return job

    def metrics(self, name: str, *, names: tuple[str, ...] = ()) -> dict[str, list[Json]]:
        """Curves by metric name: [{step, value, seq}]."""
        body = self._call("GET", _job(name, "/metrics"), params={"metric": list(names)})
        found: dict[str, list[Json]] = body["metrics"]
        return found

    def ledger(self, name: str) -> list[Json]:
        """Sampled tokens per bin and step: [{step, bins}]."""
        found: list[Json] = self._call("GET", _job(name, "/ledger"))["steps"]
        return found

    def findings(self, name: str) -> list[Json]:
        """What is wrong with a job, errors first: code, severity, title, evidence, remedy and the
        filters that show `rollouts` of it.
        """
        found: list[Json] = self._call("GET", _job(name, "/findings"))["findings"]
        return found

    def results(self, name: str) -> Json:
        """What an evaluation found: figures by model, comparisons, a table of its rows."""
        return self._call("GET", _job(name, "/results"))

    def results_csv(self, name: str) -> bytes:
        """An evaluation's table, a line per row and slot, as CSV."""
        return self._send("GET", _job(name, "/results.csv")).content

    def export(
        self, name: str, what: str, file: Path, *, format: str = "csv", **filters: Any
    ) -> int:
        """Write a job's "metrics" or "rollouts" to a new file, as csv, json or parquet; its bytes.

        Filters: `metric` (beginnings of names), or `step`, `purpose` and `status`. The file is
        there whole or not at all. Raises `InvalidInput` for one that exists.
        """
        if file.exists():
            raise errors.InvalidInput("file", str(file), "exists", remedy="name a new file")
        params = {key: value for key, value in filters.items() if value is not None}
        request = self._http.build_request(
            "GET",
            _job(name, f"/export/{quote(what, safe='')}"),
            params={"format": format, **params},
            timeout=httpx.Timeout(30.0, read=EXPORT_WAIT_S),
        )
        partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
        try:
            with contextlib.closing(self._sent(request, stream=True)) as reply:
                size = _save(reply, partial)
            partial.replace(file)
        except httpx.TransportError as error:
            raise errors.Unavailable(
                f"the transfer of {what} of {name} broke off ({error}); try again"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            raise errors.Unavailable(f"{file} cannot be written: {reason}") from error
        finally:
            partial.unlink(missing_ok=True)
        return size

    def usage(self, name: str) -> Json:
        """What a job cost so far: train_tokens, prefill_tokens (of which cached_prefill_tokens
        came from the prefix cache) and sample_tokens.
        """
        return self._call("GET", _job(name, "/usage"))

    def rollouts(self, name: str, **filters: Any) -> Json:
        """A page: {rollouts, next_after}. Filters: step, purpose, status, after, limit."""
        return self._call("GET", _job(name, "/rollouts"), params=filters)

    def rollout(self, rollout_id: str) -> Json:
        """One rollout with messages, tokens and turns."""
        return self._call("GET", f"/api/v1/rollouts/{quote(rollout_id, safe='')}")

    def models(self, *, group: str | None = None) -> list[Json]:
        """Registered models, oldest first."""
        body = self._call("GET", "/api/v1/models", params={"group": group})
        found: list[Json] = body["models"]
        return found

    def model(self, name: str) -> Json:
        """A model by id, "group/version" or "group"."""
        return self._call("GET", f"/api/v1/models/{quote(name)}")

    def delete_model(self, name: str) -> Json:
        """Delete one version, "group/version", and its files; as it was."""
        return self._call("DELETE", f"/api/v1/models/{quote(name)}")

    def audit(self, **filters: Any) -> Json:
        """A page of the account's audit trail: {records: [{seq, digest, record}], next}.

        Filters: name, user, resource, resource_type, source, access_key_id, event_id, category,
        read_only, since, until, before, after, oldest_first, limit.
        """
        return self._call("GET", "/api/v1/audit/records", params=filters)

    def audit_records(self, **filters: Any) -> Iterator[Json]:
        """Every record that the filters of `audit` find, oldest first."""
        after = 0
        while True:
            page = self.audit(**filters, oldest_first=True, after=after, limit=1000)
            yield from page["records"]
            if page["next"] is None:
                return
            after = page["next"]

    def verify_audit(self) -> Json:
        """Whether the account's audit trail is as it was recorded, and where it is not."""
        found: Json = self._send("GET", "/api/v1/audit/verification", timeout=EXPORT_WAIT_S).json()
        return found

    def trails(self) -> list[Json]:
        """Trails of the account, by name."""
        found: list[Json] = self._call("GET", "/api/v1/audit/trails")["trails"]
        return found

    def create_trail(
        self, name: str, *, bucket: str = "", prefix: str = "", folder: str = ""
    ) -> Json:
        """A trail that delivers to a bucket, or to a folder on the server; not yet logging."""
        place = {"name": name, "bucket": bucket, "prefix": prefix, "folder": folder}
        return self._call("POST", "/api/v1/audit/trails", json=place)

    def start_trail(self, name: str) -> Json:
        """Deliver what happens from now on."""
        return self._call("POST", _trail(name, "/start"))

    def stop_trail(self, name: str) -> Json:
        """Deliver nothing that happens after."""
        return self._call("POST", _trail(name, "/stop"))

    def select_events(
        self, name: str, *, classic: Sequence[Json] = (), advanced: Sequence[Json] = ()
    ) -> Json:
        """Replace what a trail selects, by CloudTrail's event selectors."""
        selectors = {"classic": list(classic), "advanced": list(advanced)}
        return self._call("PUT", _trail(name, "/selectors"), json=selectors)

    def delete_trail(self, name: str) -> Json:
        """Forget a trail; what it has delivered stays."""
        return self._call("DELETE", _trail(name))

    def export_model(
        self,
        name: str,
        folder: Path,
        *,
        merged: bool = False,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Write a model to a new folder: a PEFT folder, or with `merged` a whole model.

        The folder is there whole or not at all. `progress` is told the bytes that have come, of
        how many. Raises `InvalidInput` for a folder that exists, `Corrupted` for a model whose
        files are not what was registered, `StorageFull`, and `Unavailable` when the transfer
        breaks off.
        """
        path = f"/api/v1/models/{quote(name)}/archive"
        request = self._http.build_request(
            "GET", path, params={"merged": merged}, timeout=httpx.Timeout(30.0, read=EXPORT_WAIT_S)
        )
        with contextlib.closing(self._sent(request, stream=True)) as reply:
            total = int(reply.headers["content-length"])
            try:
                unpack(_counted(reply.iter_bytes(), total, progress), folder)
            except httpx.TransportError as error:
                raise errors.Unavailable(
                    f"the transfer of {name} broke off ({error}); the server's log may say why"
                ) from error

    def register_agent(self, name: str, url: str, contract: str) -> Json:
        """Register an agent as "lambda", "agentcore" or "http", or move one to another URL."""
        body = {"name": name, "url": url, "as": contract}
        return self._call("POST", "/api/v1/agents", json=body)

    def agents(self) -> list[Json]:
        """Registered agents, oldest first."""
        found: list[Json] = self._call("GET", "/api/v1/agents")["agents"]
        return found

    def agent(self, name: str) -> Json:
        """One registered agent."""
        return self._call("GET", _agent(name))

    def remove_agent(self, name: str) -> Json:
        """Forget an agent and its log."""
        return self._call("DELETE", _agent(name))

    def test_agent(self, name: str) -> Json:
        """Ask for its health and send it a rollout that does not exist; what came of it."""
        timeout = httpx.Timeout(30.0, read=AGENT_TEST_S)
        return self._call("POST", _agent(name, "/test"), timeout=timeout)

    def agent_log(self, name: str, *, after: int = 0, limit: int = 1000) -> list[Json]:
        """Entries of an agent's log past `after`, oldest first."""
        params = {"after": after, "limit": limit}
        found: list[Json] = self._call("GET", _agent(name, "/logs"), params=params)["entries"]
        return found

    def print_agent_lines(self, name: str, lines: Sequence[str]) -> None:
        """Add lines that an agent has printed to its log, at most 1000."""
        self._call("POST", _agent(name, "/logs"), json={"lines": list(lines)})

    def _call(self, method: str, path: str, **options: Any) -> Json:
        body: Json = self._send(method, path, **options).json()
        return body

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        params = options.pop("params", {})
        params = {key: value for key, value in params.items() if value is not None}
        return self._sent(self._http.build_request(method, path, params=params, **options))

    def _sent(self, request: httpx.Request, *, stream: bool = False) -> httpx.Response:
        try:
            reply = self._http.send(request, stream=stream)
            if reply.is_error:
                reply.read()
        except httpx.TransportError as error:
            raise errors.Unavailable(
                f"no server answers at {self.url} ({error}); start one with `turnwise serve`"
            ) from error
        if reply.is_error:
            raise _error(reply)
        return reply


def _save(reply: httpx.Response, file: Path) -> int:
    with file.open("wb") as out:
        for piece in reply.iter_bytes():
            out.write(piece)
        return out.tell()


def _trail(name: str, part: str = "") -> str:
    return f"/api/v1/audit/trails/{quote(name, safe='')}{part}"


def _counted(
    pieces: Iterator[bytes], total: int, progress: Callable[[int, int], None]
) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        done += len(piece)
        progress(done, total)
        yield piece


def _job(name: str, rest: str = "") -> str:
    """The path of a job; a name that nobody may have cannot lead elsewhere."""
    return f"/api/v1/jobs/{quote(name, safe='')}{rest}"


def _agent(name: str, rest: str = "") -> str:
    """The path of an agent; see `_job`."""
    return f"/api/v1/agents/{quote(name, safe='')}{rest}"


def _error(reply: httpx.Response) -> errors.TurnwiseError:
    """The error that the server raised, as its body tells."""
    try:
        said = dict(reply.json()["error"])
        name, message = str(said.pop("type")), str(said.pop("message"))
    except (ValueError, KeyError, TypeError):
        return errors.TurnwiseError(f"the server answered {reply.status_code}: {reply.text[:300]}")
    cls = getattr(errors, name, None)
    if not (isinstance(cls, type) and issubclass(cls, errors.TurnwiseError)):
        return errors.TurnwiseError(message)
    error = cls.__new__(cls, message)  # constructors would build the message a second time
    vars(error).update(said)
    return error
