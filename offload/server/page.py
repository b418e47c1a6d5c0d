"""The page at `/`: static files that load nothing from outside, and may run nothing inline."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

FOLDER: Final = Path(__file__).parent / "page"
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
POLICY: Final = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "connect-src 'self'; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # ask each time; the ETag answers
}


@dataclass(frozen=True, slots=True)
class File:
    """What is sent for a name."""

    body: bytes
    content_type: str
    etag: str


def page_routes() -> list[Route]:
    """`/` and `/page/...`; both answer HEAD."""
    return [
        Route("/", page_file, name="page"),
        Route("/page/{name:path}", page_file, name="page files"),
    ]


async def page_file(request: Request) -> Response:
    """A file of the page; 304 for who has it, 404 for any other name."""
    name = request.path_params.get("name", "index.html")
    file = files().get(name)
    if file is None:
        error = {"code": 404, "type": "not_found_error", "message": "the page has no such file"}
        return JSONResponse({"error": error}, 404)
    headers = HEADERS | {"ETag": file.etag}
    if file.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(file.body, headers=headers, media_type=file.content_type)


@cache
def files() -> dict[str, File]:
    """By name under `/page/`; read once, 1.5 MB."""
    found = {}
    for path in sorted(FOLDER.rglob("*")):
        if path.suffix in TYPES:
            body = path.read_bytes()
            etag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
            found[path.relative_to(FOLDER).as_posix()] = File(body, TYPES[path.suffix], etag)
    return found
