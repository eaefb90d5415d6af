"""How programs end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

WAITING = """
import os, sys, time
from pathlib import Path
from virft.programs import run_program

def main():
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(600)

run_program(main)
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
