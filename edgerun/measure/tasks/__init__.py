"""Tasks that tell what an approximation costs: needles in long texts, multiple choice, questions about a passage.

Each gives metrics, float64 [n questions]; `score` compares those of a model with those of a reference, in pairs.
"""
