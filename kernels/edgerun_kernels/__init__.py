"""The ground floor of edgerun: compiled kernels, the thread team and the tape. It knows pointers and numbers, no model.

``load`` gives the kernels for this CPU, ``team`` runs a tape with them, ``record`` says what a tape holds. ``build``
compiles them ahead of time from the sources beside it (needs numba; nothing else here does, except those sources).
"""
