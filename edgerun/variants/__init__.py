"""Variants: fine-tuned models as small sparse deltas to a base model, chosen per session."""
