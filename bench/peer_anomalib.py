"""The anomalib 2.7 half of bench/line.py; runs in its own environment, in which blemish is not installed.

    bench/venvs/anomalib/bin/python bench/peer_anomalib.py TASK WORK [--weights FILE] [--bank N]

Every task prints its figures as one line of JSON. Images are in WORK/images, see bench/line.py. The backbone is the
same as for blemish: MobileNetV2, taps at strides 8 and 16, the same weights, mean and standard deviation.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

BEGUN = time.perf_counter()
LAYERS = ("blocks.2", "blocks.4")
MEAN, SPREAD = 0.498, 0.5  # of these weights, see their README


def build(weights: Path, ratio: float) -> Any:
    """A PatchCore with the weights of the file; their padding is set in timm, because anomalib has no argument for
    it."""
    import timm
    from anomalib.models import Patchcore
    from anomalib.pre_processing import PreProcessor
    from safetensors.torch import load_file
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    create = timm.create_model
    timm.create_model = lambda *given, **named: create(*given, pad_type="same", **named)
    model = Patchcore(
        backbone="mobilenetv2_100",
        layers=LAYERS,
        pre_trained=False,
        coreset_sampling_ratio=ratio,
        pre_processor=PreProcessor(
            transform=Compose([Resize((256, 256), antialias=True), Normalize([MEAN] * 3, [SPREAD] * 3)])
        ),
    )
    net = model.model.feature_extractor.feature_extractor
    missing, _ = net.load_state_dict(load_file(weights), strict=False)
    assert not missing, missing
    return model


def engine_in(work: Path) -> Any:
    from anomalib.engine import Engine

    return Engine(default_root_dir=work / "anomalib", accelerator="cpu", devices=1, logger=False)


def images(work: Path) -> list[Path]:
    return sorted((work / "images" / "test").glob("*/*"))


def fit(work: Path, weights: Path, bank: int) -> dict[str, Any]:
    import torch
    from anomalib.data import Folder
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    root = work / "images"
    cells = 32 * 32 * len(list((root / "train" / "good").iterdir()))
    model = build(weights, bank / cells)
    inside: list[float] = []
    subsample = PatchcoreModel.subsample_embedding

    def timed(self: Any, *given: Any, **named: Any) -> None:
        begun = time.perf_counter()
        subsample(self, *given, **named)
        inside.append(time.perf_counter() - begun)

    PatchcoreModel.subsample_embedding = timed
    data = Folder(
        name="tiles",
        root=root,
        normal_dir="train/good",
        normal_test_dir="test/good",
        abnormal_dir="test/defect",
        val_split_mode="same_as_test",
        num_workers=2,
    )
    begun = time.perf_counter()
    engine_in(work).fit(model=model, datamodule=data)
    seconds = time.perf_counter() - begun
    torch.save(model.state_dict(), work / "anomalib.pt")
    return {"fit": seconds, "coreset": sum(inside), "bank": len(model.model.memory_bank)}


def fitted(work: Path, weights: Path) -> Any:
    import torch

    model = build(weights, 0.1)
    state = torch.load(work / "anomalib.pt", weights_only=True)
    model.model.memory_bank = state["model.memory_bank"]
    model.load_state_dict(state, strict=False)
    return model.eval()


def scores(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """Raw scores and maps of every test image, for the AUROC that bench/line.py computes for both."""
    import numpy as np
    import torch
    from anomalib.data.utils import read_image

    model = fitted(work, weights)
    found, maps = [], []
    with torch.inference_mode():
        for file in images(work):
            raw = model.model(model.pre_processor.transform(read_image(file, as_tensor=True))[None])
            found.append(float(raw.pred_score))
            maps.append(raw.anomaly_map[0, 0].numpy().astype(np.float16))
    np.savez(work / "anomalib.npz", scores=np.array(found, np.float32), maps=np.array(maps, np.float32))
    return {}


def predict(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """Files in, verdicts and overlays out, by `Engine.predict`, which also draws the overlays."""
    model, engine, files = fitted(work, weights), engine_in(work), images(work)
    begun = time.perf_counter()
    engine.predict(model=model, data_path=work / "images" / "test")
    seconds = time.perf_counter() - begun
    drawn = len(list((work / "anomalib").rglob("*.png"))) + len(list((work / "anomalib").rglob("*.jpg")))
    return {"images_per_second": len(files) / seconds, "drawn": drawn}


def model_alone(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """The torch model, warm: one decoded image at a time."""
    import torch
    from anomalib.data.utils import read_image

    model = fitted(work, weights)
    decoded = [read_image(file, as_tensor=True)[None] for file in images(work)[:60]]
    times = []
    with torch.inference_mode():
        for image in [*decoded[:5], *decoded]:
            begun = time.perf_counter()
            model.model(model.pre_processor.transform(image))
            times.append(time.perf_counter() - begun)
    return latency(times[5:])


def export(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """OpenVINO, at 256x256, because the sizes of the images differ and its inferencer does not resize."""
    begun = time.perf_counter()
    model = fitted(work, weights)
    engine_in(work).export(model, "openvino", export_root=work / "openvino", input_size=(256, 256))
    return {"export": time.perf_counter() - begun}


def inferencer(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """Files in, verdicts and overlays out, by anomalib's OpenVINOInferencer and visualizer.

    The exported graph has a fixed batch size. If it is two, each image is passed twice to get one prediction.
    """
    import numpy as np
    from anomalib.deploy import OpenVINOInferencer
    from PIL import Image

    os.chdir(work)
    (xml,) = (work / "openvino").rglob("model.xml")
    line, files = OpenVINOInferencer(path=xml, device="CPU"), images(work)
    out = work / "openvino-overlays"
    out.mkdir(exist_ok=True)
    shape = line.model.input(0).get_partial_shape()
    twice = 1 if shape[0].is_dynamic else int(shape[0].get_length())

    def ask(pixels: Any) -> Any:
        batch = np.repeat(pixels[None].astype(np.float32) / 255, twice, 0).transpose(0, 3, 1, 2)
        return line.predict(np.ascontiguousarray(batch))

    def decode(file: Path) -> Any:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR))

    decoded = [decode(file) for file in files[:60]]
    times = []
    for pixels in [*decoded[:5], *decoded]:
        begun = time.perf_counter()
        ask(pixels)
        times.append(time.perf_counter() - begun)
    begun = time.perf_counter()
    for file in files:
        pixels = decode(file)
        found = ask(pixels)
        heat = np.asarray(found.anomaly_map, np.float32).reshape(-1, 256, 256)[0]
        level = Image.fromarray((np.clip(heat, 0, 1) * 255).astype(np.uint8)).convert("RGB")
        Image.blend(Image.fromarray(pixels), level, 0.4).save(out / f"{file.parent.name}-{file.stem}.jpg", quality=90)
    seconds = time.perf_counter() - begun
    return {"images_per_second": len(files) / seconds, "batch": twice, **latency(times[5:])}


def first_verdict(work: Path, weights: Path, bank: int) -> dict[str, Any]:  # noqa: ARG001
    """Process to first verdict, timed by bench/line.py. Uses the exported model, which starts faster."""
    inferencer_path = next((work / "openvino").rglob("model.xml"))
    os.chdir(work)
    import numpy as np
    from anomalib.deploy import OpenVINOInferencer
    from PIL import Image

    line = OpenVINOInferencer(path=inferencer_path, device="CPU")
    shape = line.model.input(0).get_partial_shape()
    twice = 1 if shape[0].is_dynamic else int(shape[0].get_length())
    with Image.open(images(work)[0]) as image:
        pixels = np.asarray(image.convert("RGB").resize((256, 256), Image.Resampling.BILINEAR), np.float32) / 255
    found = line.predict(np.ascontiguousarray(np.repeat(pixels[None], twice, 0).transpose(0, 3, 1, 2)))
    return {"score": float(np.asarray(found.pred_score).ravel()[0])}


def latency(times: list[float]) -> dict[str, float]:
    ordered = sorted(times)
    return {"p50": statistics.median(ordered), "p99": ordered[int(0.99 * (len(ordered) - 1))]}


def memory() -> dict[str, float]:
    """Peak memory of this process in MB."""
    return {"peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


TASKS = {task.__name__: task for task in (fit, scores, predict, model_alone, export, inferencer, first_verdict)}


def main() -> None:
    reader = argparse.ArgumentParser()
    reader.add_argument("task", choices=TASKS)
    reader.add_argument("work", type=Path)
    reader.add_argument("--weights", type=Path, required=True)
    reader.add_argument("--bank", type=int, default=8000)
    asked = reader.parse_args()
    found = TASKS[asked.task](asked.work.resolve(), asked.weights.resolve(), asked.bank)
    print(json.dumps({**found, **memory()}), file=sys.stdout, flush=True)


if __name__ == "__main__":
    main()
