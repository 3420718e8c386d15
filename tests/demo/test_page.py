import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from blemish.demo.page import OUTCOMES, write_page
from blemish.inference import bundle
from blemish.reporting.figures import number
from blemish.reporting.thumbnails import OUTLINE, outline
from blemish.types import BlemishError
from tests.support import write_image

ODD = "test/good/a #1 & <b>50%.png"


class Elements(HTMLParser):
    """All start tags of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())

    def all(self, tag: str, kind: str = "") -> list[dict[str, str]]:
        return [a for name, a in self.tags if name == tag and kind in (a.get("class", "").split() or [""])]


@pytest.fixture(scope="module")
def demo(run: Path, product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and its data as `blemish demo` writes them, one image with a name that HTML and URLs must escape."""
    out = tmp_path_factory.mktemp("demo")
    shutil.copytree(run, out / "tiles")
    shutil.copytree(product, out / "data/tiles")
    (out / "data/tiles/test/good/000.png").rename(out / "data/tiles" / ODD)
    (out / "tiles/overlays/test/good/000.png.jpg").rename(out / "tiles/overlays" / f"{ODD}.jpg")
    lines = (out / "tiles/verdicts.jsonl").read_text(encoding="utf-8")
    (out / "tiles/verdicts.jsonl").write_text(lines.replace("test/good/000.png", ODD), encoding="utf-8")
    assert write_page(out, ["tiles"]) == out / "index.html"
    return out


@pytest.fixture(scope="module")
def page(demo: Path) -> Elements:
    return Elements((demo / "index.html").read_text(encoding="utf-8"))


def addresses(page: Elements) -> set[str]:
    names = ("src", "href", "data-image", "data-heat", "data-outline", "data-reconstruction")
    return {a[name] for _, a in page.tags for name in names if a.get(name)}


def test_every_test_image_is_shown_once(demo: Path, page: Elements) -> None:
    verdicts = [json.loads(line) for line in (demo / "tiles/verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [unquote(a["data-image"]) for a in page.all("a", "pair")]
    assert sorted(shown) == sorted(f"data/tiles/{v['path']}" for v in verdicts)
    assert len(shown) == 12


def test_nothing_is_loaded_from_elsewhere_and_all_links_have_targets(demo: Path, page: Elements) -> None:
    ids = {a["id"] for _, a in page.tags if "id" in a}
    for address in addresses(page):
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith("data:image/svg+xml,"):
            assert ":" not in address
            assert (demo / unquote(address)).is_file(), address
    text = (demo / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|<link(?! rel=\"icon\")|<script[^>]*src", text)


def test_ids_are_unique_and_images_have_alternative_texts(page: Elements) -> None:
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for image in page.all("img") + page.all("img", "outline"):
        decoration = image.get("class") == "outline" or "src" not in image  # the dialog's are filled by its script
        assert (image["alt"] == "") == decoration


def test_mistakes_come_first(page: Elements) -> None:
    order = [a["data-outcome"] for a in page.all("li", "card")]
    assert order == sorted(order, key=list(OUTCOMES).index)
    assert {"found", "passed"} <= set(order)


def test_outcomes_follow_from_the_verdicts(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    verdicts = [json.loads(line) for line in (out / "tiles/verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    for verdict in verdicts:
        verdict["decision"] = "good" if verdict["path"].endswith(("spot/000.png", "good/001.png")) else "anomaly"
        verdict["regions"] = []
    (out / "tiles/verdicts.jsonl").write_text("".join(json.dumps(v) + "\n" for v in verdicts), encoding="utf-8")
    (out / "page/tiles/left-over.jpg").write_bytes(b"")
    write_page(out, ["tiles"])
    assert not (out / "page/tiles/left-over.jpg").exists()
    cards = Elements((out / "index.html").read_text(encoding="utf-8")).all("li", "card")
    outcomes = [card["data-outcome"] for card in cards]
    assert outcomes == ["missed"] + 5 * ["false-alarm"] + 5 * ["found"] + ["passed"]
    assert [card["data-defect"] for card in cards] == ["spot"] + 5 * [""] + 5 * ["spot"] + [""]


def test_the_figures_are_those_of_the_run(demo: Path, page: Elements) -> None:
    metrics = json.loads((demo / "tiles/metrics.json").read_text(encoding="utf-8"))
    text = (demo / "index.html").read_text(encoding="utf-8")
    for group, name in (("detection", "auroc"), ("localisation", "aupro"), ("localisation", "pixel_auroc")):
        assert f"{metrics[group][name]['value']:.3f}" in page.words, name
    assert metrics["decision"]["guarantee"] in " ".join(text.split())
    assert f"threshold {number(metrics['decision']['threshold'])}" in page.words


def test_thumbnails_show_the_image(demo: Path) -> None:
    with (
        Image.open(demo / "page/tiles/test-spot-002.png.jpg") as small,
        Image.open(demo / "data/tiles/test/spot/002.png") as large,
    ):
        assert small.size == large.size  # smaller than a thumbnail: not enlarged
        difference = np.asarray(small, np.float64) - np.asarray(large.convert("RGB"), np.float64)
    assert np.abs(difference).mean() < 6


def test_a_reconstruction_is_shown_beside_its_image_and_only_in_its_run(demo: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    shutil.copytree(out / "tiles", out / "tiles-attention")
    card = bundle.read(out / "tiles/bundle").card
    bundle.write(out / "tiles-attention/bundle", card.model_copy(update={"detector": "attention"}))
    for i in range(6):  # of the spots only, each in a grey of its own
        pixels = np.full((60, 80, 3), 40 * i, np.uint8)
        write_image(out / f"tiles-attention/reconstruction/test/spot/{i:03}.png.jpg", pixels)
    write_page(out, ["tiles", "tiles-attention"])
    page = Elements((out / "index.html").read_text(encoding="utf-8"))
    shown = {unquote(a["data-reconstruction"]) for a in page.all("a", "pair")}
    assert shown == {"", *(f"tiles-attention/reconstruction/test/spot/{i:03}.png.jpg" for i in range(6))}
    thumbnails = [a for a in page.all("img") if a["alt"] == "Reconstruction: how it would look if it were good"]
    assert len(thumbnails) == 6
    for image in thumbnails:
        with Image.open(out / unquote(image["src"])) as thumbnail:
            i = int(re.findall(r"spot-(\d+)", image["src"])[0])
            assert abs(np.asarray(thumbnail, np.float64).mean() - 40 * i) < 2
    for address in addresses(page):
        assert address.startswith(("#", "data:")) or (out / unquote(address)).is_file(), address
    text = (out / "index.html").read_text(encoding="utf-8")
    assert text.count("This detector, an autoencoder,") == 1  # only in the section of that run
    plain, attending = text.split('<section class="product" id="tiles-attention"')
    assert "reconstruction" not in plain.partition("<main")[2].lower().replace('data-reconstruction=""', "")
    assert "This detector, an autoencoder," in attending


def test_the_headline_says_which_detectors_learned_from_defective_parts(
    demo: Path, labelled: Path, classified: Path, tmp_path: Path
) -> None:
    alone = (demo / "index.html").read_text(encoding="utf-8").partition("</header>")[0]
    assert "It saw only good parts." in alone
    assert "Each product was learned from images of good parts alone." in alone
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    shutil.copytree(classified, out / "labelled")
    shutil.copytree(labelled, out / "data/labelled")
    write_page(out, ["tiles", "labelled"])
    header = " ".join((out / "index.html").read_text(encoding="utf-8").partition("</header>")[0].split())
    assert "Most saw only good parts." in header
    lead = header.partition('class="lead"')[2]
    assert (
        lead.index("good parts alone")
        < lead.index("#tiles")
        < lead.index("defective ones too")
        < lead.index("#labelled")
    )


def test_outline_surrounds_the_defect_and_covers_none_of_it() -> None:
    mask = np.random.default_rng(1).random((80, 120)) > 0.997
    mask[30:50, 40:70] = True
    found = np.asarray(outline(mask, (120, 80)))
    cross, square = ndimage.generate_binary_structure(2, 1), ndimage.generate_binary_structure(2, 2)
    near = ndimage.binary_dilation(ndimage.binary_dilation(mask, cross), square)
    far = ndimage.binary_dilation(ndimage.binary_dilation(near, cross), square)
    assert np.array_equal(found[..., 3] == 255, far & ~near)
    assert not found[..., 3][mask].any()
    assert (found[far & ~near, :3] == OUTLINE).all()


def test_outline_keeps_a_hairline_that_the_reduction_would_lose() -> None:
    mask = np.zeros((4000, 3000), np.bool_)
    mask[100:3000, 1503] = True
    found = np.asarray(outline(mask, (288, 384)))[..., 3] > 0
    assert found[10:280].any(axis=1).all()
    assert np.flatnonzero(found.any(axis=0)).mean() == pytest.approx(1503 * 288 / 3000, abs=1)


def test_missing_files_are_refused(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BlemishError, match="no such bundle"):
        write_page(demo, ["gears"])
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    (out / "data/tiles/test/spot/003.png").unlink()
    with pytest.raises(BlemishError, match=r"inspected test/spot/003\.png, which is not in .*draw and train again"):
        write_page(out, ["tiles"])
    (out / "tiles/metrics.json").unlink()
    with pytest.raises(BlemishError, match=r"metrics\.json cannot be read \(No such file"):
        write_page(out, ["tiles"])
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BlemishError, match=r"needs jinja2.*blemish\[learn\]"):
        write_page(demo, ["tiles"])


@pytest.mark.parametrize("used", [True, False])
def test_the_page_says_what_defects_brought(demo: Path, tmp_path: Path, used: bool) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo, out)
    file = out / "tiles/metrics.json"
    metrics = json.loads(file.read_text(encoding="utf-8"))
    metrics["counts"]["train_anomaly"] = 5
    metrics["defects"] = {"used": used, "sentence": "The 5 defective training images did something."}
    file.write_text(json.dumps(metrics), encoding="utf-8")
    write_page(out, ["tiles"])
    text = " ".join((out / "index.html").read_text(encoding="utf-8").split())
    assert "The 5 defective training images did something." in text
    assert ("good and 5 defective" in text) == used
    assert ("It saw good and defective parts." in text) == used
