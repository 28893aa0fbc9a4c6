"""The reward server's HTTP face: a FastAPI application over a `RewardService`. It knows nothing of actors.

An answer that cannot be scored is an item with the outcome `failed` and no number; a call as a whole is refused with
401, 413, 422 or 503 and one sentence in `detail`.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import jinja2
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rlaif_ray.config import UserError
from rlaif_ray.records import AnswerToScore, Prompt, Role
from rlaif_ray.records import Message as Turn
from rlaif_ray.serving.service import AnswerReward, Overloaded, RewardService, RewardVersion

# A body is read whole before its answers can be counted.
MAX_BODY_BYTES = 64 * 2**20

_BEARER = HTTPBearer(auto_error=False)


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class TurnBody(Body):
    role: Role
    content: str


class AnswerBody(Body):
    id: str | None = None
    """Comes back with the score. Without it: the answer's place in the call."""
    prompt: str | Annotated[list[TurnBody], Field(min_length=1)]
    """A text, or a conversation whose last turn is the user's."""
    answer: str


class ScoreBody(Body):
    items: Annotated[list[AnswerBody], Field(min_length=1)]


class VersionName(Body):
    number: int
    fingerprint: str
    """SHA-256 of all files of the model."""


class ScoreItem(Body):
    id: str
    outcome: Literal["scored", "failed"]
    reason: str
    """Why it was not scored; empty where it was."""
    score: float | None
    """In units of the normalised reward; of an ensemble the mean. Null unless scored."""
    raw: list[float] | None
    """The logit of the model, or of each model of an ensemble. Null unless scored."""
    disagreement: float | None
    """Standard deviation of the score over an ensemble; null for one model."""
    version: VersionName
    """The model that scored it, or was to."""


class ScoreReply(Body):
    items: list[ScoreItem]
    """In the order of the call, all by one version."""


class LoadBody(Body):
    directory: Path
    """A reward model, or an ensemble of them, on the server's disk."""


class VersionReply(VersionName):
    directory: Path
    members: int
    """Models in the ensemble; 1 for one alone."""
    current: bool
    """Whether new calls are scored by it. Others finish what they have."""


class HealthReply(Body):
    status: Literal["ok", "starting"]
    version: int
    actors: int
    """That serve."""
    starting: int
    waiting: int
    """Answers that wait for a forward."""
    in_flight: int


def create_app(service: RewardService, *, key: str | None, max_answers: int) -> FastAPI:
    """`key`: what callers of /v1 must send as `Authorization: Bearer KEY`. `max_answers`: to one call at most."""
    app = FastAPI(
        title="rlaif reward server",
        description="Scores answers with a reward model that learned an AI's preferences.",
        docs_url=None,  # its page loads from elsewhere
        redoc_url=None,
    )
    app.add_middleware(_BodyLimit)
    app.add_exception_handler(RequestValidationError, _unprocessable)
    v1 = APIRouter(prefix="/v1", dependencies=[] if key is None else [Depends(_bearer_of(key))])

    @v1.post("/score")
    async def score(body: ScoreBody) -> ScoreReply:
        """Score answers, each with its prompt. All of a call are scored by one version of the model."""
        if len(body.items) > max_answers:
            raise HTTPException(413, f"{len(body.items)} answers in one call; send at most {max_answers}")
        answers = [_answer_of(item, place) for place, item in enumerate(body.items)]
        try:
            rewards = await service.score(answers)
        except Overloaded as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "1"}) from None
        return ScoreReply(items=[_item_of(answer.id, reward) for answer, reward in zip(answers, rewards, strict=True)])

    @v1.get("/versions")
    async def versions() -> list[VersionReply]:
        """The models that are loaded, the current one last."""
        loaded = service.versions()
        return [_description_of(version, current=version is loaded[-1]) for version in loaded]

    @v1.post("/versions")
    async def load_version(body: LoadBody) -> VersionReply:
        """Load another model beside the current one. What comes after the reply is scored by it; where it cannot be
        loaded, the reply says why, and the current one goes on."""
        try:
            return _description_of(await service.load(body.directory), current=True)
        except UserError as error:
            raise HTTPException(422, str(error)) from None

    @app.get("/healthz")
    async def health() -> HealthReply:
        """How the server is. Status 503 while no actor serves."""
        state = service.state()
        reply = HealthReply(
            status="ok" if state.actors else "starting",
            version=state.version.number,
            actors=state.actors,
            starting=state.starting,
            waiting=state.waiting,
            in_flight=state.in_flight,
        )
        if not state.actors:
            raise HTTPException(503, reply.model_dump())
        return reply

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))

    app.include_router(v1)
    return app


def _bearer_of(key: str) -> Callable[[Any], Awaitable[None]]:
    async def check(sent: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        # A header's bytes come as latin-1.
        if sent is None or not secrets.compare_digest(sent.credentials.encode("latin-1"), key.encode()):
            raise HTTPException(
                401, "send the server's key as `Authorization: Bearer KEY`", headers={"WWW-Authenticate": "Bearer"}
            )

    return check


def _answer_of(item: AnswerBody, place: int) -> AnswerToScore:
    id = str(place) if item.id is None else item.id
    if isinstance(item.prompt, str):
        return AnswerToScore(id, Prompt(id, item.prompt), item.answer)
    turns = tuple(Turn(turn.role, turn.content) for turn in item.prompt)
    return AnswerToScore(id, Prompt(id, turns), item.answer)


def _item_of(id: str, reward: AnswerReward) -> ScoreItem:
    return ScoreItem(
        id=id,
        outcome="scored" if reward.score is not None else "failed",
        reason=reward.reason,
        score=reward.score,
        raw=None if reward.raw is None else list(reward.raw),
        disagreement=reward.disagreement,
        version=VersionName(number=reward.version.number, fingerprint=reward.version.fingerprint),
    )


def _description_of(version: RewardVersion, *, current: bool) -> VersionReply:
    return VersionReply(
        number=version.number,
        fingerprint=version.fingerprint,
        directory=version.directory,
        members=version.members,
        current=current,
    )


async def _unprocessable(request: Request, error: Exception) -> JSONResponse:
    """What is wrong with a body, as one sentence that names the field."""
    assert isinstance(error, RequestValidationError)
    # Of what may be a text or a list both are told; the deeper one is about what was sent.
    problem = max(error.errors(), key=lambda problem: len(problem["loc"]))
    where = ".".join(str(part) for part in problem["loc"] if part != "body")
    return JSONResponse({"detail": f"{where or 'the body'}: {problem['msg']}"}, status_code=422)


class _BodyLimit:
    """Refuses a body that goes on beyond the limit, whatever its header says."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > MAX_BODY_BYTES:
                raise HTTPException(413, f"the body exceeds {MAX_BODY_BYTES // 2**20} MiB; send fewer answers a call")
            return message

        await self._app(scope, limited, send)


def _page(schema: dict[str, Any]) -> str:
    """The API as a page that needs nothing from elsewhere."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = files(__package__).joinpath("api.html.j2").read_text(encoding="utf-8")
    return environment.from_string(template).render(schema=schema)
