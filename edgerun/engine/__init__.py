"""Runs of rows of many sequences: pages of the cache, sequences, batches, and the scheduler."""
