"""The services of the AWS door, each plugged into the rooms that do its work."""

from __future__ import annotations

from dataclasses import dataclass

from turnwise.control.audit import AuditTrail
from turnwise.control.browse import Browse
from turnwise.control.jobs import Jobs
from turnwise.control.trails import Trails
from turnwise.ports import Clock, NewId, Resources
from turnwise.wire.aws.cloudtrail import cloudtrail
from turnwise.wire.aws.door import Answering, Modelled
from turnwise.wire.aws.service import AwsService
from turnwise.wire.aws.sts import sts


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """What the handlers call."""

    url: str  # of this server, as clients reach it
    jobs: Jobs
    audit: AuditTrail
    trails: Trails
    browse: Browse
    resources: Resources
    clock: Clock
    new_id: NewId


def sagemaker(rooms: Rooms) -> AwsService:
    """SageMaker's control plane: each noun brings its operations."""
    return AwsService(name="sagemaker", handlers={})


def open_services(rooms: Rooms) -> list[Answering]:
    """All services, by the names that their clients sign for."""
    return [
        Modelled(sagemaker(rooms)),
        Modelled(sts()),
        Modelled(cloudtrail(rooms.audit, rooms.trails, rooms.clock)),
    ]
