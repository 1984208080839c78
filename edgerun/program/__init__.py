"""A package's model as typed ops: built from the graph and checked, then encoded as the records that kernels run."""
