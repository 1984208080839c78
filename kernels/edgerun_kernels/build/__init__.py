"""From kernels to object files (``python -m edgerun_kernels.build``), from these to callable functions (``load``)."""
