"""Attention policies: what a session's attention leaves out, one paper a file. Without one it is exact."""
