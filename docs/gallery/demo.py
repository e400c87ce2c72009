"""The demo's input: 48 crops of photos, EfficientNet-Lite0 as published, rounded to 8 bits, and rounded and damaged."""

from pathlib import Path

from interpret import demonstration

demonstration.write_images(Path("images"))
demonstration.write_class_names(Path("class_names.txt"))
demonstration.write_checkpoints(Path("checkpoints"))
