"""The pages of detectors in a real browser: the slider by keyboard, a training that is watched, on both screens, in
light and dark."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blemish.web import learning
from blemish.web.tables import Image, Job, now
from tests.web.accessibility import serious
from tests.web.browser import Visitor
from tests.web.desk import served
from tests.web.support import grey, made_site


def test_the_threshold_slides_by_keyboard_and_is_saved(tmp_path: Path, desktop: Visitor) -> None:
    site = made_site(tmp_path)
    for value, label in ((85, "anomaly"), (95, "anomaly"), (130, "anomaly"), (92, "good")):
        verdict = site.line.inspect(grey(value), f"{value}.png", "tiny", by="ada", source="page")
        with site.database.writing() as session:
            image = session.get_one(Image, verdict.image_id)
            image.label, image.split = label, "test"
    with served(site) as address:
        page = desktop.new_page()
        page.goto(f"{address}/detectors/1")
        assert serious(page) == []
        # The card: an anomaly above 100, put aside above 90.
        assert page.inner_text("#missed") == "1 of 3"
        assert page.inner_text("#found") == "1 found, 1 put aside"
        page.focus("#flag")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#at") == "score 90"
        assert page.inner_text("#rate") == "at most 50 %"
        assert page.inner_text("#missed") == "1 of 3"
        assert page.inner_text("#found") == "2 found, 0 put aside"
        assert page.inner_text("#false-alarms") == "1 of 1 labelled good images"
        assert page.input_value("#false_alarms") == "50"
        assert page.input_value("#review") == ""
        page.focus("#aside")
        page.keyboard.press("ArrowLeft")
        assert page.inner_text("#missed") == "0 of 3"
        assert page.inner_text("#put-aside") == "25 % of good parts"
        assert page.input_value("#review") == "75"
        assert page.get_attribute("#aside", "aria-valuetext") == "score 80, at most 75 % flagged or put aside"
        page.fill("#false_alarms", "30")  # the lowest threshold that guarantees it
        assert page.inner_text("#at") == "score 100"
        page.fill("#false_alarms", "50")
        page.click("text=Save as a new version")
        page.wait_for_selector("text=Version 2 of tiny")
        page.click("text=Promote")
        page.wait_for_selector("text=Version 2")
        page.close()
    rule = site.detectors.inspector(site.detectors.judging("tiny").id).card.decision
    assert (rule.threshold, rule.review_threshold, rule.false_alarms, rule.review) == (90.0, 80.0, 0.5, 0.75)


def test_a_threshold_stays_on_the_page_when_the_server_is_away(tmp_path: Path, desktop: Visitor) -> None:
    with served(made_site(tmp_path)) as address:
        page = desktop.new_page()
        page.goto(f"{address}/detectors/1")
        page.fill("#false_alarms", "50")
        page.fill("[name=note]", "fewer misses")
        page.fill("#review", "50")  # which the server refuses
        page.click("text=Save as a new version")
        page.wait_for_selector("#notices >> text=must be larger than the rate of false alarms")
        page.fill("#review", "")
        page.wait_for_function("() => !document.querySelector('#slider button').disabled")
        page.context.set_offline(True)
        page.click("text=Save as a new version")
        page.wait_for_selector("#notices >> text=The server cannot be reached")
        assert (page.input_value("#false_alarms"), page.input_value("[name=note]")) == ("50", "fewer misses")
        page.context.set_offline(False)
        page.click("text=Save as a new version")
        page.wait_for_selector("text=Version 2 of tiny")
        assert desktop.forgive("422", "ERR_INTERNET_DISCONNECTED")
        page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_training_is_watched_to_its_end(
    tmp_path: Path, tablet: Visitor, scheme: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_run", lambda *_: None)
    site = made_site(tmp_path, bundles=2)
    job = Job(product="tiny", state="queued", by="ada", created=now(), settings={}, before_id=1)
    job.stage, job.done, job.total, job.error, job.comparison = "features", 3, 9, "", {}
    with site.database.writing() as session:
        session.add(job)
    with served(site) as address:
        page = tablet.new_page()
        page.emulate_media(color_scheme=scheme)
        for path in ("/detectors", "/jobs/1"):
            page.goto(address + path)
            assert serious(page) == []
            assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.text_content("#stage") == "features, 3 of 9"
        with site.database.writing() as session:
            session.get_one(Job, 1).done = 7
        page.wait_for_selector("text=features, 7 of 9")
        with site.database.writing() as session:
            row = session.get_one(Job, 1)
            row.state, row.detector_id, row.ended = "done", 2, now()
            row.comparison = {"words": ["No labelled image is held out yet."]}
        page.wait_for_selector("text=Learned: version 2")
        assert page.is_visible("text=No labelled image is held out yet.")
        assert serious(page) == []
        page.click("text=Promote version 2")
        page.wait_for_selector("text=Roll back to it")
        page.close()
    assert site.detectors.judging("tiny").id == 2


LEADS = (
    '<meta http-equiv="refresh" content="0;url={}">',
    '<a href="{}" id="go">go</a>',
    '<a href="{}" target="_top" id="go">go</a>',
    '<a href="{}" target="_blank" id="go">go</a>',
    '<form action="{}" target="_top"><button id="go">go</button></form>',
)


def test_a_report_leads_nowhere(tmp_path: Path, desktop: Visitor) -> None:
    site = made_site(tmp_path)
    file = site.detectors.place(site.detectors.version(1)) / "report.html"
    asked: list[str] = []
    with served(site) as address:
        stranger = address.replace("127.0.0.1", "localhost") + "/stranger"
        page = desktop.new_page()
        page.on("request", lambda request: asked.append(request.url))
        for leads in LEADS:
            file.write_text(f"<p>A report</p>{leads.format(stranger)}", encoding="utf-8")
            page.goto(f"{address}/detectors/1/report")
            if 'id="go"' in leads:
                page.frame_locator("iframe.report").locator("#go").click()
            page.wait_for_timeout(300)
            assert (leads, page.url, len(page.context.pages)) == (leads, f"{address}/detectors/1/report", 1)
        page.close()
    assert f"{address}/detectors/1/report.html" in asked
    assert stranger not in asked
    assert len(desktop.forgive("frame-src", "sandboxed")) == len(LEADS)
