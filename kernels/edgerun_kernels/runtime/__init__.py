"""The team of threads that runs tapes, and how many of them take part; the compiled half is in ``loop``."""
