"""Makes tests/golden anew: a bundle of less than 100 kB, images, and what it says of them. Only for a bundle's format
that is meant to change: until then every version has to read this one and say the same.

    PYTHONPATH=src:. python tests/golden/make.py
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import onnx
from tests.parity import drawn, written
from tests.support import write_image

from blemish.detectors.attention.config import AttentionConfig
from blemish.inference import bundle
from blemish.inference.inspector import Inspector
from blemish.training.config import TrainConfig
from blemish.training.pipeline import train

HERE = Path(__file__).resolve().parent
IMAGES = {
    "grey": drawn(1000)[..., 0],
    "coloured": drawn(1001),
    "bright": drawn(1002, kind="bright")[..., 0],
    "dark": drawn(1003, (43, 61), kind="dark"),
    "small": drawn(1005, (17, 23)),
    "tall": drawn(1006, (131, 5))[..., 0],
    "one": drawn(1008, (1, 1))[..., 0],
}


def main() -> None:
    settings = AttentionConfig(model="autoencoder", width=2, latent=2, epochs=40, score="max", sigma=1.0)
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        written(home / "tiles/good", 0, 40)
        asked = TrainConfig(
            home / "tiles",
            home / "run",
            settings=settings,
            image_size=(32, 32),
            false_alarms=0.1,
            review=0.3,
            test=0.1,
            calibration=0.3,
            evidence=False,
        )
        train(asked)
        made = home / "run/bundle"
        model = onnx.load(made / bundle.MODEL)
        del model.graph.value_info[:]
        onnx.save(model, made / bundle.MODEL)
        bundle.write(made, bundle.Card.model_validate_json((made / bundle.CARD).read_text(encoding="utf-8")))
        for stale in ("bundle", "images"):
            shutil.rmtree(HERE / stale, ignore_errors=True)
        shutil.copytree(made, HERE / "bundle")
    for image, pixels in IMAGES.items():
        write_image(HERE / f"images/{image}.png", pixels)
    inspector = Inspector(HERE / "bundle")
    rows = []
    for file in sorted((HERE / "images").iterdir()):
        look = inspector.look(file)
        assert look.map is not None
        boxes = [region.box for region in look.verdict.regions]
        rows.append(
            {
                "image": file.name,
                "score": look.verdict.score,
                "decision": look.verdict.decision,
                "boxes": boxes,
                "map": [[round(float(cell), 4) for cell in row] for row in look.map[::8, ::8]],
            }
        )
    (HERE / "expected.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
