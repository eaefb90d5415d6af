"""Seconds and memory of building a detection set from a COCO file of a million annotations.

  python benchmarks/build_dataset.py --annotations 1000000 --processes 1 4 --output
  benchmarks/results/build_dataset.json

Makes a file like COCO's own (8.3 annotations an image, polygons of 20 points, 80 categories), builds all
its rows with a tenth of negatives, and samples the memory of the builder and its processes together. The
image files are empty: JSONL rows need them to exist, not to be read.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from virft.files import check_file, replacing
from virft.programs import run_program

ANNOTATIONS_PER_IMAGE = 8.3
CATEGORIES = 80


def make_source(folder: Path, annotations: int) -> Path:
    """A COCO file with so many annotations, and its (empty) images, in ``folder``."""
    rng = random.Random(0)
    images = max(1, round(annotations / ANNOTATIONS_PER_IMAGE))
    path = folder / "instances.json"
    with open(path, "w") as file:
        file.write('{"info": {}, "images": [')
        for i in range(images):
            name = f"{i:012d}.jpg"
            (folder / name).touch()
            entry = {"id": i + 1, "file_name": name, "width": 640, "height": 480, "license": 3}
            entry["coco_url"] = f"http://images.cocodataset.org/train2017/{name}"
            file.write(("," if i else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for i in range(annotations):
            x, y, w, h = rng.uniform(0, 500), rng.uniform(0, 380), rng.uniform(8, 100), rng.uniform(8, 80)
            entry = {
                "id": i + 1,
                "image_id": rng.randrange(images) + 1,
                "category_id": rng.randrange(CATEGORIES) + 1,
            }
            entry["bbox"] = [round(v, 2) for v in (x, y, w, h)]
            entry["segmentation"] = [[round(rng.uniform(0, 400), 2) for _ in range(40)]]
            entry |= {"area": round(w * h, 3), "iscrowd": int(i % 97 == 0)}
            file.write(("," if i else "") + json.dumps(entry))
        names = [{"id": c + 1, "name": f"category {c}"} for c in range(CATEGORIES)]
        file.write(f'], "categories": {json.dumps(names)}}}')
    return path


def measure(source: Path, target: Path, processes: int) -> dict[str, Any]:
    """Build the set in a program of its own; its seconds and the peak memory of all its processes
    together."""
    program = Path(__file__).resolve().parents[1] / "dataset" / "build_detection.py"
    command = [sys.executable, str(program), "--source", str(source), "--output", str(target)]
    command += ["--negatives", "0.1", "--processes", str(processes), "--overwrite"]
    start, peak = time.perf_counter(), 0
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(running.pid)
    while running.poll() is None:
        try:
            family = [watched, *watched.children(recursive=True)]
            # Shared libraries count once in "uss"; it is what these processes cost the machine.
            peak = max(peak, sum(process.memory_full_info().uss for process in family))
        except psutil.NoSuchProcess:
            continue  # a worker ended between the two calls
        time.sleep(0.05)
    if running.returncode:
        raise SystemExit(f"the builder failed with exit code {running.returncode}")
    seconds = time.perf_counter() - start
    counts = json.loads(target.with_name(f"{target.name}.manifest.json").read_text())["counts"]
    return {"processes": processes, "seconds": seconds, "peak_mib": peak / 2**20, "rows": counts["rows"]}


def main() -> None:
    """Measure, print a table, write the figures."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--annotations", type=int, nargs="+", default=[100_000, 1_000_000])
    flags.add_argument("--processes", type=int, nargs="+", default=[1, 4])
    flags.add_argument("--output", type=Path, help="JSON file for the figures")
    arguments = flags.parse_args()
    for name in ("annotations", "processes"):
        if min(getattr(arguments, name)) < 1:
            flags.error(f"--{name} must be at least 1")
    if arguments.output:
        check_file("--output", arguments.output)
    results = []
    for size in arguments.annotations:
        with tempfile.TemporaryDirectory() as name:
            source = make_source(Path(name), size)
            megabytes = source.stat().st_size / 1e6
            for processes in arguments.processes:
                found = measure(source, Path(name) / "rows.jsonl", processes)
                results.append({"annotations": size, "source_mb": megabytes, **found})
                print(
                    f"{size:>9} annotations ({megabytes:.0f} MB), {processes} processes: "
                    f"{found['seconds']:.1f} s, {found['peak_mib']:.0f} MiB, {found['rows']} rows"
                )
    if arguments.output:
        machine = f"{psutil.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
        with replacing(arguments.output) as temporary:
            temporary.write_text(json.dumps({"machine": machine, "runs": results}, indent=2) + "\n")


if __name__ == "__main__":
    run_program(main)
