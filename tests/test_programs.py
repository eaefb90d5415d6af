"""How programs end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from virft.errors import UserError
from virft.programs import claimed

WAITING = """
import os, sys, time
from pathlib import Path
from virft.programs import run_program

def main():
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

run_program(main)
"""

KILLED = """
import os, signal, subprocess, sys
from virft.programs import claimed

with claimed("--output_dir", sys.argv[1]) as held:
    left = subprocess.Popen(
        ["sleep", "600"], pass_fds=(held.fileno(),), start_new_session=True, stdout=subprocess.DEVNULL
    )
    print(left.pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(process: int) -> bool:
    stat = Path(f"/proc/{process}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_programs_end_when_torchrun_is_killed(tmp_path: Path) -> None:
    (tmp_path / "waiting.py").write_text(WAITING)
    started = tmp_path / "started"
    started.mkdir()
    torchrun = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
        + [str(tmp_path / "waiting.py"), str(started)],
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    try:
        while len(list(started.iterdir())) < 2:
            assert torchrun.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        workers = [int(path.name) for path in started.iterdir()]
        os.kill(torchrun.pid, signal.SIGKILL)
        torchrun.wait()
        while any(map(alive, workers)):
            assert time.monotonic() < deadline, "a worker outlives its torchrun"
            time.sleep(0.1)
    finally:
        if torchrun.poll() is None:
            torchrun.kill()
        for path in started.iterdir():
            if alive(int(path.name)):
                os.kill(int(path.name), signal.SIGKILL)


def test_two_runs_do_not_write_into_one_folder(tmp_path: Path) -> None:
    with claimed("--output_dir", tmp_path / "run"):
        with (
            pytest.raises(UserError, match="another run is writing there"),
            claimed("--output_dir", tmp_path / "run"),
        ):
            pass
        with claimed("--output_dir", tmp_path / "other"):
            pass
    with pytest.raises(KeyError), claimed("--output_dir", tmp_path / "run"):
        raise KeyError
    with claimed("--output_dir", tmp_path / "run"):
        assert (tmp_path / "run" / ".running").is_file()
    assert not (tmp_path / "run").exists(), "nothing was written, nothing is left"
    with claimed("--output_dir", tmp_path / "run"):
        (tmp_path / "run" / "checkpoint").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoint"]


def test_a_restarted_run_waits_for_what_a_killed_one_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    killed = [sys.executable, "-c", KILLED, str(tmp_path)]
    left = int(subprocess.run(killed, stdout=subprocess.PIPE, timeout=300).stdout)
    waited = []

    def end_it(seconds: float) -> None:
        waited.append(seconds)
        os.kill(left, signal.SIGKILL)
        while alive(left):
            pass

    monkeypatch.setattr("virft.programs.time.sleep", end_it)
    with claimed("--output_dir", tmp_path):
        assert (tmp_path / ".running").read_text() == f"{os.getpid()} {os.getpid()}\n"
    assert len(waited) == 1
    assert "waiting for the end of programs that a killed run left behind" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
