"""SageMaker's MLflow apps: names for an account's one MLflow, and presigned ways into it.

The app `default` is there from the start. Apps that a client makes are further names of the same
server: experiments, runs and traces are the account's, whatever app they are asked for by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps

from turnwise import errors
from turnwise.access.links import MLFLOW_SIGN_IN, Links
from turnwise.domain.access import Action
from turnwise.domain.resource import Resource
from turnwise.ports import Clock, NewId, Resources
from turnwise.wire.aws.paging import page
from turnwise.wire.aws.sagemaker.tags import Tags
from turnwise.wire.aws.service import AwsError, Call, Handler, Json

KIND = "mlflow-app"
DEFAULT = "default"
#: As clients compare it: the version that the project pins.
VERSION = "3.17"
_EXPIRES_S, _SESSION_S = 300, 43_200
#: What is described as it was given.
_SHOWN = (
    *("ArtifactStoreUri", "RoleArn", "KmsKeyId", "ModelRegistrationMode", "AccountDefaultStatus"),
    *("DefaultDomainIdList", "WeeklyMaintenanceWindowStart"),
)


class MlflowApps:
    """The operations on apps."""

    def __init__(
        self,
        resources: Resources,
        links: Links,
        *,
        url: str,
        clock: Clock,
        new_id: NewId,
        missing: str,
        start: Callable[[str], None],
    ) -> None:
        """`url` is where a token is taken for a sign-in; `start` starts an account's MLflow, which
        is about to be asked; `missing` says why there is none, "" where there is.
        """
        self._resources = resources
        self._links = links
        self._url = url
        self._clock = clock
        self._new_id = new_id
        self._missing = missing
        self._start = start

    async def list_apps(self, call: Call, given: Json) -> Json:
        """`default`, and what was made beside it; all are the account's one MLflow."""
        call.principal.require(Action.READ)
        apps = [app for app in await self._apps(call) if _matches(app, given)]
        key = given.get("SortBy", "CreationTime")
        apps.sort(
            key=lambda app: app.name if key == "Name" else app.created_at,
            reverse=given.get("SortOrder", "Descending") == "Descending",
        )
        shown, more = page(apps, given, default=100)
        return {
            "Summaries": [
                {
                    "Arn": _arn(call, app),
                    "Name": app.name,
                    "Status": app.body["status"],
                    "CreationTime": app.created_at,
                    "LastModifiedTime": app.updated_at,
                    "MlflowVersion": VERSION,
                }
                for app in shown
            ],
            "NextToken": more,
        }

    async def create_app(self, call: Call, given: Json) -> Json:
        """A further name of the account's MLflow."""
        call.principal.require_all(Action.MANAGE, "MLflow apps")
        self._check_there()
        if given["Name"] == DEFAULT:
            raise errors.Conflict(f"the MLflow app {DEFAULT!r} exists already")
        made = await self._resources.create_resource(
            Resource(
                account_id=call.account.account_id,
                kind=KIND,
                name=given["Name"],
                body={"id": self._new_id("app").replace("_", "-"), "status": "Created"}
                | {"given": {k: v for k, v in given.items() if k not in ("Name", "Tags")}},
                created_at=self._clock.now(),
            )
        )
        return {"Arn": _arn(call, made)}

    async def describe_app(self, call: Call, given: Json) -> Json:
        """An app, with what it was given."""
        call.principal.require(Action.READ)
        app = await self._app(call, given["Arn"])
        asked = app.body["given"]
        return {
            "Arn": _arn(call, app),
            "Name": app.name,
            "MlflowVersion": VERSION,
            "Status": app.body["status"],
            "CreationTime": app.created_at,
            "LastModifiedTime": app.updated_at,
            "MaintenanceStatus": "MaintenanceComplete",
            **{name: asked[name] for name in _SHOWN if name in asked},
        }

    async def update_app(self, call: Call, given: Json) -> Json:
        """Its settings are kept and shown; a name stays as it is."""
        call.principal.require_all(Action.MANAGE, "MLflow apps")
        app = await self._app(call, given["Arn"])
        if given.get("Name", app.name) != app.name:
            raise errors.InvalidInput("Name", given["Name"], "cannot be changed")
        changes = {k: v for k, v in given.items() if k not in ("Arn", "Name")}
        body = {**app.body, "status": "Updated", "given": {**app.body["given"], **changes}}
        changed = Resource(account_id=app.account_id, kind=KIND, name=app.name, body=body)
        return {"Arn": _arn(call, await self._resources.change_resource(changed))}

    async def delete_app(self, call: Call, given: Json) -> Json:
        """The name goes, what MLflow holds stays; `default` stays too."""
        call.principal.require_all(Action.MANAGE, "MLflow apps")
        app = await self._app(call, given["Arn"])
        if app.name == DEFAULT:
            raise errors.InvalidInput("Arn", given["Arn"], "is the account's default app and stays")
        await self._resources.delete_resource(app.account_id, KIND, app.name)
        return {"Arn": _arn(call, app)}

    async def presign_app(self, call: Call, given: Json) -> Json:
        """A way into the account's MLflow, for five minutes unless asked otherwise."""
        _check_all_jobs(call)
        await self._app(call, given["Arn"])
        return self._presigned(call, given)

    async def presign_server(self, call: Call, given: Json) -> Json:
        """A way into the account's MLflow, by an app's name."""
        _check_all_jobs(call)
        name = given["TrackingServerName"]
        if name not in {app.name for app in await self._apps(call)}:
            raise errors.NotFound("MLflow tracking server", name)
        return self._presigned(call, given)

    def _presigned(self, call: Call, given: Json) -> Json:
        self._check_there()
        self._start(call.account.account_id)
        token = self._links.make(
            MLFLOW_SIGN_IN,
            call.access_key_id,
            expires_s=given.get("ExpiresInSeconds", _EXPIRES_S),
            session_s=given.get("SessionExpirationDurationInSeconds", _SESSION_S),
        )
        return {"AuthorizedUrl": f"{self._url}?authToken={token}"}

    async def default_arn(self, call: Call) -> str:
        """The ARN of the account's default app; "" where there is no MLflow."""
        call.principal.require(Action.READ)
        apps = await self._apps(call)
        return next((_arn(call, app) for app in apps if app.name == DEFAULT), "")

    async def _apps(self, call: Call) -> list[Resource]:
        """The account's apps; none where there is no MLflow."""
        if self._missing:
            return []
        account_id = call.account.account_id
        apps = await self._resources.resources(account_id, KIND)
        if all(app.name != DEFAULT for app in apps):
            default = Resource(
                account_id=account_id,
                kind=KIND,
                name=DEFAULT,
                body={
                    "id": f"app-{DEFAULT}",
                    "status": "Created",
                    "given": {"AccountDefaultStatus": "ENABLED"},
                },
                created_at=self._clock.now(),
            )
            try:
                apps.append(await self._resources.create_resource(default))
            except errors.Conflict:  # two first calls at once
                apps.append(await self._resources.resource(account_id, KIND, DEFAULT))
        return apps

    async def _app(self, call: Call, arn: str) -> Resource:
        for app in await self._apps(call):
            if _arn(call, app) == arn:
                return app
        raise errors.NotFound("MLflow app", arn, remedy=self._missing)

    def _check_there(self) -> None:
        if self._missing:
            raise AwsError("ValidationException", self._missing)


def mlflow_handlers(apps: MlflowApps, tags: Tags) -> Mapping[str, Handler]:
    """The operations by their names."""

    @wraps(apps.create_app)
    async def create_app(call: Call, given: Json) -> Json:
        made = await apps.create_app(call, given)
        await tags.put(call, made["Arn"], given.get("Tags", []))
        return made

    @wraps(apps.delete_app)
    async def delete_app(call: Call, given: Json) -> Json:
        gone = await apps.delete_app(call, given)
        await tags.drop(call, gone["Arn"])
        return gone

    return {
        "ListMlflowApps": apps.list_apps,
        "CreateMlflowApp": create_app,
        "DescribeMlflowApp": apps.describe_app,
        "UpdateMlflowApp": apps.update_app,
        "DeleteMlflowApp": delete_app,
        "CreatePresignedMlflowAppUrl": apps.presign_app,
        "CreatePresignedMlflowTrackingServerUrl": apps.presign_server,
    }


def _arn(call: Call, app: Resource) -> str:
    return call.arn("sagemaker", f"mlflow-app/{app.body['id']}")


def _check_all_jobs(call: Call) -> None:
    call.principal.require(Action.READ)
    if call.principal.job_ids is not None:
        raise errors.Denied("this key is for certain jobs; MLflow shows all of an account's")


def _matches(app: Resource, given: Json) -> bool:
    asked = app.body["given"].get("AccountDefaultStatus", "DISABLED")
    return bool(
        given.get("Status", app.body["status"]) == app.body["status"]
        and given.get("MlflowVersion", VERSION) == VERSION
        and given.get("AccountDefaultStatus", asked) == asked
        and given.get("CreatedAfter", app.created_at) <= app.created_at
        and given.get("CreatedBefore", app.created_at) >= app.created_at
    )
