"""Who looks: an access key, presented once on the sign-in page, is a cookie from then on.

The cookie holds a sealed token that names the key (`access.links`), never the secret; a key that is
revoked takes its sessions with it. What changes something must come from a page of this server.
"""

from __future__ import annotations

from urllib.parse import urlencode, urlsplit

from fastapi import Request
from starlette.responses import RedirectResponse, Response

from turnwise import errors
from turnwise.access.keys import Keyring
from turnwise.access.links import DASHBOARD_SESSION, Links
from turnwise.domain.access import Principal

COOKIE = "turnwise_session"
SESSION_S = 7 * 24 * 3600
SIGN_IN = "/dashboard/sign-in"


class SignInNeeded(Exception):
    """The caller has no valid session."""


class Sessions:
    """Starts, reads and ends sessions."""

    def __init__(self, keyring: Keyring, links: Links, *, is_secure: bool) -> None:
        self._keyring = keyring
        self._links = links
        self._is_secure = is_secure

    async def start(self, secret: str, response: Response) -> Principal:
        """Set the cookie for who presents a key. Raises `Unauthenticated`."""
        principal = await self._keyring.authenticate(secret.strip())
        token = self._links.make(
            DASHBOARD_SESSION, principal.access_key_id, expires_s=SESSION_S, session_s=SESSION_S
        )
        response.set_cookie(
            COOKIE,
            token,
            max_age=SESSION_S,
            path="/dashboard",
            httponly=True,
            secure=self._is_secure,
            samesite="lax",
        )
        return principal

    async def principal(self, request: Request) -> Principal:
        """The caller of a request, who is left in its state too.

        Raises `SignInNeeded`, and `Denied` for another site's form.
        """
        require_same_site(request)
        try:
            grant = self._links.read(DASHBOARD_SESSION, request.cookies.get(COOKIE, ""))
            request.state.principal = found = await self._keyring.holder(grant.access_key_id)
            return found
        except errors.Unauthenticated:
            raise SignInNeeded from None

    def end(self, response: Response) -> None:
        """Forget the browser's session."""
        response.delete_cookie(COOKIE, path="/dashboard")


def to_sign_in(request: Request) -> Response:
    """Send the browser to the sign-in page, and from there back to what it asked for."""
    wanted = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    where = f"{SIGN_IN}?{urlencode({'next': wanted})}" if request.method == "GET" else SIGN_IN
    if "hx-request" in request.headers:  # a fragment has no place for the sign-in page
        return Response(status_code=401, headers={"HX-Redirect": where})
    return RedirectResponse(where, status_code=303)


def safe_next(wanted: str) -> str:
    """Where to go after the sign-in: a page of the dashboard, never another site.

    >>> safe_next("/dashboard/jobs/walk?tab=1"), safe_next("/dashboard?state=FAILED")
    ('/dashboard/jobs/walk?tab=1', '/dashboard?state=FAILED')
    >>> safe_next("//evil.example/x"), safe_next("/dashboards"), safe_next("")
    ('/dashboard', '/dashboard', '/dashboard')
    """
    parts = urlsplit(wanted)
    is_ours = not parts.scheme and not parts.netloc and "\\" not in wanted
    is_page = parts.path == "/dashboard" or parts.path.startswith("/dashboard/")
    return wanted if is_ours and is_page else "/dashboard"


def require_same_site(request: Request) -> None:
    """Raise `Denied` for what changes something and was sent by a page of another site."""
    if request.method in ("GET", "HEAD"):
        return
    host = request.headers.get("host", "")
    sender = request.headers.get("origin") or _origin(request.headers.get("referer", ""))
    is_foreign = bool(sender) and sender not in (f"http://{host}", f"https://{host}")
    if is_foreign or request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        raise errors.Denied(f"a page of {sender or 'another site'} may not change anything here")


def _origin(address: str) -> str:
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}" if parts.netloc else ""
