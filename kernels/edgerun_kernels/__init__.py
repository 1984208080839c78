"""The ground floor of edgerun: compiled kernels, the thread team and the tape. It knows pointers and numbers, no model.

``build.load`` gives the kernels for this CPU, ``runtime.team`` runs a tape with them, ``registry`` says which ops there
are, ``layouts`` and ``record`` what a tape's and a run's records hold. ``build`` compiles kernels ahead of time: those
in ``ops``, ``columns`` and ``runtime.loop``, over the vocabulary in ``simd`` (needs numba; nothing else here does).
"""
