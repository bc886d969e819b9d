"""STS: who the caller is. An access key is shown as the IAM user of its name."""

from __future__ import annotations

from turnwise import errors
from turnwise.wire.aws.service import AwsService, Call, Json

#: What the services with query requests call a signature that is not valid.
SIGNATURE_CODES: dict[type[Exception], str] = {
    errors.Unauthenticated: "SignatureDoesNotMatch",
    errors.UnknownKey: "InvalidClientTokenId",
    errors.Denied: "AccessDenied",
    errors.InvalidInput: "ValidationError",
}


def sts() -> AwsService:
    """The operations that the SDKs ask for."""
    return AwsService(
        name="sts", handlers={"GetCallerIdentity": get_caller_identity}, codes=SIGNATURE_CODES
    )


async def get_caller_identity(call: Call, given: Json) -> Json:
    """The account and the caller's name."""
    return {
        "UserId": call.access_key_id,
        "Account": call.account.number,
        "Arn": f"arn:aws:iam::{call.account.number}:user/{user_name(call)}",
    }


def user_name(call: Call) -> str:
    """The key's name in the letters that IAM allows.

    A user rather than a role: of a role, the sagemaker SDK would check the policies.
    """
    kept = [
        c if c.isascii() and (c.isalnum() or c in "+=,.@_-") else "-" for c in call.principal.name
    ]
    return "".join(kept)[:64] or "key"
