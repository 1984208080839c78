"""One token after another: what is asked for, the sampler, and the text as it comes."""
