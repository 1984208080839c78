"""One op a file, and what several of them share; the kernels that are named in ``registry``, and sampling."""
