"""Corrections, queue and agreement for programs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from blemish.web.app import application
from blemish.web.corrections import label
from blemish.web.site import Site
from tests.web.desk import image, judged, opened, troubles
from tests.web.support import HERE

API = "/api/v1"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    opened_site = opened(tmp_path)
    yield opened_site
    opened_site.database.close()


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(application(site), base_url=HERE) as client:
        yield client


def test_correct_list_and_undo(site: Site, client: TestClient) -> None:
    judged(site, 95)
    shapes = [{"points": [[1, 2], [10, 2], [5, 20]]}]
    body = {"label": "anomaly", "defect": "dent", "shapes": shapes, "seen_verdict": 1, "seen_correction": 0}
    made = client.post(f"{API}/images/1/corrections", json=body)
    assert made.status_code == 200
    assert made.json() | {"time": "", "by": ""} == {
        "id": 1,
        "image_id": 1,
        "image": image(site, 1).sha256,
        "name": "95-0.png",
        "product": "tiny",
        "verdict_id": 1,
        "time": "",
        "by": "",
        "action": "label",
        "label": "anomaly",
        "defect": "dent",
        "shapes": [{"points": [[1.0, 2.0], [10.0, 2.0], [5.0, 20.0]]}],
        "note": "",
        "undoes": None,
        "kept": [],
    }
    agreed = client.post(f"{API}/images/1/corrections", json={"label": "anomaly"}).json()
    assert (agreed["defect"], agreed["shapes"], agreed["kept"]) == ("", [], ["defect", "shapes"])
    assert (image(site, 1).defect, len(image(site, 1).shapes)) == ("dent", 1)
    client.post(f"{API}/corrections/2/undo")
    client.post(f"{API}/images/1/corrections", json={"action": "again", "note": "?"})
    client.post(f"{API}/images/1/corrections", json={"action": "skip"})
    undone = client.post(f"{API}/corrections/5/undo").json()
    assert (undone["action"], undone["undoes"]) == ("undo", 5)
    rows = client.get(f"{API}/corrections").json()
    assert [(row["id"], row["action"]) for row in rows[:4]] == [(6, "undo"), (5, "skip"), (4, "again"), (3, "undo")]
    assert [row["id"] for row in client.get(f"{API}/corrections?before=5&limit=1").json()] == [4]
    assert client.get(f"{API}/corrections?image_id=9").json() == []
    assert client.get(f"{API}/corrections/4").json() == rows[2]
    assert troubles(site) == []


def test_refusals(site: Site, client: TestClient) -> None:
    judged(site, 95)
    address = f"{API}/images/1/corrections"
    label(site, 1, "ben", "good")
    told = client.post(address, json={"label": "anomaly", "seen_correction": 0})
    assert told.status_code == 409
    assert told.json()["error"] == {
        "code": "conflict",
        "message": "95-0.png: ben called it good meanwhile. Look once more, then decide.",
    }
    for body, status in (
        ({}, 422),
        ({"label": "bad"}, 422),
        ({"label": "good", "defect": "dent"}, 422),
        ({"label": "anomaly", "shapes": [{"points": [[1, 2]]}]}, 422),
        ({"label": "anomaly", "shapes": [{"points": [[1, 2], [3, 4], [99, 1]]}]}, 422),
        ({"label": "anomaly", "seen_verdict": 7}, 422),
    ):
        answer = client.post(address, json=body)
        assert answer.status_code == status, body
        assert set(answer.json()["error"]) == {"code", "message"}
    for method, path in (
        ("POST", f"{API}/images/99/corrections"),
        ("POST", f"{API}/corrections/99/undo"),
        ("GET", f"{API}/corrections/99"),
    ):
        assert client.request(method, path, json={"label": "good"}).status_code == 404
    for path in (f"{API}/images/{2**70}/corrections", f"{API}/corrections/{2**70}/undo"):
        assert client.post(path, json={"label": "good"}).status_code == 422
    assert image(site, 1).label == "good"


def test_the_queue_in_pages(site: Site, client: TestClient) -> None:
    for mean in (20, 95, 150, 96):
        judged(site, mean)
    first = client.get(f"{API}/review?limit=2").json()
    assert first["waiting"] == 3
    assert [(one["name"], one["reason"], one["decision"]) for one in first["images"]] == [
        ("95-0.png", "put aside for review", "review"),
        ("96-0.png", "put aside for review", "review"),
    ]
    second = client.get(f"{API}/review", params={"limit": 2, "after": first["next"]}).json()
    assert [one["name"] for one in second["images"]] == ["150-0.png"]
    assert second["next"] is None
    assert client.get(f"{API}/review?after=x").status_code == 422
    assert client.get(second["images"][0]["links"]["image"]).status_code == 200
    assert [one["name"] for one in client.get(f"{API}/review?show=rest").json()["images"]] == ["20-0.png"]


def test_agreement(site: Site, client: TestClient) -> None:
    assert client.get(f"{API}/agreement").json() == []
    for number in (0, 1):
        judged(site, 95, number)
        label(site, number + 1, "anna", "good" if number else "anomaly")
        label(site, number + 1, "ben", "good")
    (pair,) = client.get(f"{API}/agreement").json()
    assert pair | {"kappa": pair["kappa"]["value"]} == {
        "first": "anna",
        "second": "ben",
        "n": 2,
        "agreed": 1,
        "kappa": 0.0,  # o = 1/2, e = 1/2 * 0 + 1/2 * 1
        "differ": [1],
        "open": [1],
    }
