"""The gallery's server: the page, the images of the tables, and trials. It listens on loopback, without a password.

Therefore it accepts only its own host names (against DNS rebinding) and trials only from its own page, and finds
files by image id, never by a path from outside.
"""

import json
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import dagster as dg
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flexy_assets.execution import dagster_instance, run_job, step_failures
from flexy_assets.gallery.queue import QueuedTrial, QueueFullError, TrialQueue
from flexy_assets.reporting.html import load_template, static_text
from flexy_assets.reporting.thumbnails import make_thumbnail
from flexy_assets.storage import gallery
from flexy_assets.storage.migrate import migrate
from flexy_assets.sweep.jobs import TrialConfig, trial_config, try_image
from flexy_assets.sweep.try_image import MAX_SEED, Trial
from resources.database import Database
from resources.errors import BadInputError, FlexyError
from resources.images import ImageStore, UnreadableImageError
from resources.metrics.sweep import METRICS
from resources.models import registry
from resources.prompts import check_prompt, read_prompts
from resources.settings import Settings

HOST_NAMES = ("127.0.0.1", "localhost")
MAX_BODY = 65_536  # bytes of a trial's settings: two prompts of the maximum length, every character escaped
MAX_SIDE, MAX_PAGE = 1024, 1_000_000

_STATUSES: dict[type[Exception], int] = {BadInputError: 400, UnreadableImageError: 404, QueueFullError: 429}


@dataclass(frozen=True)
class GalleryServer:
    """The resources that requests use."""

    settings: Settings
    database: Database
    images: ImageStore
    queue: TrialQueue

    def choices(self, _: Request) -> Response:
        """Return the engines with their settings and defaults, the metrics, and the engines of the table."""
        names = registry.model_names("engine", self.settings)
        engines = [
            {name: getattr(entry, name) for name in ("name", "steps", "guidance", "side", "multiple")}
            | {"ignores": sorted(entry.ignored_settings)}
            | {"example": read_prompts(entry.prompts)[0].text if entry.prompts else None}
            for entry in (registry.MODELS[name] for name in names)
        ]
        metrics = [{"name": m.name, "label": m.label, "meaning": m.description} for m in METRICS.values()]
        with self.database.begin(reading=True) as connection:
            in_table = gallery.engine_names(connection)
        return JSONResponse({"engines": engines, "metrics": metrics, "in_table": in_table, "max_seed": MAX_SEED})

    def page(self, request: Request) -> Response:
        """Return one page of the images, by `engine`, `prompt`, `sort` and `page`."""
        query = request.query_params
        engine, prompt = query.get("engine", ""), query.get("prompt", "").strip()
        sort = query.get("sort", gallery.NEWEST_IMAGES)
        for text, name in ((engine, "the engine"), (prompt, "the search text")):
            check_prompt(text, name)
        if sort not in gallery.SORTS:
            raise BadInputError(f"invalid sort {sort!r}: use {', '.join(gallery.SORTS)}")
        number = _parse_number(query.get("page", "1"), "page", MAX_PAGE)
        with self.database.begin(reading=True) as connection:
            cards, count = gallery.card_page(
                connection, self.settings, engine=engine, prompt=prompt, sort=sort, number=number
            )
        images = [_card_json(card) for card in cards]
        return JSONResponse({"images": images, "count": count, "size": gallery.PAGE_IMAGES})

    def image(self, request: Request) -> Response:
        """Return an image by its id: whole as PNG, or as WebP of at most `side` pixels."""
        with self.database.begin(reading=True) as connection:
            file = gallery.image_file(connection, request.path_params["image_id"])
        if file is None:
            raise HTTPException(404, f"no image {request.path_params['image_id']}")
        side = request.query_params.get("side")
        bound = None if side is None else _parse_number(side, "side", MAX_SIDE)
        picture = self.images.read(*file)
        # The image of an id never changes: the browser may cache it.
        headers = {"Cache-Control": "private, max-age=3600"}
        if bound:
            return Response(make_thumbnail(picture, bound), media_type="image/webp", headers=headers)
        buffer = BytesIO()
        picture.save(buffer, "PNG", compress_level=4)
        return Response(buffer.getvalue(), media_type="image/png", headers=headers)

    def trials(self, _: Request) -> Response:
        """Return the recent trials, the last first, each with its image and scores as far as they exist."""
        trials = self.queue.snapshot()
        with self.database.begin(reading=True) as connection:
            cards = gallery.cards_of_images(connection, self.settings, [trial.image_id for trial, _ in trials])
        by_id = {card["id"]: _card_json(card) for card in cards}
        return JSONResponse({"trials": [_trial_state(trial, before, by_id) for trial, before in trials]})

    async def add_trial(self, request: Request) -> Response:
        """Queue a trial from its settings (`TrialConfig`, as JSON), sent by the gallery's own page."""
        if request.headers.get("origin") != f"http://{request.headers.get('host')}":
            raise HTTPException(403, "invalid origin: a trial must be sent by the gallery's own page")
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise HTTPException(415, "invalid content type: send a trial's settings as application/json")
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"settings too long: a trial's settings take at most {MAX_BODY} bytes")
        return await run_in_threadpool(self._queue_trial, body)

    def _queue_trial(self, body: bytes) -> Response:
        trial = _parse_trial(body).trial(self.settings)
        with self.database.begin(reading=True) as connection:
            existing = gallery.find_same_settings(connection, self.settings, trial.to_json())
        queued = self.queue.add(trial, existing or trial.image_id)
        return JSONResponse({"id": str(queued.image_id), "exists": existing is not None}, status_code=202)


def _parse_trial(body: bytes) -> TrialConfig:
    try:
        # A number of hundreds of digits is out of bounds and too long for a message.
        settings = json.loads(body, parse_int=lambda digits: int(digits) if len(digits) < 20 else float(digits))
        if not isinstance(settings, dict):
            raise ValueError
    except (ValueError, RecursionError):
        raise BadInputError("invalid settings: send one JSON object") from None
    if unknown := sorted(settings.keys() - TrialConfig.model_fields.keys()):
        raise BadInputError(f"unknown setting {unknown[0]!r:.60}: use {', '.join(TrialConfig.model_fields)}")
    try:
        return TrialConfig(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInputError(f"{first['loc'][0]}: {first['msg'][0].lower()}{first['msg'][1:]}") from None


def _parse_number(text: str, name: str, highest: int) -> int:
    if not re.fullmatch("[0-9]{1,7}", text) or not 1 <= int(text) <= highest:
        raise BadInputError(f"invalid {name} {text!r:.40}: must be an integer from 1 to {highest}")
    return int(text)


def _card_json(card: gallery.ImageCard) -> gallery.ImageCard:
    """Return a card for the page, without the path of its file."""
    return {name: value for name, value in card.items() if name not in ("image_path", "image_sha256")}


def _trial_state(queued: QueuedTrial, before: int, images: Mapping[str, gallery.ImageCard]) -> dict[str, Any]:
    image_id, seconds = str(queued.image_id), queued.elapsed_seconds()
    state = {"id": image_id, "state": queued.state, "before": before, "error": queued.error}
    state |= {"seconds": None if seconds is None else round(seconds, 1), "settings": queued.trial.to_json()}
    return state | {"image": images.get(image_id)}


class _SecurityHeaders:
    """Adds the security headers to every answer: what the page may load, and that no other site may show or read it."""

    def __init__(self, app: ASGIApp, policy: str) -> None:
        self._app = app
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(self._headers)
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self._app(scope, receive, guarded)


def gallery_app(gallery: GalleryServer) -> Starlette:
    """Return the server's routes behind its guards."""
    page = load_template("gallery/gallery.html.j2", {})
    html = page.render()
    style = page.environment.filters["script_hash"](html.partition("<style>")[2].partition("</style>")[0])
    policy = (
        f"default-src 'none'; script-src 'self'; style-src {style}; img-src 'self'; connect-src 'self';"
        " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )

    async def explain(_: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
        elif isinstance(error, FlexyError):
            status = next((status for kind, status in _STATUSES.items() if isinstance(error, kind)), 500)
            text = str(error)
        else:
            status, text = 500, f"the gallery failed: {type(error).__name__}: {error}"
        return JSONResponse({"error": " ".join(text.split())}, status_code=status)

    script = Response(static_text("gallery.js"), media_type="text/javascript")
    return Starlette(
        routes=[
            Route("/", Response(html, media_type="text/html"), methods=["GET"]),
            Route("/gallery.js", script, methods=["GET"]),
            Route("/favicon.ico", Response(status_code=204), methods=["GET"]),
            Route("/choices", gallery.choices),
            Route("/images", gallery.page),
            Route("/image/{image_id:uuid}", gallery.image),
            Route("/trials", gallery.trials),
            Route("/trials", gallery.add_trial, methods=["POST"]),
        ],
        middleware=[
            Middleware(_SecurityHeaders, policy=policy),
            Middleware(TrustedHostMiddleware, allowed_hosts=list(HOST_NAMES), www_redirect=False),
        ],
        exception_handlers=dict.fromkeys((FlexyError, HTTPException, Exception), explain),
    )


def serve_gallery(
    port: int, definitions: dg.Definitions, database: Database, settings: Settings, on_ready: Callable[[str], Any]
) -> None:
    """Serve the gallery on loopback until Ctrl-C; `on_ready` is called with its address. Port 0 takes any free one.

    The running trial is finished first, unless there is a second Ctrl-C. Raises `BadInputError` where the port
    is not free.
    """
    migrate(database)
    try:
        listener = socket.create_server((HOST_NAMES[0], port))
    except OSError as error:
        raise BadInputError(f"cannot serve at port {port}: {error.strerror}: choose another with --port") from None
    with listener, dagster_instance(settings) as instance:

        def make(trial: Trial) -> list[str]:
            return step_failures(run_job(instance, definitions, try_image.name, trial_config(trial.to_json())))

        gallery = GalleryServer(settings, database, ImageStore.from_settings(settings), TrialQueue(make))
        server = uvicorn.Server(uvicorn.Config(gallery_app(gallery), log_level="warning", server_header=False))
        on_ready(f"http://{HOST_NAMES[0]}:{listener.getsockname()[1]}")
        # uvicorn has ended in good order when it raises this.
        with suppress(KeyboardInterrupt):
            server.run([listener])
        gallery.queue.close()
