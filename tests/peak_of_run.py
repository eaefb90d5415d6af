"""Run grpo.py in this process and print, as JSON, its measured peak and the doctor's estimate, both in bytes.

A program for test_doctor.py: ``python tests/peak_of_run.py FLAGS OF grpo.py``. What stood in memory before
the model was loaded (libraries, rows) is taken off the measurement.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

from virft import doctor, grpo
from virft.data.lengths import prompt_lengths, visual_tokens
from virft.data.training import prepared_rows
from virft.memory_estimate import estimate, shape_of
from virft.memory_plan import plan_of
from virft.model_setup import check_model, load_processor, resolve_vision
from virft.settings import quiet_libraries


def main(argv: list[str]) -> None:
    """Estimate, run, measure."""
    torch.set_num_threads(1)
    quiet_libraries()
    machine, rows_args, _, model, args = doctor.parse(list(argv))
    config = check_model(model, args)
    resolve_vision(args, model.model_name_or_path, config)
    processor = load_processor(model.model_name_or_path, args)
    rows = prepared_rows(rows_args.dataset_name, "train", None, args, processor)
    lengths, visual = prompt_lengths(rows, processor), visual_tokens(rows, processor)
    longest = max(range(len(rows)), key=lengths.__getitem__)
    shape = shape_of(config, model.lora_target_modules, model.lora_r if model.use_peft else 0)
    config._attn_implementation = model.attn_implementation
    plan = plan_of(
        config, model, args, machine.devices, machine.deepspeed_file, lengths[longest], visual[longest]
    )
    (torch.ones(512, 512) @ torch.ones(512, 512)).sum()  # load what a first product loads

    process, ended = psutil.Process(), threading.Event()
    before = most = process.memory_info().rss

    def watch() -> None:
        nonlocal most
        while not ended.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    grpo.main(argv)
    ended.set()
    watcher.join()
    result = {"measured": most - before, "estimated": estimate(shape, plan).used}
    Path(args.output_dir, "peak.json").write_text(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
