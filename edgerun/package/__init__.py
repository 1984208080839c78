"""The model package: how weights lie in the file, the operator set, reading and validating."""
