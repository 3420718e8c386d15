"""The pages of detectors and trainings, as a browser without scripts uses them, and the same for programs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from blemish.inference import bundle
from blemish.web import learning, thresholds
from blemish.web.site import Site
from blemish.web.tables import Detector, Image, Job, now
from tests import tiny
from tests.web.support import client_of, grey, made_site

HTML = {"Accept": "text/html"}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site with two versions, whose trainings never begin."""
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    made = made_site(tmp_path, bundles=2)
    yield made
    made.database.close()


@pytest.fixture
def client(site: Site) -> TestClient:
    return client_of(site)


def label(site: Site, value: int, said: str) -> Image:
    verdict = site.line.inspect(grey(value), f"{value}.png", "tiny", by="ada", source="page")
    with site.database.writing() as session:
        image = session.get_one(Image, verdict.image_id)
        image.label, image.split = said, "train"
    return image


def send(client: TestClient, address: str, **fields: str) -> Any:
    """A form as the page has it, and the page that it leads to."""
    page = client.get("/detectors", headers=HTML).text
    csrf = re.search('name="csrf" value="([^"]+)"', page)
    assert csrf
    return client.post(address, data={"csrf": csrf[1], **fields}, headers=HTML, follow_redirects=True)


def test_versions_are_promoted_and_rolled_back_by_forms(site: Site, client: TestClient) -> None:
    page = client.get("/detectors", headers=HTML).text
    assert '<a href="/detectors/1">Version 1</a> judges. At most 25 % of good parts flagged, at most 50 %' in page
    assert "No image is labelled as good yet." in page
    after = send(client, "/detectors/2/promote")
    assert after.status_code == 200
    assert '<a href="/detectors/2">Version 2</a> judges' in after.text
    assert "Roll back to it" in after.text
    send(client, "/detectors/1/promote")
    assert [p.detector_id for p in site.detectors.promotions("tiny")] == [1, 2, 1]
    assert client.get("/detectors/99", headers=HTML).status_code == 404


def test_the_threshold_is_saved_by_a_form_without_scripts(site: Site, client: TestClient) -> None:
    label(site, 95, "anomaly")
    page = client.get("/detectors/1", headers=HTML).text
    assert "good, calibration: 3" in page
    assert "only an estimate" in page
    assert "It is not known which images version 1 learned from" in page
    assert 'type="application/json"' in page
    after = send(client, "/detectors/1/threshold", false_alarms="50", review="", note="<b>fewer</b> misses")
    assert after.status_code == 200
    assert "Version 3 of tiny" in after.text
    assert "&lt;b&gt;fewer&lt;/b&gt; misses" in after.text
    assert site.detectors.inspector(3).card.decision.threshold == 90.0
    refused = send(client, "/detectors/1/threshold", false_alarms="1")
    assert refused.status_code == 422
    assert "cannot guarantee 1.00% false alarms" in refused.text
    for text in ("much", "0", "1e-300", "nan", "100"):
        assert "is no rate of false alarms" in send(client, "/detectors/1/threshold", false_alarms=text).text
    assert site.detectors.judging("tiny").id == 1


def test_a_training_is_begun_watched_and_cancelled_by_forms(site: Site, client: TestClient) -> None:
    label(site, 10, "good")
    label(site, 240, "anomaly")
    page = client.get("/detectors", headers=HTML).text
    assert "the detector is patchcore" in page
    begun = send(client, "/detectors/learn?product=tiny", false_alarms="10", review="20", detector="hybrid")
    assert begun.status_code == 200
    assert "Learning begins" in begun.text
    with site.database.reading() as session:
        job = session.get_one(Job, 1)
    assert (job.settings["false_alarms"], job.settings["review"], job.settings["detector"]) == (0.1, 0.2, "hybrid")
    assert (job.before_id, job.state) == (1, "queued")
    assert "<b>A training is running</b>, begun by" in client.get("/detectors", headers=HTML).text
    told = client.get("/jobs/1/progress").json()
    assert (told["alive"], told["stage"]) == (True, "waiting for its process")
    again = send(client, "/detectors/learn?product=tiny", false_alarms="10")
    assert again.status_code == 422
    assert "runs already (job 1)" in again.text
    ended = send(client, "/jobs/1/cancel")
    assert "Nothing was changed" in ended.text
    assert client.get("/jobs/1/progress").json()["alive"] is False
    assert client.get("/jobs/2", headers=HTML).status_code == 404


def test_the_comparison_is_told_in_words_and_figures(site: Site, client: TestClient) -> None:
    share = {"value": 0.5, "low": 0.2, "high": 0.8}
    less = {"value": 0.25, "low": -0.1, "high": 0.6}
    image = label(site, 95, "anomaly")
    figures = {"auroc": share, "recall": share, "false_alarm_rate": share}
    compared: dict[str, Any] = {
        **{"images": 8, "good": 4, "anomalies": 4, "words": ["Only 4 good images are held out."]},
        "runs": [{"run": "version 1", "review": 1, **figures}, {"run": "version 2", "review": 0, **figures}],
        "differences": [
            {
                **{"auroc": less, "recall": less, "false_alarm_rate": less},
                "mcnemar": {"only_first_right": 1, "only_second_right": 3, "p_value": 0.625},
            }
        ],
        "changed": [
            {"name": "test/x.png", "label": "anomaly", "defect": "dent", "decisions": ["good", "anomaly"]}
            | {"image": image.id, "sha256": image.sha256, "shown": "95.png", "corrected": True}
        ],
        "corrected": {"images": 3, "right": [0, 2], "review": [1, 0], "wrong": [2, 1]},
    }
    job = Job(product="tiny", state="done", by="ada", created=now(), ended=now(), settings={}, before_id=1)
    job.detector_id, job.comparison, job.stage, job.error = 2, compared, "", ""
    with site.database.writing() as session:
        session.add(job)
    for number in (1, 2):
        site.store.put_thumbnail(b"\xff\xd8\xff", image.sha256, number)
    page = client.get("/jobs/1", headers=HTML).text
    assert "Learned: version 2" in page
    assert "On the same 8 held-out images" in page
    assert "Version 2 alone is right on 3 images, version 1 alone on 1." in page
    assert "That could be chance (McNemar, p = 0.625)" in page
    assert "+0.250" in page
    assert "now right" in page
    assert "It is not known which images version 1 learned from; if held-out ones are among them" in page
    assert "labelled anomaly (dent) by a person" in page
    assert "On 3 corrected images that are held out" in page
    assert re.search(
        '<th scope="row">Right</th><td data-label="Version 1">0</td><td data-label="Version 2">2</td>', page
    )
    assert "this count favours the new version, and is no test of it" in page
    assert f"/detectors/2/images/{image.sha256}.jpg" in page
    assert client.get(f"/detectors/2/images/{image.sha256}.jpg").content == b"\xff\xd8\xff"
    site.store.thumbnail(image.sha256, 2).unlink()  # as after a restore: it is drawn again
    assert client.get(f"/detectors/2/images/{image.sha256}.jpg").content.startswith(b"\xff\xd8\xff\xe0")
    assert client.get("/detectors/2/images/..%2F.jpg").status_code == 404
    assert client.get("/api/v1/jobs/1").json()["comparison"]["images"] == 8
    alone = {"words": ["No test."], "corrected": compared["corrected"], "changed": compared["changed"]}
    with site.database.writing() as session:
        session.get_one(Job, 1).comparison = alone
    page = client.get("/jobs/1", headers=HTML).text
    assert "Not tested against each other" in page
    assert "On 3 corrected images that are held out" in page
    assert "1 verdict changed" in page
    assert "McNemar" not in page
    assert "95 %" not in page
    with site.database.writing() as session:
        session.get_one(Job, 1).comparison = {"words": ["No labelled image is held out yet."]}
    page = client.get("/jobs/1", headers=HTML).text
    assert "Not compared" in page
    assert "No labelled image is held out yet." in page


def test_remarks_that_the_figures_are_too_good_stand_beside_them(site: Site, client: TestClient) -> None:
    image = label(site, 95, "anomaly")
    figure = {"value": 0.5, "low": None, "high": None}
    run: dict[str, Any] = {"review": 0, "auroc": figure, "recall": figure, "false_alarm_rate": figure}
    test = {"only_first_right": 0, "only_second_right": 0, "p_value": None}
    job = Job(product="tiny", state="done", by="ada", created=now(), ended=now(), before_id=1, detector_id=2)
    job.stage = job.error = ""
    job.settings = {"new": 11, "new_good": 0}
    job.comparison = {
        **{"images": 8, "good": 4, "anomalies": 4, "words": [], "runs": [run, run], "changed": []},
        "differences": [{"auroc": figure, "recall": figure, "false_alarm_rate": figure, "mcnemar": test}],
        "audit": [
            "An older sentence.",
            {"sentence": "95.png and x.png, in the training and the test split: figures measured on them are too good."}
            | {"images": [[image.id, "95.png"]]},
        ],
    }
    with site.database.writing() as session:
        session.add(job)
        session.get_one(Detector, 2).metrics = {"detector": "patchcore"}
    page = client.get("/jobs/1", headers=HTML).text
    said = f'figures measured on them are too good. See <a href="/review/{image.id}">95.png</a>.</p>'
    assert f'<p class="caution">95.png and x.png, in the training and the test split: {said}' in page
    assert "1 more remark on the labelled images</summary><ul><li>An older sentence.</li></ul>" in page
    assert "patchcore learns from good images alone: it learns nothing from them" in page


def test_what_a_version_learned_from_is_counted_by_hand(site: Site, client: TestClient) -> None:
    counted = {"train": 89, "train_anomaly": 28, "calibration": 19, "calibration_anomaly": 7}
    counted |= {"test_good": 20, "test_anomaly": 9, "test_picked": 2}
    metrics = {"counts": counted, "detection": {"auroc": {"value": 0.9, "low": 0.8, "high": 1.0}}}
    with site.database.writing() as session:
        session.get_one(Detector, 2).metrics = metrics
    page = client.get("/detectors", headers=HTML).text
    assert "80 good, 35 defective<small>tested on 20 good, 9 defective<br>2 of them picked</small>" in page
    assert "2 of its 29 test images were labelled by people" in client.get("/detectors/2", headers=HTML).text


def test_a_report_runs_no_script_but_ours(site: Site, client: TestClient) -> None:
    assert client.get("/detectors/1/report", headers=HTML).status_code == 404
    place = site.detectors.place(site.detectors.version(1)) / "report.html"
    place.write_text("<h1>Report</h1><script>alert(1)</script>")
    around = client.get("/detectors/1/report", headers=HTML)
    assert 'sandbox="allow-scripts" src="/detectors/1/report.html"' in around.text
    assert {"frame-src 'self'", "script-src 'self'"} <= set(around.headers["content-security-policy"].split("; "))
    tab = client.get("/detectors/1/report.html", headers={**HTML, "Sec-Fetch-Dest": "document"})
    assert (tab.status_code, tab.headers["location"]) == (303, "/detectors/1/report")
    assert client.get("/api/v1/detectors/1").json()["links"]["report"] == "/detectors/1/report.html"
    answer = client.get("/detectors/1/report.html", headers=HTML)
    assert answer.text.startswith("<h1>Report</h1>")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; img-src data: 'self'; style-src 'unsafe-inline'")
    (script,) = [part for part in policy.split("; ") if part.startswith("script-src")]
    assert re.fullmatch(r"script-src 'sha256-[A-Za-z0-9+/]{43}='", script)  # of blemish's own
    assert {"sandbox allow-scripts", "form-action 'none'", "base-uri 'none'", "frame-ancestors 'self'"} <= set(
        policy.split("; ")
    )


def test_programs_list_promote_and_save(site: Site, client: TestClient) -> None:
    listed = client.get("/api/v1/detectors", params={"limit": 1}).json()
    assert [(row["id"], row["judges"]) for row in listed] == [(2, False)]
    assert [row["id"] for row in client.get("/api/v1/detectors", params={"before": 2}).json()] == [1]
    assert client.post("/api/v1/detectors/2/promote").json()["judges"] is True
    chosen = client.get("/api/v1/detectors/1/threshold").json()
    assert chosen["steps"] == [
        {"threshold": 80.0, "rate": 0.75},
        {"threshold": 90.0, "rate": 0.5},
        {"threshold": 100.0, "rate": 0.25},
    ]
    saved = client.post("/api/v1/detectors/1/threshold", json={"false_alarms": 0.5, "review": 0.75, "note": "x"})
    assert (saved.status_code, saved.json()["kind"], saved.json()["parent_id"]) == (201, "threshold", 1)
    same = client.post("/api/v1/detectors/3/threshold", json={"false_alarms": 0.5, "review": 0.75})
    assert same.status_code == 422
    assert "has already" in same.json()["error"]["message"]
    assert client.post("/api/v1/jobs").json()["error"]["message"].startswith("'tiny' has no good image")
    label(site, 10, "good")
    begun = client.post("/api/v1/jobs", json={"false_alarms": 0.25})
    assert (begun.status_code, begun.json()["state"]) == (202, "queued")
    assert [row["id"] for row in client.get("/api/v1/jobs").json()] == [begun.json()["id"]]
    assert client.post(f"/api/v1/jobs/{begun.json()['id']}/cancel").json()["state"] == "cancelled"
    assert client.get("/api/v1/jobs/77").status_code == 404


def test_what_has_no_calibration_says_so(tmp_path: Path) -> None:
    rule = {**tiny.card().decision.model_dump(), "rule": "class", "scores": (), "map_maxima": (), "false_alarms": None}
    tiny.made(tmp_path / "bundle0", decision={**rule, "review": None, "review_threshold": None})
    site = made_site(tmp_path)
    client = client_of(site)
    page = client.get("/detectors/1", headers=HTML).text
    assert "This version decides by the likelier class: it has no calibration scores" in page
    assert 'id="slider"' not in page
    assert "Decides by the likelier class, without a guaranteed rate." in client.get("/detectors", headers=HTML).text
    assert client.get("/api/v1/detectors/1/threshold").json()["steps"] == []
    refused = client_of(site).post("/api/v1/detectors/1/threshold", json={"false_alarms": 0.5})
    assert "there is no threshold to choose" in refused.json()["error"]["message"].lower()
    site.database.close()


def test_a_guarantee_with_confidence_says_what_choosing_costs(tmp_path: Path) -> None:
    rule = {**tiny.card().decision.model_dump(), "confidence": 0.5}
    tiny.made(tmp_path / "bundle0", decision=rule)
    site = made_site(tmp_path)
    page = client_of(site).get("/detectors/1", headers=HTML).text
    assert "costs some of the confidence" in page
    assert "only an estimate" not in page
    assert "at most 50 %, with what is flagged" in page  # no difference of two bounds
    assert "25 % of good parts" not in page
    saved = thresholds.save(site.detectors, site.detectors.judging("tiny"), 0.75, None, by="ada")
    sentence = bundle.read(site.detectors.place(saved) / "bundle").card.decision.guarantee
    assert sentence.endswith(thresholds.CHOSEN_CONFIDENT)
    site.database.close()
