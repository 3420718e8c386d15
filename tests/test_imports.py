"""What may be loaded when: `import blemish` and `--help` are light, and the line never needs torch."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from tests.test_house import SOURCES, imported

ROOT = Path(__file__).resolve().parents[1]

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


def test_whatever_is_imported_is_installed_by_the_base_or_an_extra_for_users() -> None:
    """The tests have more packages than users: `blemish demo` once failed for want of scikit-learn."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    asked = [*project["dependencies"], *(one for name, rows in extras.items() if name != "dev" for one in rows)]
    declared = {re.split(r"[^\w.-]", one)[0].lower().replace("_", "-") for one in asked}
    of = packages_distributions()
    used = {module.partition(".")[0] for file in SOURCES for module in imported(file)} - {"blemish", "wandb"}
    names = {
        name: {one.lower().replace("_", "-") for one in of.get(name, [])} for name in used - sys.stdlib_module_names
    }
    # Starlette is FastAPI's, typer's click and the like: whoever asks for the one has the other.
    brought = {"starlette", "psycopg"}
    assert [name for name, owners in names.items() if owners and not owners & declared and name not in brought] == []
