"""The documents say what is so: commands, options, defaults, examples, links."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from tools.commands import page
from typer.testing import CliRunner

from blemish.cli.app import app
from blemish.station.journal import Journal
from tests.conftest import tile
from tests.support import write_image

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted([*(ROOT / "docs").rglob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"])
GROUP: Any = typer.main.get_command(app)


def commands(group: Any, before: str = "") -> dict[str, Any]:
    """Every command by its words, as `train` or `log verify`."""
    found: dict[str, Any] = {}
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        inner = commands(command, f"{before}{name} ") if hasattr(command, "list_commands") else {}
        found |= inner or {f"{before}{name}": command}
    return found


COMMANDS = commands(GROUP)


def blocks(file: Path, language: str) -> list[str]:
    """The fenced blocks of one language in a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def section(command: str) -> str:
    """What docs/commands.md says of one command."""
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    found = re.search(rf"^## blemish {command}$(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert found, f"docs/commands.md has no section '## blemish {command}'"
    return found[1]


def examples() -> list[str]:
    """Every command line of `blemish` that a reader could copy."""
    lines = (line for file in DOCS for block in blocks(file, "console") for line in block.splitlines())
    return sorted({line.removeprefix("$ ") for line in lines if line.startswith("$ blemish")})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_documented_with_its_default(command: str) -> None:
    said = section(command)
    assert f"$ blemish {command}" in said, "the section has no example"
    for parameter in COMMANDS[command].params:
        if parameter.param_type_name == "argument":
            assert f"`{parameter.name.upper()}`" in said
            continue
        rows = [line for line in said.splitlines() if re.match(rf"\| `[^|]*{parameter.opts[-1]}(?![\w-])", line)]
        assert len(rows) == 1, f"{parameter.opts[-1]} needs one row in the tables of blemish {command}"
        assert all(f"`{name}" in rows[0] for name in (*parameter.opts, *parameter.secondary_opts))
        default = getattr(parameter.default, "value", parameter.default)
        stated = rows[0].split("|")[2].strip()
        if default is False:
            assert stated == "off"
        elif default not in (None, ""):
            assert stated == f"`{default}`"


@pytest.mark.parametrize("command", COMMANDS)
def test_no_option_is_documented_that_does_not_exist(command: str) -> None:
    known = {name for p in COMMANDS[command].params for name in (*p.opts, *p.secondary_opts)}
    named = set(re.findall(r"(?<=`)--?[a-z][a-z-]*", "\n".join(re.findall(r"^\|.*", section(command), re.MULTILINE))))
    assert named <= known


def test_the_options_of_train_are_those_of_the_code() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert page(text) == text, "run python tools/commands.py"


def test_every_command_is_documented() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^## blemish ([\w ]+)$", text, re.MULTILINE)) == set(COMMANDS)


@pytest.fixture(scope="module")
def home(run: Path, product: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the documents' examples are true: `tiles/`, `new/`, `runs/tiles/`, `watched/`."""
    folder = tmp_path_factory.mktemp("home")
    shutil.copytree(product, folder / "tiles")
    shutil.copytree(run, folder / "runs/tiles")
    write_image(folder / "new/part.png", tile(900, (20, 30))[0])
    write_image(folder / "new/other.png", tile(901)[0])
    with Journal(folder / "watched") as journal:
        journal.add({"id": "0" * 32, "time": "", "name": "part.png", "bytes": 1, "modified": 1, "sha256": "0" * 64})
        (folder / "kept.txt").write_text(journal.head.to_text())
    return folder


@pytest.mark.parametrize("line", examples())
def test_examples_are_commands(line: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All are parsed; those that only read `tiles`, `new`, `runs/tiles` and `watched` are run as well."""
    monkeypatch.chdir(home)
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    if words[0] not in ("--version", "--help"):
        name = words[0] if words[0] in COMMANDS else " ".join(words[:2])
        options = words[len(name.split()) :]
        COMMANDS[name].make_context(name, list(options)).close()  # raises where an option does not exist
        reads = {"inspect": 2, "evaluate": 2, "compare": 2}.get(name, 1)
        read = [word for word in options if not word.startswith("-")][:reads]
        if words[0] in ("train", "sweep", "demo", "serve") or not all((home / path).exists() for path in read):
            return
    before = set(home.iterdir())
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    for path in set(home.iterdir()) - before:  # another example may write under the same name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert done.exit_code == (1 if "--fail-on" in words else 0), done.output
    assert done.output


def test_enough_examples_are_run(home: Path) -> None:
    quick = [line for line in examples() if line.split()[1] in ("data", "inspect", "bundle", "evaluate", "report")]
    assert len([line for line in quick if (home / line.split()[2]).exists()]) >= 15


@pytest.mark.parametrize("name", ["bundle.md", "your-own-images.md"])
def test_the_python_examples_say_what_blemish_says(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from blemish import Inspector

    monkeypatch.chdir(home)
    verdict = Inspector("runs/tiles/bundle").inspect("new/part.png")
    assert verdict.decision == "anomaly"
    (code,) = blocks(ROOT / "docs" / name, "python")
    names: dict[str, Any] = {}
    exec(compile(code, name, "exec"), names)
    assert capsys.readouterr().out.startswith("anomaly ")
    if name == "bundle.md":
        assert names["p_value"] == pytest.approx(verdict.p_value)
        assert names["scores"][0] == pytest.approx(verdict.score, rel=1e-5)


def test_every_dependency_is_explained_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {"Inference": project["dependencies"]} | {
        title: project["optional-dependencies"][extra]
        for title, extra in (
            ("Learning", "learn"),
            ("Logs", "log"),
            ("MQTT", "mqtt"),
            ("Alignment", "align"),
            ("ImageNet", "imagenet"),
            ("The page", "web"),
            ("PostgreSQL", "postgres"),
            ("Cluster", "cluster"),
            ("Development", "dev"),
        )
    }
    text = (ROOT / "docs/dependencies.md").read_text(encoding="utf-8")
    pinned = set(
        re.findall(r"^([\w-]+)==[\d.]+$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    )
    for title, requirements in asked.items():
        part = text.partition(f"\n## {title}")[2].partition("\n## ")[0]
        rows = " ".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| "))
        for name in (re.match(r"[\w-]+", requirement) for requirement in requirements):
            assert name
            if name[0] != "blemish":
                assert re.search(rf"\b{name[0]}\b", rows), f"docs/dependencies.md, {title}: {name[0]}"
                assert name[0] in pinned, f"constraints.txt: {name[0]}"


def test_make_targets_that_are_named_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert {"demo", "test", "check", "bench", "docs", "clean"} <= targets
    for file in DOCS:
        named = re.findall(r"(?:^\$? ?|`)make ([a-z]+)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert set(named) <= targets, file
    ci = ROOT / ".ci/run"
    assert os.access(ci, os.X_OK)
    assert "make test" in ci.read_text(encoding="utf-8")


@pytest.mark.parametrize("file", DOCS, ids=lambda f: f.name)
def test_links_lead_somewhere(file: Path) -> None:
    text = re.sub(r"^```.*?^```", "", file.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found = file.parent / path if path else file
            assert found.exists(), f"{file.name}: {target}"
            if anchor and found.suffix == ".md":
                headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
                assert anchor in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_every_page_is_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    assert set(re.findall(r"[\w-]+\.md", nav)) == {f.name for f in (ROOT / "docs").glob("*.md")}


def test_the_trace_from_a_command_to_a_distance_is_true() -> None:
    """Every name stands in the file that is named beside it or before it; the line with the distance is there."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    trace = text.partition("## From a command to a distance")[2].partition("\n## ")[0]
    source = ""
    for step in re.findall(r"^[0-9]\. .*(?:\n   .*)*", trace, re.MULTILINE):
        files = [ROOT / "src/blemish" / name for name in re.findall(r"`([a-z/]+\.py)`", step)]
        source = "".join(file.read_text(encoding="utf-8") for file in files) or source
        for name in re.findall(r"`(?:Inspector|PatchCoreGraph|Nearest)\.(\w+)`", step):
            assert f"def {name}(" in source, step
    framing = (ROOT / "src/blemish/inference/framing.py").read_text(encoding="utf-8")
    assert all(f"def {name}(" in framing for name in re.findall(r"`Framing\.(\w+)`", text))
    (line,) = re.findall(r"whose line `(.*?)`", trace)
    assert line in source


def test_no_package_registry_is_named() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    hosts = re.compile(
        "|".join(("py" + "pi[.]org", "python" + "hosted[.]", "npm" + "js[.]", "ana" + "conda[.]", "py" + "torch[.]org"))
    )
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.is_file() and file.suffix not in (".safetensors", ".jpg", ".png"):
            assert not hosts.search(file.read_text(encoding="utf-8", errors="replace")), name
