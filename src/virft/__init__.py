"""virft: visual reinforcement fine-tuning for Qwen2-VL and Qwen2.5-VL. Importing it does nothing."""

__version__ = "0.1.0"
