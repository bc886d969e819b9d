"""IAM: roles, as the SDKs ask about them before they start a job.

Here no role is ever assumed: a job may do what the key of its creator may. So a role of the
caller's account exists whatever its name, trusts this server's services, and may do what the
caller's key may.
"""

from __future__ import annotations

import hashlib
import json
import re
from urllib.parse import quote

from turnwise import errors
from turnwise.domain.access import Action, Principal
from turnwise.wire.aws.service import AwsError, AwsService, Call, Json
from turnwise.wire.aws.sts import SIGNATURE_CODES

_SERVICES = ("bedrock-agentcore", "lambda", "sagemaker")

_READING = re.compile(r"(batch)?(get|list|describe|head|search|lookup|filter|query|view)[a-z*]*")
_BY_NAME = {
    "sagemaker:sample": (Action.SAMPLE,),
    "sagemaker:samplewithresponsestream": (Action.SAMPLE,),
    "sagemaker:completerollout": (Action.REPORT,),
    "sagemaker:updatereward": (Action.REPORT,),
    "sagemaker:callwithbearertoken": (Action.SAMPLE, Action.REPORT),  # either will do
}


def iam() -> AwsService:
    """The operations that the SDKs ask for."""
    return AwsService(
        name="iam",
        handlers={"GetRole": get_role, "SimulatePrincipalPolicy": simulate_principal_policy},
        codes=SIGNATURE_CODES | {errors.NotFound: "NoSuchEntity"},
    )


async def get_role(call: Call, given: Json) -> Json:
    """A role of that name, whose trust document names this server's services."""
    call.principal.require(Action.READ)
    name = given["RoleName"]
    statement = {
        "Effect": "Allow",
        "Principal": {"Service": [f"{service}.amazonaws.com" for service in _SERVICES]},
        "Action": "sts:AssumeRole",
    }
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    arn = f"arn:aws:iam::{call.account.number}:role/{name}"
    return {
        "Role": {
            "Path": "/",
            "RoleName": name,
            "RoleId": "AROA" + hashlib.sha256(arn.encode()).hexdigest()[:17].upper(),
            "Arn": arn,
            "CreateDate": 0.0,  # it was never made
            "AssumeRolePolicyDocument": quote(document),
        }
    }


async def simulate_principal_policy(call: Call, given: Json) -> Json:
    """Which of the actions the caller's key may do; a role or user may do the same."""
    call.principal.require(Action.READ)
    arn = given["PolicySourceArn"]
    whose = re.fullmatch(r"arn:aws[a-z-]*:iam::(\d{12}):(role|user|group)/.+", arn)
    if whose is None:
        raise AwsError("InvalidInput", f"PolicySourceArn: {arn!r} names no role or user")
    if whose[1] != call.account.number:
        raise errors.NotFound("role or user", arn)
    resources = given.get("ResourceArns") or ["*"]
    return {
        "EvaluationResults": [
            {
                "EvalActionName": name,
                "EvalResourceName": resource,
                "EvalDecision": "allowed" if may(call.principal, name) else "implicitDeny",
            }
            for name in given["ActionNames"]
            for resource in resources
        ],
        "IsTruncated": False,
    }


def may(principal: Principal, iam_action: str) -> bool:
    """Whether the caller may do what an IAM action stands for.

    >>> reader = Principal(account_id="a", actions=frozenset({Action.READ}))
    >>> may(reader, "sagemaker:DescribeJob"), may(reader, "sagemaker:CreateJob")
    (True, False)
    """
    name = iam_action.lower()
    _, _, verb = name.partition(":")
    wanted = _BY_NAME.get(name, (Action.READ if _READING.fullmatch(verb) else Action.MANAGE,))
    return any(principal.allows(action) for action in wanted)
