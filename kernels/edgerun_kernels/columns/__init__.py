"""Reading fewer weights: which columns of a matrix a token needs, how they are fetched, and what they add up to."""
