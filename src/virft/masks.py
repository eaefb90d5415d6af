"""Boxes to masks with SAM, through transformers: any checkpoint of its mask-generation models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from PIL import Image
from transformers import AutoModelForMaskGeneration, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_MASK_GENERATION_MAPPING_NAMES

from virft.errors import UserError
from virft.inference_model import pick_device, pick_dtype
from virft.model_files import model_config
from virft.types import Box

if TYPE_CHECKING:
    import numpy as np

SIZES = ("original_sizes", "reshaped_input_sizes")
"""What a processor gives for undoing its resizing, in the order in which ``post_process_masks`` takes it; the
second is absent where a family pads nothing (SAM 2)."""


def check_sam(model_path: str) -> None:
    """Refuse what is no SAM, by its configuration alone. Raises UserError naming the model."""
    try:
        config = model_config(model_path)
    except UserError as error:
        raise UserError(f"SAM {error}") from error
    if config.model_type not in MODEL_FOR_MASK_GENERATION_MAPPING_NAMES:
        raise UserError(
            f"--sam_model {model_path} is a {config.model_type!r} model, which makes no masks from boxes; "
            "name a SAM, such as facebook/sam-vit-huge"
        )


class BoxSegmenter:
    """Masks of what stands in boxes.

    Args:
        model_path: a folder or Hub id of SAM, SAM-HQ, SAM 2 ...; the paper's is ``facebook/sam-vit-huge``.
        device: a torch device; None or "auto" takes the first GPU, else the CPU.
        dtype: as the engine's; "auto" is bfloat16 on a GPU.

    Raises:
        UserError: no such model there, or one that makes no masks.
    """

    def __init__(self, model_path: str, device: str | None = None, dtype: str = "float32") -> None:
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        try:
            self.processor = AutoProcessor.from_pretrained(model_path)
            model = AutoModelForMaskGeneration.from_pretrained(model_path, dtype=self.dtype)
        except (OSError, ValueError) as error:
            first = str(error).strip().splitlines()[0]
            raise UserError(f"SAM model {model_path}: cannot be loaded ({first})") from error
        self.model = model.to(self.device).eval()

    @torch.inference_mode()
    def masks(self, image: Image.Image, boxes: Sequence[Box]) -> np.ndarray:
        """One mask per box; the image is encoded once.

        Args:
            image: RGB.
            boxes: x1, y1, x2, y2 in pixels of the image, ordered corners; at least one.

        Returns:
            bool array (boxes, height, width).
        """
        prompt = [[[float(v) for v in box] for box in boxes]]
        inputs = self.processor(images=image, input_boxes=prompt, return_tensors="pt")
        sizes = [inputs.pop(name) for name in SIZES if name in inputs]
        tensors = {k: v.to(self.device, self.dtype) for k, v in inputs.items()}
        # A box leaves nothing to choose from: SAM's authors take its single mask, not the best of three.
        found = self.model(**tensors, multimask_output=False).pred_masks
        # (boxes, 1, height, width) for the one image.
        masks = self.processor.post_process_masks(found.float().cpu(), *sizes)[0]
        return masks[:, 0].numpy().astype(bool)
