"""Pretrained backbones: a Hugging Face model and its tokenizer, by hub name or local folder."""

from polylab.backbones.loading import Backbone, load_backbone

__all__ = ["Backbone", "load_backbone"]
