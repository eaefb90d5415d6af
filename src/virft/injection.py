"""Ground-truth injection: one reply of every group is the row's own solution, weighted by its probability."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from trl.models.utils import disable_gradient_checkpointing


class InjectsSolutions:
    """Mixed into a GRPO trainer, which calls :meth:`inject` on sampled replies and :meth:`weigh_injected` on
    the batch that is scored.

    ``target`` gives the text of a row; ``rows`` are those of the batch at hand, one for each completion.
    """

    target: Callable[[Mapping[str, Any]], str] | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    _injected: Sequence[bool] = ()

    def inject(self, completion_ids: list, completions: list) -> None:
        """Put the row's target in the place of each group's last reply, where it is not too long."""
        first = self.accelerator.process_index * len(completion_ids)
        self._injected = [False] * len(completion_ids)
        for place, row in enumerate(self.rows):
            if (first + place + 1) % self.num_generations:
                continue
            text = self.target(row)
            tokens = [*self._tokenizer(text)["input_ids"], self._tokenizer.eos_token_id]
            if self.max_completion_length is None or len(tokens) <= self.max_completion_length:
                completion_ids[place] = tokens
                completions[place] = [{"role": "assistant", "content": text}]
                self._injected[place] = True
        self._metrics["train"]["injected_ratio"].append(sum(self._injected) / len(self._injected))

    def weigh_injected(self, batch: dict[str, Any]) -> None:
        """Give injected replies the probability with which they were drawn: one.

        The ratio of importance sampling is policy / behaviour. What wrote an injected reply writes it
        always, so its old log-probs are 0 and each token's ratio is the policy's own probability of it: the
        gradient is that of the probability, not of its logarithm, and clipping leaves it alone while its
        advantage is positive.
        """
        if "old_per_token_logps" not in batch:
            keys = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
            with (
                torch.no_grad(),
                disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs),
            ):
                batch["old_per_token_logps"], _, _ = self._get_per_token_logps_and_entropies(
                    self.model,
                    torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1),
                    torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1),
                    batch["completion_ids"].shape[1],
                    self.args.per_device_train_batch_size,
                    **{key: batch[key] for key in keys if key in batch},
                )
        where = torch.tensor(self._injected, device=batch["old_per_token_logps"].device)
        batch["old_per_token_logps"] = batch["old_per_token_logps"].masked_fill(where[:, None], 0.0)
