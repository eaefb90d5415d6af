"""What the README says is true: its tree, its commands and their flags, its links."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = sorted(
    p
    for p in ROOT.rglob("*.md")
    if ".venv" not in p.parts and not any(q.startswith(".") for q in p.parts[-2:])
)


def paths_in_tree() -> set[str]:
    found, stack = set(), []
    block = re.findall(r"```text\n(.*?)```", README, re.DOTALL)[-1]
    for line in block.splitlines():
        if not line.strip():
            continue
        indent = (len(line) - len(line.lstrip())) // 2
        names = re.split(r"\s{2,}", line.strip())[0].split()
        stack = stack[:indent]
        for name in names:
            found.add("/".join([*stack, name.rstrip("/")]))
        if names[-1].endswith("/"):
            stack.append(names[-1].rstrip("/"))
    return found


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listing.stdout.split("\n")[:-1]


def test_every_path_of_the_tree_exists() -> None:
    missing = sorted(p for p in paths_in_tree() if not (ROOT / p).exists())
    assert not missing


def test_every_module_and_top_level_entry_stands_in_the_tree() -> None:
    files = tracked()
    top = {f.split("/")[0] for f in files if not f.startswith(".")}
    modules = {
        f for f in files if re.fullmatch(r"src/virft/[a-z_0-9]+\.py", f) and not f.endswith("__init__.py")
    }
    packages = {"/".join(f.split("/")[:3]) for f in files if re.match(r"src/virft/[a-z_0-9]+/", f)}
    assert sorted((top | modules | packages) - paths_in_tree()) == []


def commands() -> list[tuple[str, str]]:
    """(document, command) for each line in the bash blocks of all documents, continued lines joined."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                line = line.split(" #")[0].strip()
                if line and not line.startswith("#"):
                    found.append((str(document.relative_to(ROOT)), line))
    return found


def program(words: list[str]) -> tuple[list[str], list[str]] | None:
    """(how to start our program, its arguments) of a command, or None where it starts none of ours."""
    for index, word in enumerate(words):
        if word == "-m" and words[index + 1].startswith("virft"):
            # An entry of several suites has the flags of the one that is named first.
            suite = [w for w in words[index + 2 : index + 3] if words[index + 1] == "virft.evaluate"]
            return ["-m", words[index + 1], *suite], words[index + 2 :]
        if word.endswith(".py") and index > 0:
            return [word], words[index + 1 :]
    return None


PASSED_ON = {
    "--suite_flags": ("-m", "virft.evaluate", "coco"),
    "--train_flags": ("src/virft/grpo.py",),
}
"""Flag whose value is flags -> the program that they are for."""


@cache
def help_of(*start: str) -> str:
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(
        [sys.executable, *start, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("document", "line"), commands())
def test_documented_commands_exist_and_know_their_flags(document: str, line: str) -> None:
    words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=.*", w)]
    if not words:
        return
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", words[1]], cwd=ROOT).returncode == 0
        return
    started = program(words)
    if started is None:
        assert words[0] in {"source", "git", "cd", "python", "pre-commit", "tensorboard", "pip", "jupyter"}, (
            line
        )
        return
    start, arguments = started
    if start[0] != "-m":
        assert (ROOT / start[0]).is_file(), f"{document}: {start[0]} does not exist"
    passed_on = {value: PASSED_ON[name] for name, value in itertools.pairwise(arguments) if name in PASSED_ON}
    assert_known(document, start, [a for a in arguments if a.startswith("--") and a not in passed_on])
    for value, other in passed_on.items():
        assert_known(document, other, [w for w in value.split() if w.startswith("--")])


def assert_known(document: str, start: Sequence[str], flags: Sequence[str]) -> None:
    text = help_of(*start)
    for flag in (f.split("=")[0] for f in flags):
        assert re.search(rf"{re.escape(flag)}\b", text), f"{document}: {start[-1]} has no flag {flag}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_relative_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text(encoding="utf-8")):
        if not re.match(r"[a-z]+:", target):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
