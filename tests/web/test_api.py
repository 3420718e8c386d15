"""What programs send and get: verdicts as JSON, and one shape for every error."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from blemish.web.api import EXAMPLE, VerdictAnswer
from blemish.web.config import Limits
from tests.web.support import client_of, grey, made_site


@pytest.fixture
def client(tmp_path: Path) -> TestClient:
    return client_of(made_site(tmp_path))


def test_a_raw_body_is_judged(client: TestClient) -> None:
    answer = client.post("/api/v1/inspect?name=a.png", content=grey(130))
    (verdict,) = answer.json()
    assert (answer.status_code, verdict["decision"], verdict["name"]) == (200, "anomaly", "a.png")
    assert verdict["score"] == pytest.approx(130)
    assert client.get(f"/api/v1/verdicts/{verdict['id']}").json() == verdict
    for link in ("image", "overlay", "heat"):
        assert client.get(verdict["links"][link]).headers["content-type"].startswith("image/")
    assert client.get(verdict["links"]["image"]).content == grey(130)


def test_a_form_is_judged_image_by_image(client: TestClient) -> None:
    files = [("images", (f"{value}.png", grey(value))) for value in (60, 95, 130)] + [("images", ("x.png", b"x"))]
    answer = client.post("/api/v1/inspect", files=files)
    assert [(one["name"], one["decision"]) for one in answer.json()] == [
        ("60.png", "good"),
        ("95.png", "review"),
        ("130.png", "anomaly"),
        ("x.png", "error"),
    ]


def test_a_request_with_a_key_is_recorded_once(client: TestClient) -> None:
    both = [client.post("/api/v1/inspect", content=grey(60), headers={"Idempotency-Key": "k"}) for _ in range(2)]
    assert both[0].json() == both[1].json()
    other = client.post("/api/v1/inspect", content=grey(60), headers={"Idempotency-Key": "l"})
    assert other.json()[0]["id"] != both[0].json()[0]["id"]


def test_an_error_is_one_shape(tmp_path: Path) -> None:
    client = client_of(made_site(tmp_path, limits=Limits(megabytes=0.001, files=2)))
    many = [("images", (f"{i}.png", b"x")) for i in range(3)]
    refused = {
        404: client.get("/api/v1/verdicts/99"),
        405: client.put("/api/v1/inspect"),
        413: client.post("/api/v1/inspect", content=bytes(5000)),
        422: client.get("/api/v1/verdicts/x"),
    }
    for status, answer in refused.items():
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message"}
        assert answer.json()["error"]["message"].endswith(".")
    for answer in (
        client.post("/api/v1/inspect"),
        client.post("/api/v1/inspect?product=none", content=b"x"),
        client.post("/api/v1/inspect", files=many),
        client.post("/api/v1/inspect", files={"other": b"x"}),
    ):
        assert answer.status_code in (400, 404, 422)
        assert set(answer.json()["error"]) == {"code", "message"}


def test_a_fault_is_a_sentence_and_no_trace(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("blemish.web.api.as_answer", lambda _: 1 / 0)
    answer = client.post("/api/v1/inspect", content=grey(60))
    assert answer.status_code == 500
    assert "fault of blemish" in answer.json()["error"]["message"]
    assert "ZeroDivision" not in answer.text
    assert "ZeroDivisionError" in caplog.text


def test_people_get_a_page_of_an_error(client: TestClient) -> None:
    answer = client.get("/nothing", headers={"Accept": "text/html"})
    assert answer.status_code == 404
    assert "There is nothing at this address." in answer.text
    assert '<nav aria-label="Pages">' in answer.text


def test_the_example_of_the_documents_is_an_answer() -> None:
    assert VerdictAnswer.model_validate(EXAMPLE).model_dump() == EXAMPLE


def test_every_route_of_the_api_is_described(client: TestClient) -> None:
    schema = client.get("/api/v1/openapi.json").json()
    for path, methods in schema["paths"].items():
        for method, described in methods.items():
            assert path.startswith("/api/v1/") or path in ("/healthz", "/readyz"), path
            assert described.get("summary"), (method, path)
            assert described.get("description"), (method, path)


def test_of_several_products_one_is_named(tmp_path: Path) -> None:
    from blemish.web.app import assembled
    from blemish.web.config import ServeConfig
    from tests import tiny

    bundles = [tiny.made(tmp_path / name, product=name) for name in ("電機", "b")]
    client = client_of(assembled(ServeConfig(tmp_path / "data", tuple(bundles))))
    answer = client.post("/api/v1/inspect", content=grey(60))
    assert answer.status_code == 422
    assert "product=b or 電機" in answer.json()["error"]["message"]
    assert client.post("/api/v1/inspect?product=電機", content=grey(60)).json()[0]["product"] == "電機"
    assert client.get("/?product=電機", headers={"Accept": "text/html"}).status_code == 200
    assert "<option selected>電機</option>" in client.get("/", headers={"Accept": "text/html"}).text


def test_what_a_browser_has_already_is_not_sent_again(client: TestClient) -> None:
    (verdict,) = client.post("/api/v1/inspect", content=grey(60)).json()
    first = client.get(verdict["links"]["image"])
    assert first.headers["cache-control"] == "private, no-cache"
    again = client.get(verdict["links"]["image"], headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(verdict["links"]["image"], headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, grey(60))
