"""What may be loaded when: `import blemish` and `--help` are light, and the line never needs torch."""

import subprocess
import sys

import pytest

# What only the page has.
WEB = {"fastapi", "starlette", "uvicorn", "anyio", "sqlalchemy", "alembic", "argon2", "prometheus_client", "psycopg"}
HEAVY = {"torch", "onnxruntime", "numpy", "PIL", "pydantic", "sklearn", "scipy", "timm", "matplotlib", "jinja2", *WEB}


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted({{m.partition('.')[0] for m in sys.modules}}))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def test_import_blemish_loads_nothing_heavy() -> None:
    assert not loaded_by("import blemish") & (HEAVY | {"typer", "rich"})


def test_help_loads_nothing_heavy() -> None:
    help_page = "import blemish.cli.app\ntry:\n    blemish.cli.app.app(['--help'])\nexcept SystemExit:\n    pass"
    assert not loaded_by(help_page) & HEAVY


@pytest.mark.parametrize(
    "module",
    [
        "inference.inspector",
        "inference.results",
        "inference.evidence",
        "cli.explain",
        "cli.console",
        "inference.bundle",
        "evaluation.localisation",
        "data.audit",
        "cli.watch",
        "station.watch",
        "station.deliveries",
    ],
)
def test_the_line_does_not_load_what_only_learning_or_the_page_has(module: str) -> None:
    absent = {"torch", "timm", "sklearn", "scipy", "matplotlib", "jinja2", *WEB}
    assert not loaded_by(f"import blemish.{module}") & absent


def test_public_names_are_deliberate() -> None:
    import blemish

    learning = {"Attention", "Cam", "Hybrid", "PatchCore", "train"}
    inference = {"BlemishError", "Folder", "Inspector", "Prediction", "Region", "Verdict", "__version__"}
    assert set(blemish.__all__) == learning | inference
    assert all(getattr(blemish, name) for name in blemish.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Detector'"):
        blemish.Detector  # noqa: B018
