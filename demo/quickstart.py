"""The quick start: a tiny Qwen2-VL learns to find handwritten digits, on a CPU, in minutes.

    bash scripts/quickstart.sh                    # installs, then runs this program
    python demo/quickstart.py --seed 1            # another model, other training scenes, the same examination
    python demo/quickstart.py --seeds 0 1 2       # three runs and one table
    python demo/quickstart.py --short             # every stage once, in a minute or two; learns nothing

Every stage runs the program that would train or evaluate a real model and prints the command. Run it again
after an interruption: it continues where it was.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import miniature
import report
from machine import ROOT, TINY, Machine
from miniature import ADAM, EXAMINATION_SEED, sft_command, sft_watch
from recipe import PLAN, REWARD_CURVES, SHORT, Recipe
from stages import Journal, checked_output, distinct, recorded_in, run_to_the_end, say, whole_number

from virft.checkpoint import installed_versions, last_checkpoint
from virft.data.digits import Scenes
from virft.files import replacing
from virft.predictions import load_predictions


class QuickStart:
    """One run: its folder, its seed, its recipe."""

    def __init__(self, folder: Path, seed: int, recipe: Recipe, machine: Machine) -> None:
        self.folder, self.seed, self.recipe, self.machine = folder, seed, recipe, machine
        self.journal = Journal(folder, PLAN, ROOT)
        self.digits = folder / "digits"

    def run(self) -> dict[str, Any]:
        """All stages; what ``results.json`` holds. Raises StageFailed, UserError."""
        with self.journal.opened():
            self._forget_other_results()
            self.make_model()
            self.examine_base()
            self.go_on_with_sft()
            self.grpo()
            self.examine_both()
            return self.report()

    def _forget_other_results(self) -> None:
        """Numbers of another seed or recipe must not stand there while this run is under way."""
        file = self.folder / "results.json"
        if file.is_file():
            results = recorded_in(file)
            if (results.get("seed"), results.get("recipe")) != (self.seed, asdict(self.recipe)):
                file.unlink()

    def make_model(self) -> None:
        """The scenes of all splits, and a model that has been warmed up on the first of them."""
        r = self.recipe
        splits = {
            "warmup": Scenes(r.warmup_scenes, "warmup", self.seed, confidence=(0.1, 0.9)),
            "validation": Scenes(r.validation, "validation", EXAMINATION_SEED),
            "train": Scenes(r.rows, "train", self.seed),
            "heldout": Scenes(r.heldout, "heldout", EXAMINATION_SEED),
        }
        miniature.make(self.journal, self.machine, splits, r.warmup, r.tokens, self.seed)

    def examine_base(self) -> None:
        """The warm-up's numbers."""
        _, done = self.journal.stage("base", {"heldout": self.recipe.heldout})
        if done is None:
            self.journal.finish(self._examine("warmup"))

    def go_on_with_sft(self) -> None:
        """SFT from the warm-up on the rows that GRPO gets."""
        r = self.recipe
        settings = {"steps": r.sft_steps, "batch": r.sft_batch, "lr": r.sft_lr}
        folder, done = self.journal.stage("sft", settings)
        if done is None:
            command = sft_command(
                self.machine,
                *(self.folder / "warmup", self.digits / "train.jsonl", folder),
                *(r.sft_steps, r.sft_batch, r.sft_lr, 0, self.seed),
            )
            self.journal.run(command, "sft", r.sft_steps, watch=sft_watch("mean_iou"))
            self.journal.finish()

    def grpo(self) -> None:
        """GRPO from the warm-up."""
        r, machine = self.recipe, self.machine
        settings = {"steps": r.grpo_steps, "prompts": r.prompts, "group": r.group, "lr": r.grpo_lr}
        folder, done = self.journal.stage("grpo", settings)
        if done is not None:
            return
        command = machine.train(
            "grpo.py",
            *("--model_name_or_path", self.folder / "warmup"),
            *("--dataset_name", self.digits / "train.jsonl"),
            *("--output_dir", folder),
            *("--task", "detection", "--max_steps", r.grpo_steps, "--learning_rate", r.grpo_lr),
            *("--per_device_train_batch_size", machine.per_process(r.prompts), "--num_generations", r.group),
            *("--max_completion_length", r.tokens, "--beta", 0, *ADAM, "--warmup_steps", 2),
            *("--logging_steps", 1, "--save_steps", 25, "--save_total_limit", 1),
            *("--report_to", "none", "--seed", self.seed),
            *("--resume_from_checkpoint", "auto"),
            *TINY,
        )
        shown = list(REWARD_CURVES.items())[:2]
        watch = {label.split(" (")[0]: rf"{key}'?: '?([-+.0-9e]+)" for label, key in shown}
        self.journal.run(command, "grpo", r.grpo_steps, watch=watch)
        self.journal.finish()

    def examine_both(self) -> None:
        """The rival's and GRPO's numbers."""
        _, done = self.journal.stage("examination", {"heldout": self.recipe.heldout})
        if done is None:
            self.journal.finish({name: self._examine(name, 0.5) for name in ("sft", "grpo")})

    def report(self) -> dict[str, Any]:
        """``results.json`` and the pictures."""
        _, done = self.journal.stage("report", {})
        if done is not None and (before := recorded_in(self.folder / "results.json")):
            return before
        models = {"base": "warmup", "sft": "sft", "grpo": "grpo"}
        scenes = {name: self._replies(model) for name, model in models.items()}
        ious = {name: [scene.iou for scene in replied] for name, replied in scenes.items()}
        numbers = {name: self._numbers(model) for name, model in models.items()}
        pairs = (("grpo", "base"), ("sft", "base"), ("grpo", "sft"))
        results = {
            **numbers,
            "seed": self.seed,
            "gain": {f"{a}_over_{b}": report.gain(ious[b], ious[a]) for a, b in pairs},
            "scenes": self.recipe.heldout,
            "recipe": asdict(self.recipe),
            "device": "cuda" if self.machine.cuda else "cpu",
            "seconds": self.journal.seconds(),
            "cpu_seconds": self.journal.seconds("cpu_seconds"),
            "versions": {"python": platform.python_version(), **installed_versions()},
        }
        with replacing(self.folder / "results.json") as temporary:
            temporary.write_text(json.dumps(results, indent=2) + "\n")
        last, _ = last_checkpoint(self.folder / "grpo")
        history = json.loads((last / "trainer_state.json").read_text())["log_history"]
        report.draw_rewards(history, REWARD_CURVES, self.folder / "rewards.png")
        report.draw_comparison(results, ious, self.folder / "comparison.png")
        report.draw_scenes(scenes["base"], scenes["grpo"], self.folder / "before_and_after.png")
        self.journal.finish()
        return results

    def _examine(self, model: str, share: float = 1.0) -> dict[str, Any]:
        """Ask a model about every held-out scene and score its replies, with the COCO programs."""
        annotations, predictions = self.digits / "heldout.json", self._predictions(model)
        infere = [
            *(sys.executable, ROOT / "coco_evaluation" / "Qwen2_VL_coco_infere.py"),
            *("--model_path", self.folder / model, "--annotations", annotations),
            *("--image_folder", self.digits, "--candidates", "ground_truth", "--categories", "all"),
            *("--output", predictions, "--batch_size", self.recipe.answering),
            *("--max_new_tokens", self.recipe.tokens, "--dtype", "float32"),
        ]
        self.journal.run(infere, f"{model}-replies", self.recipe.heldout, share=0.9 * share)
        score = [
            *(sys.executable, ROOT / "coco_evaluation" / "coco_evaluation.py"),
            *("--annotations", annotations, "--predictions", predictions),
            *("--output", predictions.with_name("scores.json")),
        ]
        self.journal.run(score, f"{model}-scores", 0, share=0.1 * share)
        return self._numbers(model)

    def _predictions(self, model: str) -> Path:
        stage = "base" if model == "warmup" else "examination"
        return self.folder / stage / model / "predictions.jsonl"

    def _replies(self, model: str) -> list[report.Replied]:
        return report.replies(load_predictions(self._predictions(model)), self.digits / "heldout.json")

    def _numbers(self, model: str) -> dict[str, Any]:
        """The four numbers of a contestant, from the scorer's file."""
        scores = json.loads(self._predictions(model).with_name("scores.json").read_text())
        return {
            "mean_iou": scores["mean_iou"],
            "map": scores["AP"],
            "ap50": scores["AP50"],
            "unreadable": sum(scores["unreadable"].values()),
        }


def run_seed(folder: Path, seed: int, recipe: Recipe, machine: Machine) -> dict[str, Any]:
    """One run and what it shows at its end."""
    results = QuickStart(folder, seed, recipe, machine).run()
    say(f"\n{report.table(results)}\n\n{report.verdict(results)}\n")
    if recipe == SHORT:
        say("This was the short mode: it shows that every stage works, the numbers mean nothing.\n")
    return results


def epilogue(folder: Path) -> str:
    """Where things are and what to try next."""
    here = folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder
    return f"""
Look at
    {here}/before_and_after.png    held-out scenes with true and predicted boxes, before and after
    {here}/rewards.png             what GRPO was paid, each reward apart
    {here}/comparison.png          warm-up, SFT and GRPO side by side
    {here}/results.json            the numbers;  {here}/logs: all that the programs said

Next
    python demo/quickstart.py --seeds 0 1 2     is it luck? three models, one table
    the commands above, with your own rows: README.md, "Your own data" and "Your own reward"
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The program; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=ROOT / "quickstart", help="folder (quickstart)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument(
        "--seed", type=whole_number(0), default=0, help="of weights, training scenes and sampling (0)"
    )
    seeds.add_argument(
        "--seeds",
        type=whole_number(0),
        nargs="+",
        help="several runs, each in a folder seed-N of --output",
    )
    parser.add_argument(
        "--short", action="store_true", help="touch every stage in a minute or two; learns nothing"
    )
    flags = parser.parse_args(arguments)
    return run_to_the_end(lambda: start(flags))


def start(flags: argparse.Namespace) -> None:
    """The quick start of one seed, or of several and their table. Raises as :class:`stages.Journal` does."""
    output = checked_output(flags.output)
    distinct("--seeds", flags.seeds or ())
    recipe = SHORT if flags.short else Recipe()
    say(f"virft quick start: results in {output}\n")
    machine = Machine.found()
    say(machine.prepare(offline=True))
    if not flags.seeds:
        run_seed(output, flags.seed, recipe, machine)
        say(epilogue(output))
        return
    runs = []
    for seed in flags.seeds:
        say(f"\n=== seed {seed} ===\n")
        runs.append(run_seed(output / f"seed-{seed}", seed, recipe, machine))
    table = report.seeds_table(runs)
    with replacing(output / "seeds.md") as temporary:
        temporary.write_text(table + "\n")
    say(f"\nHeld-out mean IoU / mAP of each seed (also in {output / 'seeds.md'}):\n\n{table}\n")


if __name__ == "__main__":
    sys.exit(main())
