"""An AWS service as this server answers it: botocore's model of it, and a handler per operation.

A handler is decode, call, encode: the door has verified who calls and has read the parameters by
the model's shapes; what the handler returns is written by them.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import botocore.session
from botocore.model import OperationModel, ServiceModel

from turnwise import errors
from turnwise.domain.access import Account, Principal

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One verified call: who, from where, and what it is called in the audit trail."""

    principal: Principal
    account: Account
    region: str
    request_id: str
    access_key_id: str = ""
    source_ip: str = ""
    user_agent: str = ""

    def arn(self, service: str, resource: str) -> str:
        """The ARN of something of the caller's account.

        >>> from turnwise.domain.access import Account, Principal
        >>> account = Account(account_id="acc_a", slug="a", number="000000000001")
        >>> who = Principal(account_id="acc_a")
        >>> call = Call(principal=who, account=account, region="us-west-2", request_id="1")
        >>> call.arn("sagemaker", "job/AgentRFT/walk")
        'arn:aws:sagemaker:us-west-2:000000000001:job/AgentRFT/walk'
        """
        return f"arn:aws:{service}:{self.region}:{self.account.number}:{resource}"


Handler = Callable[[Call, Json], Awaitable[Json]]


class AwsError(Exception):
    """An error with the code that AWS gives it; for what `turnwise.errors` is too coarse to say."""

    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        self.code = code
        self.status = status
        super().__init__(errors.sendable(message))


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsService:
    """One service: its name in botocore, its operations, and its codes for our errors.

    `codes` are looked up by the most specific class first; what they lack is in `faults.CODES`.
    """

    name: str
    handlers: Mapping[str, Handler]
    codes: Mapping[type[Exception], str] = field(default_factory=dict)

    @property
    def model(self) -> ServiceModel:
        """botocore's description of the service."""
        return load_model(self.name)

    def operation(self, name: str) -> OperationModel:
        """botocore's description of an operation."""
        return self.model.operation_model(name)


@functools.cache
def load_model(name: str) -> ServiceModel:
    """A service's model from botocore's data. Blocks: SageMaker's takes about 0.1 s."""
    return botocore.session.get_session().get_service_model(name)
