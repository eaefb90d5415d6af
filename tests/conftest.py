"""Fixtures shared by the tests: hermetic settings, tiny models, real cases where they are present."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's folder."""
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real cases with expected figures that stand beside the project; the test is skipped without them."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder.name}: no folder of real cases beside the project")
    return folder


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny Qwen2-VL with its processor. Do not write into it."""
    from virft import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_vl", family="qwen2_vl")


@pytest.fixture(scope="session")
def tiny_qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved tiny Qwen2.5-VL with its processor. Do not write into it."""
    from virft import tiny

    return tiny.build(tmp_path_factory.mktemp("tiny") / "qwen2_5_vl", family="qwen2_5_vl")
