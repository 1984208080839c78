"""The SIMD vocabulary: 512-bit values as Numba types, and the operations on them.

*What* (``types``, ``ops``): every kernel is written over these names and compiles once, to LLVM IR that knows no
instruction set. *How* (``isa_*``): one small LLVM module per instruction set defines the few operations that generic
LLVM vectors cannot express well; ``edgerun_kernels.build`` links it in and optimises for that target.
Logical vectors are 512 bits wide everywhere; LLVM splits them into what the target has.
"""
