import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from rlaif_ray.config import UserError
from rlaif_ray.records import AnswerToScore, Message, Outcome
from rlaif_ray.serving import http
from rlaif_ray.serving.http import create_app
from rlaif_ray.serving.service import AnswerReward, Overloaded, RewardVersion, ServerState

KEY = "sk-öffne-dich"


def version(number: int) -> RewardVersion:
    return RewardVersion(number, f"fingerprint-{number}", Path(f"/models/{number}"), members=2)


class LengthService:
    """Scores an answer by its length; one that says "fail" cannot be scored."""

    def __init__(self) -> None:
        self.loaded = [version(1)]
        self.asked: list[AnswerToScore] = []
        self.actors = 1
        self.overloaded = False

    async def score(self, answers: Sequence[AnswerToScore]) -> list[AnswerReward]:
        if self.overloaded:
            raise Overloaded("9 answers wait")
        self.asked += answers
        return [
            AnswerReward(Outcome.FAILED, "it said so", self.loaded[-1])
            if answer.text == "fail"
            else AnswerReward(Outcome.SCORED, "", self.loaded[-1], float(len(answer.text)), 0.5, (1.0, 2.0))
            for answer in answers
        ]

    async def load(self, directory: Path) -> RewardVersion:
        if directory.name == "broken":
            raise UserError("/models/broken holds no reward model")
        self.loaded.append(version(len(self.loaded) + 1))
        return self.loaded[-1]

    def versions(self) -> Sequence[RewardVersion]:
        return self.loaded

    def state(self) -> ServerState:
        return ServerState(self.loaded[-1], actors=self.actors, starting=1, waiting=3, in_flight=2)


@pytest.fixture
def service() -> LengthService:
    return LengthService()


@pytest.fixture
def client(service: LengthService) -> Iterator[TestClient]:
    with TestClient(create_app(service, key=None, max_answers=5)) as client:
        yield client


def test_each_answer_has_an_outcome_and_a_failure_no_number(client: TestClient, service: LengthService) -> None:
    items = [
        {"id": "mine", "prompt": "Hello", "answer": "four"},
        {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "answer": "fail"},
    ]
    reply = client.post("/v1/score", json={"items": items})
    assert reply.status_code == 200
    name = {"number": 1, "fingerprint": "fingerprint-1"}
    assert reply.json()["items"] == [
        {
            "id": "mine",
            "outcome": "scored",
            "reason": "",
            "score": 4.0,
            "raw": [1.0, 2.0],
            "disagreement": 0.5,
            "version": name,
        },
        {
            "id": "1",
            "outcome": "failed",
            "reason": "it said so",
            "score": None,
            "raw": None,
            "disagreement": None,
            "version": name,
        },
    ]
    assert service.asked[0].prompt.content == "Hello"
    assert service.asked[1].prompt.content == (Message("system", "Be kind."), Message("user", "Hi"))


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ('{"items": [{"prompt": "a"}]}', "items.0.answer: Field required"),
        (
            '{"items": [{"prompt": "a", "answer": "b", "anwser": "b"}]}',
            "items.0.anwser: Extra inputs are not permitted",
        ),
        ('{"items": []}', "items: List should have at least 1 item"),
        ('{"items": [{"prompt": [], "answer": "b"}]}', "items.0.prompt"),
        ('{"items": [{"prompt": 7, "answer": "b"}]}', "items.0.prompt.*valid string"),
        (
            '{"items": [{"prompt": [{"role": "boss", "content": "a"}], "answer": "b"}]}',
            "0.role: Input should be 'system'",
        ),
        ('{"items"', "JSON decode error"),
        ("[]", "the body: "),
    ],
)
def test_a_bad_body_is_told_in_one_sentence(client: TestClient, body: str, sentence: str) -> None:
    reply = client.post("/v1/score", content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert re.search(sentence, reply.json()["detail"])
    assert "\n" not in reply.json()["detail"]


def test_calls_that_are_too_large_or_too_many_are_refused(
    client: TestClient, service: LengthService, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = {"prompt": "a", "answer": "b"}
    many = client.post("/v1/score", json={"items": [answer] * 6})
    assert (many.status_code, many.json()["detail"]) == (413, "6 answers in one call; send at most 5")

    monkeypatch.setattr(http, "MAX_BODY_BYTES", 2**20)
    large = {"items": [{"prompt": "a", "answer": "b" * 2**20}]}
    assert client.post("/v1/score", json=large).status_code == 413
    # A body whose length is not told beforehand.
    in_pieces = client.post("/v1/score", content=(b"x" * 2**18 for _ in range(5)))
    assert (in_pieces.status_code, "1 MiB" in in_pieces.json()["detail"]) == (413, True)

    service.overloaded = True
    busy = client.post("/v1/score", json={"items": [answer]})
    assert (busy.status_code, busy.json()["detail"]) == (503, "9 answers wait")
    assert busy.headers["Retry-After"] == "1"


def test_versions_are_listed_and_loaded_and_a_refusal_says_why(client: TestClient) -> None:
    refused = client.post("/v1/versions", json={"directory": "/models/broken"})
    assert (refused.status_code, refused.json()["detail"]) == (422, "/models/broken holds no reward model")
    assert client.post("/v1/versions", json={"directory": "/models/2"}).json()["number"] == 2
    listed = client.get("/v1/versions").json()
    assert [(one["number"], one["directory"], one["current"]) for one in listed] == [
        (1, "/models/1", False),
        (2, "/models/2", True),
    ]


def test_health_is_bad_while_no_actor_serves(client: TestClient, service: LengthService) -> None:
    healthy = client.get("/healthz")
    expected = {"status": "ok", "version": 1, "actors": 1, "starting": 1, "waiting": 3, "in_flight": 2}
    assert (healthy.status_code, healthy.json()) == (200, expected)
    service.actors = 0
    assert client.get("/healthz").status_code == 503


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (None, 401),
        ("Bearer wrong", 401),
        (f"Bearer {KEY}x", 401),
        (f"Basic {KEY}", 401),
        (f"Bearer {KEY}", 200),
    ],
)
def test_with_a_key_only_those_who_have_it_are_served(service: LengthService, header: str | None, status: int) -> None:
    headers: dict[str, Any] = {} if header is None else {"Authorization": header.encode()}
    with TestClient(create_app(service, key=KEY, max_answers=5)) as client:
        for method, path in (("POST", "/v1/score"), ("GET", "/v1/versions"), ("POST", "/v1/versions")):
            body = {"items": [{"prompt": "a", "answer": "b"}]} if path.endswith("score") else {"directory": "/models/2"}
            assert client.request(method, path, json=body, headers=headers).status_code == status
        assert client.get("/healthz").status_code == 200
    assert len(service.asked) == (status == 200)


def test_the_api_page_needs_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    for path in ("/v1/score", "/v1/versions", "/healthz"):
        assert path in page
    assert "answer" in page
    assert not re.search(r"(src|href)=.?(https?:)?//", page)
    assert client.get("/openapi.json").json()["paths"].keys() == {"/v1/score", "/v1/versions", "/healthz"}
