"""Templates to responses."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import jinja2
from fastapi import Request
from starlette.responses import HTMLResponse

from turnwise import __version__
from turnwise.dashboard.formats import FILTERS
from turnwise.dashboard.states import MEANINGS, SHAPES, state
from turnwise.domain.access import Action, Principal

HERE = Path(__file__).parent
STATIC = HERE / "static"


def _fingerprint() -> str:
    """Changes with any static file, so that browsers may keep them for good."""
    digest = sha256()
    for file in sorted(STATIC.rglob("*")):
        if file.is_file():
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Pages:
    """Renders templates. Undefined names are errors; all values are escaped."""

    templates: jinja2.Environment

    @classmethod
    @cache
    def load(cls) -> Pages:
        """With the templates of this package, each compiled once in a process."""
        environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        environment.filters.update(FILTERS)
        environment.globals.update(
            version=__version__,
            assets=f"/dashboard/static/{_fingerprint()}",
            state_of=state,
            SHAPES=SHAPES,
            MEANINGS=MEANINGS,
        )
        return cls(environment)

    def asset(self, name: str) -> str:
        """The address of a static file."""
        return f"{self.templates.globals['assets']}/{name}"

    def text(self, template: str, **values: Any) -> str:
        """A template's text: for fragments that are sent to a stream."""
        return self.templates.get_template(template).render(**values)

    def page(
        self,
        request: Request,
        template: str,
        *,
        principal: Principal | None,
        status: int = 200,
        **values: Any,
    ) -> HTMLResponse:
        """A page, or a fragment of one.

        Every template gets `request`, `principal`, `may_manage`, and `here` (path and query).
        """
        may_manage = principal is not None and principal.allows(Action.MANAGE)
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        body = self.text(
            template,
            request=request,
            principal=principal,
            may_manage=may_manage,
            here=here,
            **values,
        )
        return HTMLResponse(body, status_code=status)
