"""Calibration: finds, for one model, what its attention may leave out at what cost, and keeps it in the package."""
