"""What can be reached without a key, over the server as it is plugged together."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from turnwise.app.doors import open_doors
from turnwise.app.rooms import open_rooms
from turnwise.settings import Settings
from turnwise.wire.aws.door import AwsDoor, Modelled
from turnwise.wire.dataplane import DataPlane
from turnwise.wire.fireworks.door import FireworksDoor
from turnwise.wire.fireworks.tracing import TracingDoor
from turnwise.wire.mlflow import MlflowDoor

#: Reachable by anybody.
OPEN = {("GET", "/health")}

#: Pages that say nothing of anybody: the way to the sign-in, and what it is drawn with.
OPEN_PAGES = {
    ("GET", "/"),
    ("GET", "/favicon.ico"),
    ("GET", "/dashboard/sign-in"),
    ("POST", "/dashboard/sign-in"),
    ("GET", "/dashboard/static/{fingerprint}/{file:path}"),
}
FORGED_SESSION = {"Cookie": "turnwise_session=" + "a" * 160}

PUT_SIGNED = ("PUT", "/v1/signed/{account}/{collection}/{id}/{name}")


@dataclass
class Building:
    """The server's doors, and a client that has no key."""

    nobody: httpx.AsyncClient
    pages: FastAPI
    doors: list[Any] = field(default_factory=list)

    def door(self, kind: type[Any]) -> Any:
        [found] = [door for door in self.doors if isinstance(door, kind) and door is not self.pages]
        return found


@pytest.fixture
async def building(tmp_path: Path) -> AsyncIterator[Building]:
    settings = Settings(data_dir=tmp_path / "data")
    async with open_rooms(settings, "http://server") as rooms, open_doors(rooms) as doors:
        transport = httpx.ASGITransport(doors)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as nobody:
            each = [unwrapped(getattr(doors, field.name)) for field in fields(doors)]
            yield Building(nobody, unwrapped(doors.dashboard), each)


def unwrapped(door: Any) -> Any:
    """The app behind those that only watch it."""
    while hasattr(door, "_app"):
        door = door._app
    return door


def routes_of(routes: Iterable[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of every route, those of included routers too."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from routes_of(router.routes, prefix + route.include_context.prefix)
        else:
            # A mount or a socket has no methods: it would have to be walked here.
            yield from ((method, prefix + route.path) for method in route.methods)


def test_every_door_is_one_of_those_that_the_next_tests_knock_at(building: Building):
    assert {type(door) for door in building.doors if door is not building.pages} == {
        DataPlane,
        TracingDoor,
        AwsDoor,
        MlflowDoor,
        FireworksDoor,
        FastAPI,
    }


async def test_no_route_of_the_native_api_is_open(building: Building):
    [native] = [door for door in building.doors if getattr(door, "title", "") == "Turnwise"]
    routes = set(routes_of(native.routes))
    assert routes >= OPEN
    assert ("GET", "/openapi.json") in routes
    assert len(routes) > 20
    for method, path in sorted(routes):
        url = re.sub(r"\{[^}]*\}", "x", path)
        for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}):
            answer = await building.nobody.request(method, url, headers=headers)
            expected = 200 if (method, path) in OPEN else 401
            assert answer.status_code == expected, (method, path, answer.text)


async def test_no_page_is_open_but_the_sign_in(building: Building):
    routes = set(routes_of(building.pages.routes))
    assert len(routes) > 30
    for method, path in sorted(routes - OPEN_PAGES):
        url = re.sub(r"\{[^}]*\}", "x", path)
        for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}, FORGED_SESSION):
            answer = await building.nobody.request(method, url, headers=headers)
            assert answer.status_code == 303, (method, path, answer.text)
            assert answer.headers["location"].startswith("/dashboard/sign-in")


async def test_no_route_of_fireworks_is_open_but_signed_addresses_with_their_token(
    building: Building,
):
    door = building.door(FireworksDoor)
    routes = set(routes_of(door.app.routes))
    assert len(routes) > 40
    for method, path in sorted(routes):
        url = re.sub(r"\{[^}]*\}", "x", path)
        assert door.owns(url)
        for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}):
            for query in ("", "?size=3&token=" + "a" * 60):
                answer = await building.nobody.request(method, url + query, headers=headers)
                # A PUT that names no size cannot be at an address that was given out.
                is_malformed = (method, path) == PUT_SIGNED and not query
                expected = 400 if is_malformed else 401
                assert answer.status_code == expected, (method, url, answer.text)


async def test_no_path_of_mlflow_is_open(building: Building):
    paths = ("/mlflow/", "/mlflow", "/mlflow/api/2.0/mlflow/experiments/search", "/auth")
    roots = ("/api/2.0/mlflow/runs/get", "/api/3.0/mlflow/traces", "/v1/traces")
    files = ("/api/2.0/mlflow-artifacts/artifacts/x", "/mlflow/static-files/x", "/mlflow/auth")
    for path in (*paths, *roots, *files):
        for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}):
            for method in ("GET", "POST"):
                answer = await building.nobody.request(
                    method, path + ("?authToken=made-up" if "auth" in path else ""), headers=headers
                )
                if answer.has_redirect_location:  # to the same with a slash at its end
                    assert answer.headers["location"].strip("/") == path.strip("/")
                else:
                    assert answer.status_code in (401, 403, 404, 405), (method, path, answer.text)


async def test_no_path_of_the_tracing_gateway_is_open(building: Building):
    routes = building.door(TracingDoor)._routes
    calls = [(method, path) for path, methods in routes.items() for method in methods]
    calls += [("POST", "/rollout_id/x/chat/completions"), ("POST", "/chat/completions")]
    for method, path in calls:
        for prefix in ("", "/v1", "/litellm-gateway", "/litellm-gateway/v1/project_id/p"):
            for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}):
                body = {"tags": ["rollout_id:x"], "message": "done"}
                answer = await building.nobody.request(
                    method, f"{prefix}{path}?rollout_id=x", headers=headers, json=body
                )
                assert answer.status_code == 401, (method, prefix, path, answer.text)


async def test_no_path_of_the_data_plane_is_open(building: Building):
    data_plane = building.door(DataPlane)
    place = {"X-Amzn-SageMaker-Trajectory-Id": "rol_x"}
    for path, (method, _, _) in data_plane._routes.items():
        for url in (path, f"/r/rol_x.secret{path}"):
            for headers in ({}, {"Authorization": "Bearer tw_" + "x" * 40}):
                subject = {"TrajectoryId": "rol_x", "Rewards": [1.0]}
                chat = {"model": "default", "messages": [{"role": "user", "content": "hi"}]}
                answer = await building.nobody.request(
                    method, url, headers=place | headers, json=subject | chat
                )
                # Of a rollout that does not exist, the secret cannot be right.
                expected = {404} if url.startswith("/r/") else {401, 403}
                assert answer.status_code in expected, (url, answer.text)


def calls_of(service: Any) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """Method, path, headers and body of calls of all that a service answers."""
    if not isinstance(service, Modelled):  # S3's are told apart by method and path
        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            yield from ((method, path, {}, "") for path in ("/", "/bucket", "/bucket/key"))
        return
    for name in service._service.handlers:
        http: dict[str, Any] = service._service.operation(name).http
        url = re.sub(r"\{[^}]*\}", "x", http.get("requestUri", "/"))
        if service.target_prefix:
            target = {"X-Amz-Target": f"{service.target_prefix}.{name}"}
            yield http["method"], url, target, "{}"
        elif service._service.model.metadata["protocol"] == "query":
            form = {"Content-Type": "application/x-www-form-urlencoded"}
            yield http["method"], url, form, f"Action={name}"
        else:
            yield http["method"], url, {}, "{}"


async def test_no_operation_of_an_aws_service_is_open(building: Building):
    for service in building.door(AwsDoor)._services.values():
        for method, url, headers, body in calls_of(service):
            forged = headers | {"Authorization": FORGED % service.name}
            for sent, expected in (
                # An unsigned call by path alone is not told from a page that is not there.
                (headers, (403,) if headers else (303, 307, 403, 404, 405)),
                (forged, (403,)),
            ):
                answer = await building.nobody.request(method, url, headers=sent, content=body)
                assert answer.status_code in expected, (service.name, method, url, answer.text)


#: A signature by a key that does not exist.
FORGED = (
    "AWS4-HMAC-SHA256 Credential=TWAKX/20260101/us-west-2/%s/aws4_request, "
    "SignedHeaders=host;x-amz-date;x-amz-target, Signature=00"
)
